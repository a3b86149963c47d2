"""Streams, consumers and records that others have deleted or changed."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Any

import pytest
from support.brokers.nats import (
    EMPTY,
    Crash,
    _later,
    eventually,
    finish,
    message,
    messages,
    opened,
    real,
    state_of,
    stored,
    virtual,
)
from support.brokers.nats_servers import (
    NatsServer,
    nats_server,
    remove_streams,
    served_nats_broker,
    shared_server,
)
from support.time import SOON

from background import Manager
from background.queues import JobQueue
from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.abc import Claim, LeaseStatus, MaintenanceStats, Settlement
from background.queues.nats import NatsBroker
from background.queues.nats.codec import decode


@asynccontextmanager
async def kept_in_memory() -> AsyncGenerator[tuple[NatsServer, Any]]:
    """Give a server and a broker that keeps its jobs in the server's memory."""
    with nats_server() as server:
        async with opened(server, storage="memory") as broker:
            yield server, broker


async def restarted(server: NatsServer) -> None:
    await asyncio.to_thread(server.restart)


def calls_of(broker: NatsBroker, claims: list[Claim]) -> dict[str, tuple[Any, Any]]:
    """Every call, with what it is to say when there is nothing any more."""
    new = [message("new"), message("after", depends_on=("new",))]
    return {
        "enqueue": (lambda: broker.enqueue(new), [True] * 2),
        "claim": (lambda: broker.claim(["q"], 1, lease=30), []),
        "wait_for_work": (lambda: broker.wait_for_work(["q"], 0.01), None),
        "renew": (lambda: broker.renew(claims, lease=30), [LeaseStatus.LOST]),
        "settle": (lambda: finish(broker, claims), [False]),
        "save": (lambda: broker.save("one", claims[0].token, b"1"), False),
        "get": (lambda: broker.get("one"), None),
        "wait": (lambda: broker.wait("one", 10), None),
        "cancel": (lambda: broker.cancel("one"), None),
        "requeue": (lambda: broker.requeue("one"), False),
        "count": (broker.count, 0),
        "purge": (broker.purge, 0),
        "maintain": (broker.maintain, MaintenanceStats()),
        "clock": (broker._clock.read, None),
    }


async def goes_on(broker: NatsBroker) -> None:
    """See that everything works."""
    assert await broker.enqueue([message("two", queue="r")]) == [True]
    (claim,) = await broker.claim(["r"], 1, lease=30)
    assert await finish(broker, [claim]) == [True]
    assert await state_of(broker, "two") is JobState.SUCCEEDED


# Streams that are gone


@real
async def test_what_was_kept_in_memory_is_gone_with_the_server_and_all_goes_on() -> None:
    """At the first call after the server has been started again."""
    async with kept_in_memory() as (server, broker):
        claims: list[Claim] = []
        for name in ("enqueue", "claim", "wait_for_work", "maintain"):
            call, expected = calls_of(broker, claims)[name]
            assert await broker.enqueue([message()]) == [True]
            await restarted(server)
            assert await call() == expected
            await goes_on(broker)
            await remove_streams(broker)


@pytest.mark.parametrize("number", range(14))
@virtual
async def test_streams_that_somebody_deletes_are_made_again(number: int) -> None:
    async with served_nats_broker() as broker:
        claims: list[Claim] = []
        call, expected = list(calls_of(broker, claims).values())[number]
        await broker.enqueue([message()])
        claims[:] = await broker.claim(["q"], 1, lease=30)
        await remove_streams(broker)
        assert await despite_old_files(call) == expected
        await goes_on(broker)


async def despite_old_files(call: Callable[[], Awaitable[Any]]) -> Any:
    """Call again where the server has not removed a stream's files yet, and can't make another."""
    for _ in range(50):
        try:
            return await call()
        except BrokerUnavailableError as error:
            if "error creating store" not in str(error):
                raise
    return await call()


@real
@pytest.mark.usefixtures("renewing_often")
async def test_a_worker_goes_on_when_its_streams_are_made_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with nats_server() as server:
        jobs = JobQueue(NatsBroker(server.url, storage="memory"))
        began, gate = asyncio.Event(), asyncio.Event()

        @jobs.handler()
        async def add(a: int, b: int) -> int:
            return a + b

        @jobs.handler()
        async def hold() -> None:
            began.set()
            await gate.wait()

        async with Manager() as manager, jobs:
            worker = await jobs.start(manager)
            assert await (await add.enqueue(1, 2)).result() == 3
            await hold.enqueue()
            await began.wait()
            await restarted(server)
            later = await eventually(lambda: add.enqueue(3, 4))
            assert await later.result() == 7
            while worker.in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert not gate.is_set()
    assert "has been created again" in caplog.text


@real
async def test_who_waits_for_work_goes_on_when_streams_are_made_again() -> None:
    async with kept_in_memory() as (server, broker):
        waiting = asyncio.create_task(eventually(lambda: broker.wait_for_work(["q"], 1000)))
        while not broker._link._listeners:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await restarted(server)
        async with opened(server, storage="memory", prefix=broker._layout.prefix) as other:
            await eventually(lambda: other.enqueue([message()]))
            await waiting
        assert len(await broker.claim(["q"], 5, lease=30)) == 1


@real
async def test_what_was_known_of_a_job_that_is_gone_changes_no_other() -> None:
    """Neither one with the same id, nor the timer of another, at the same place as before."""
    prefix = f"test-{token_hex(8)}"
    options: Any = {"storage": "memory", "prefix": prefix}
    with nats_server() as server:
        async with opened(server, **options) as broker, opened(server, **options) as other:
            await other.enqueue([message()])
            old = await broker.claim(["q"], 1, lease=30)
            await restarted(server)
            assert await eventually(lambda: other.enqueue([message()])) == [True]
            new = await eventually(lambda: other.claim(["q"], 1, lease=30))
            assert (await stored(other))["timers"] == 1
            assert await eventually(lambda: finish(broker, old)) == [False]
            broker._claims._leases.drop(["one"])
            assert await broker.renew(old, lease=30) == [LeaseStatus.LOST]
            assert (await stored(other))["timers"] == 1
            assert await finish(other, new, result=b"new") == [True]
            assert (await broker.get("one")).result == b"new"


@pytest.mark.parametrize("gone", [["ready"], ["timers"], ["ready", "timers"]])
@virtual
async def test_jobs_outlive_the_streams_that_are_only_about_them(gone: list[str]) -> None:
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as other:
        await broker.enqueue(
            [*messages(3), message("late", delay=100), message("old", retention=1)]
        )
        await broker.enqueue(
            [message("then", depends_on=("old",)), message("expires", expires=200)]
        )
        (first, *done) = await broker.claim(["q"], 4, lease=30)
        assert [each.message.id for each in done] == ["0001", "0002", "old"]
        await finish(broker, done)
        for each in gone:
            await broker._api._ask(f"STREAM.DELETE.{broker._layout.prefix}-{each}")
        await other.enqueue([message("new")])
        await other.claim(["none"], 1, lease=30)
        seen: list[str] = []
        for _ in range(12):
            await asyncio.sleep(10)
            await other.maintain()
            claims = await other.claim(["q"], 9, lease=1000)
            seen += [each.message.id for each in claims]
            await finish(other, claims)
        assert first.message.id == "0000"
        assert sorted(seen) == ["0000", "expires", "late", "new", "then"]
        await asyncio.sleep(200)
        await other.maintain()
        assert await stored(other) == EMPTY


@virtual
async def test_making_streams_again_is_completed_when_it_was_cut() -> None:
    """At each request in turn."""
    cut = 0
    async with served_nats_broker() as broker:
        for left in range(20):
            await broker.enqueue([message(str(left))])
            await broker._api._ask(f"STREAM.DELETE.{broker._layout.ready}")
            crash = Crash(broker)
            crash.left = left
            try:
                await broker.claim(["q"], 1, lease=30)
            except BrokerUnavailableError:
                cut += 1
            crash.left = float("inf")
            await broker.count()
            await broker.maintain()
            claims: list[Claim] = []
            async with asyncio.timeout(5):
                while not claims:
                    claims = await broker.claim(["q"], 9, lease=30)
                    await asyncio.sleep(0.1)
            assert [each.message.id for each in claims] == [str(left)]
            await finish(broker, claims)
            await asyncio.sleep(100)
            await broker.maintain()
    assert 5 < cut < 20


@virtual
async def test_what_was_under_way_when_timers_were_made_again_is_looked_at_later() -> None:
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as other:
        records: Any = broker._records
        write = records.write

        async def write_late(some: Any) -> Any:
            await broker._api._ask(f"STREAM.DELETE.{broker._layout.timers}")
            await other.maintain()
            return await write(some)

        records.write = write_late
        await broker.enqueue([message(delay=5)])
        await asyncio.sleep(30)
        assert await other.maintain() == MaintenanceStats()
        await asyncio.sleep(31)
        assert await other.maintain() == MaintenanceStats(due=1)


@virtual
async def test_streams_that_are_gone_though_they_have_been_made_again() -> None:
    async with served_nats_broker() as broker:
        await remove_streams(broker)
        streams: Any = broker._streams
        streams.ensure, ensure = functools.partial(_later, []), streams.ensure
        with pytest.raises(BrokerUnavailableError, match="stream not found"):
            await broker.get("one")
        with pytest.raises(BrokerUnavailableError, match="JetStream is not available"):
            await broker.enqueue([message()])
        streams.ensure = ensure
        with pytest.raises(BrokerUnavailableError, match="invalid subject"):
            await broker._api._ask("no subject")


@real
async def test_streams_that_can_not_be_made_again() -> None:
    """A call fails, as anybody else's would; the next one finds what it needs."""
    async with opened(shared_server()) as broker:
        await broker.enqueue([message()])
        await remove_streams(broker)
        settings = broker._layout.streams[broker._layout.ready]
        settings["num_replicas"] = 3
        for call in (broker.count, lambda: broker.claim(["q"], 1, lease=30), broker.maintain):
            with pytest.raises(BrokerUnavailableError, match="replicas > 1 not supported"):
                await call()
        settings["num_replicas"] = 1
        assert await broker.enqueue([message()]) == [True]
        assert len(await broker.claim(["q"], 1, lease=30)) == 1
        await remove_streams(broker)


# Records and consumers that others have changed


@virtual
async def test_records_of_a_newer_version_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with served_nats_broker() as broker:
        await broker.enqueue([message(), message("two"), message("three", delay=5)])
        api: Any = broker._api
        for id in ("one", "three"):
            (known,) = await broker._records.load([id])
            newer = known.record.replace(b'"v":1', b'"v":2')
            await api.replace([(broker._layout.job(id), newer, known.revision)])
        claims = await broker.claim(["q"], 5, lease=30)
        assert [each.message.id for each in claims] == ["two"]
        assert await broker.enqueue([message(), message("four")]) == [False, True]
        with pytest.raises(
            BrokerUnavailableError, match="by this version of the library: version 2"
        ):
            await broker.get("one")
        assert await broker.count() == 2
        await asyncio.sleep(6)
        assert await broker.maintain() == MaintenanceStats()
        (known,) = await broker._records.load(["three"])
        old = known.record.replace(b'"v":2', b'"v":1')
        await api.replace([(broker._layout.job("three"), old, known.revision)])
        await asyncio.sleep(11)
        assert await broker.maintain() == MaintenanceStats(due=1)
    assert "version 2" in caplog.text


def test_what_is_no_record() -> None:
    for record in (b"", b"[]", b"{}\n", b'{"v":1}\n', b"\xff"):
        with pytest.raises(BrokerUnavailableError, match="revision 7"):
            decode(record, 7)


@pytest.mark.parametrize("looking", [True, False])
@virtual
async def test_consumers_that_are_gone_are_made_again(looking: bool) -> None:
    async with served_nats_broker() as broker:
        await broker.enqueue([message()])
        await broker.claim(["q"], 1, lease=30)
        await broker.enqueue([message("two")])
        for again in (True, False):
            name, _ = broker._layout.consumer("q", again=again)
            await broker._api._ask(f"CONSUMER.DELETE.{broker._layout.ready}.{name}")
        if looking:
            await broker.wait_for_work(["q"], 100)
        claims = await broker.claim(["q"], 5, lease=30)
        assert [each.message.id for each in claims] == ["two"]


@virtual
async def test_consumers_with_other_settings_are_refused() -> None:
    async with served_nats_broker() as broker:
        name, settings = broker._layout.consumer("q", again=True)
        other = {**settings, "ack_wait": 5_000_000_000}
        await broker._api.ensure_consumer(broker._layout.ready, name, other)
        with pytest.raises(BrokerUnavailableError, match="ack_wait is 5000000000 instead of"):
            await broker.claim(["q"], 1, lease=30)


@virtual
async def test_what_was_just_stored_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a consumer hears of it a moment after whoever has stored it."""
    monkeypatch.setattr("background.queues.nats.ready_queue._EXPECTED", 2)
    async with served_nats_broker() as broker:
        for number in range(100):
            await broker.enqueue([message(f"{number}-{n}") for n in range(3)])
            claims = await broker.claim(["q"], 2, lease=30)
            claims += await broker.claim(["q"], 1, lease=30)
            assert [each.message.id for each in claims] == [f"{number}-{n}" for n in range(3)]
            await finish(broker, claims)
        assert not broker._ready._expected


@virtual
async def test_what_was_taken_last_is_there_while_there_is_more() -> None:
    """Or else what a claim costs would grow with the number of jobs that are ready."""
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(9))
        for most, left in ((2, 9), (2, 7)):
            await broker.claim(["q"], most, lease=30)
            await broker.get("0000")
            assert await ready_at_last(broker, left) == left
        await asyncio.sleep(0.2)  # after which nobody is expected to take more
        assert await ready_at_last(broker, 5) == 5
        assert len(await broker.claim(["q"], 9, lease=30)) == 5
        assert await ready_at_last(broker, 0) == 0


async def ready_at_last(broker: NatsBroker, expected: int) -> int:
    """How many jobs are offered once the server has seen to what it was told, or in the end."""
    for _ in range(500):
        left = (await stored(broker))["ready"]
        if left <= expected:
            break
    return left


@virtual
async def test_two_that_take_at_the_same_time() -> None:
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(9))
        ready = broker._ready
        for offers in [await ready.take("q", 2), await ready.take("q", 2)]:
            ready.done(offers)
        assert await ready_at_last(broker, 9) == 9
        await asyncio.sleep(0.2)
        assert await ready_at_last(broker, 5) == 5


@virtual
async def test_settlements_of_the_same_job_in_one_call() -> None:
    async with served_nats_broker() as broker:
        await broker.enqueue([message()])
        claims = await broker.claim(["q"], 1, lease=30)
        assert await finish(broker, claims * 2) == [True, False]


@virtual
async def test_changes_by_others_while_it_is_held() -> None:
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as other:
        await broker.enqueue([message()])
        claims = await broker.claim(["q"], 1, lease=30)
        assert await other.renew(claims, lease=60) == [LeaseStatus.HELD]
        assert await other.save("one", claims[0].token, b"half")
        assert await broker.renew(claims, lease=90) == [LeaseStatus.HELD]
        await asyncio.sleep(80)
        await other.maintain()
        assert await finish(broker, claims, result=b"1") == [True]
        assert await finish(other, claims) == [False]


@virtual
async def test_leases_that_nobody_settled_are_not_remembered() -> None:
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(3))
        (first, *_) = await broker.claim(["q"], 3, lease=30)
        await finish(broker, [first])
        await asyncio.sleep(31)
        assert await broker.maintain() == MaintenanceStats(reclaimed=2)
        leases: Any = broker._claims._leases
        assert not leases._leases
        assert not leases._covered
        assert not leases._covering


@virtual
async def test_a_delay_that_is_longer_than_the_lease() -> None:
    async with served_nats_broker() as broker:
        await broker.enqueue([message()])
        (claim,) = await broker.claim(["q"], 1, lease=30)
        again = Settlement(id="one", token=claim.token, state=JobState.SCHEDULED, delay=100)
        assert await broker.settle([again]) == [True]
        await asyncio.sleep(101)
        assert await broker.maintain() == MaintenanceStats(due=1)


@virtual
async def test_what_could_not_be_claimed_is_left_to_others_at_once() -> None:
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as other:
        await other.enqueue(messages(3))
        jobs: Any = broker._jobs
        jobs.change = functools.partial(_fail, "lost")
        with pytest.raises(BrokerUnavailableError, match="lost"):
            await broker.claim(["q"], 3, lease=30)
        seen: list[str] = []
        async with asyncio.timeout(SOON):
            while len(seen) < 3:
                seen += [each.message.id for each in await other.claim(["q"], 3, lease=30)]
        assert seen == ["0000", "0001", "0002"]


async def _fail(message: str, *args: Any, **options: Any) -> None:
    raise BrokerUnavailableError(message)


# Nothing is left


@virtual
async def test_nothing_is_left_of_leases_once_all_of_a_claim_are_settled() -> None:
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(3, retention=0))
        one, two, three = await broker.claim(["q"], 9, lease=30)
        await finish(broker, [one, three])
        assert await stored(broker) == {"jobs": 1, "ready": 0, "timers": 1}
        await finish(broker, [two])
        async with asyncio.timeout(SOON):
            while await stored(broker) != EMPTY:
                pass


@virtual
async def test_nothing_grows() -> None:
    """Whatever becomes of jobs, nothing is left once they are forgotten."""
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(20, expires=50))
        await broker.enqueue([message("late", delay=20), message("never", delay=500, expires=5)])
        await broker.enqueue([message("gone", queue="r"), message("old", expires=9, queue="s")])
        await broker.enqueue(
            [message("a", retention=0), message("b", depends_on=("a",)), message("c")]
        )
        await broker.cancel("gone")
        claims = await broker.claim(["q"], 12, lease=30)
        await finish(broker, claims[:8])
        back = [
            Settlement(id=each.message.id, token=each.token, state=state, delay=delay)
            for each, (state, delay) in zip(
                claims[8:],
                [
                    (JobState.READY, 0),
                    (JobState.SCHEDULED, 40),
                    (JobState.DEAD, 0),
                    (JobState.CANCELLED, 0),
                ],
                strict=True,
            )
        ]
        assert await broker.settle(back) == [True] * 4
        assert await broker.requeue(claims[0].message.id)
        await broker.maintain()
        for round in range(6):
            held = await broker.claim(["q"], 50, lease=30)
            await broker.renew(held, lease=45)
            await finish(broker, held[round < 5 :])  # of one, the worker dies
            await asyncio.sleep(100)
            await broker.maintain()
        await asyncio.sleep(700)
        await broker.maintain()
        assert await stored(broker) == EMPTY
