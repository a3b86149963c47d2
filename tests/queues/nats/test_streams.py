"""Streams, consumers and records that were deleted or changed."""

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
    eventually,
    finish,
    in_real_time,
    message,
    messages,
    opened,
    returned,
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
from background.queues._errors import BrokerUnavailableError, QueueError
from background.queues._states import JobState
from background.queues.abc import Claim, LeaseStatus, MaintenanceStats, Settlement
from background.queues.nats import NatsBroker
from background.queues.nats.codec import decode


@asynccontextmanager
async def opened_in_memory() -> AsyncGenerator[tuple[NatsServer, Any]]:
    """Yield a server and a broker whose streams are in memory."""
    with nats_server() as server:
        async with opened(server, storage="memory") as broker:
            yield server, broker


async def restart(server: NatsServer) -> None:
    await asyncio.to_thread(server.restart)


def calls_of(broker: NatsBroker, claims: list[Claim]) -> dict[str, tuple[Any, Any]]:
    """Return all calls by name, with the results to expect when all jobs are lost."""
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


async def process_job(broker: NatsBroker) -> None:
    """Enqueue, claim and settle a job."""
    assert await broker.enqueue([message("two", queue="r")]) == [True]
    (claim,) = await broker.claim(["r"], 1, lease=30)
    assert await finish(broker, [claim]) == [True]
    assert await state_of(broker, "two") is JobState.SUCCEEDED


# Missing streams


@in_real_time
async def test_restart_with_memory_storage() -> None:
    """Streams in memory are created again at the first call after a server restart."""
    async with opened_in_memory() as (server, broker):
        claims: list[Claim] = []
        for name in ("enqueue", "claim", "wait_for_work", "maintain"):
            call, expected = calls_of(broker, claims)[name]
            assert await broker.enqueue([message()]) == [True]
            await restart(server)
            assert await call() == expected
            await process_job(broker)
            await remove_streams(broker)


@pytest.mark.parametrize("number", range(14))
@virtual
async def test_deleted_streams(number: int) -> None:
    """Every call creates deleted streams again."""
    async with served_nats_broker() as broker:
        claims: list[Claim] = []
        call, expected = list(calls_of(broker, claims).values())[number]
        await broker.enqueue([message()])
        claims[:] = await broker.claim(["q"], 1, lease=30)
        await remove_streams(broker)
        assert await retry_during_deletion(call) == expected
        await process_job(broker)


async def retry_during_deletion(call: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat a call while the server can't create a stream because of the old one's files."""
    for _ in range(50):
        try:
            return await call()
        except BrokerUnavailableError as error:
            if "error creating store" not in str(error):
                raise
    return await call()


@in_real_time
@pytest.mark.usefixtures("renewing_often")
async def test_worker_after_stream_loss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker cancels its lost job and runs new jobs when its streams exist again."""
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
            await restart(server)
            later = await eventually(lambda: add.enqueue(3, 4))
            assert await later.result() == 7
            while worker.in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert not gate.is_set()
    assert "has been created again" in caplog.text


@in_real_time
async def test_waiter_after_stream_loss() -> None:
    """Waiting for work ends when a job is enqueued in streams that were created again."""
    async with opened_in_memory() as (server, broker):
        waiting = asyncio.create_task(eventually(lambda: broker.wait_for_work(["q"], 1000)))
        while not broker._requests._listeners:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await restart(server)
        async with opened(server, storage="memory", prefix=broker._layout.prefix) as second:
            await eventually(lambda: second.enqueue([message()]))
            await waiting
        assert len(await broker.claim(["q"], 5, lease=30)) == 1


@in_real_time
async def test_claim_of_lost_job() -> None:
    """The claim of a lost job has no effect on a new job with the same id.

    Nor does it delete a new timer that has the same sequence as the old one.
    """
    prefix = f"test-{token_hex(8)}"
    options: Any = {"storage": "memory", "prefix": prefix}
    with nats_server() as server:
        async with opened(server, **options) as broker, opened(server, **options) as second:
            await second.enqueue([message()])
            old = await broker.claim(["q"], 1, lease=30)
            await restart(server)
            assert await eventually(lambda: second.enqueue([message()])) == [True]
            new = await eventually(lambda: second.claim(["q"], 1, lease=30))
            assert (await stored(second))["timers"] == 1
            assert await eventually(lambda: finish(broker, old)) == [False]
            broker._claims._leases.drop(["one"])
            assert await broker.renew(old, lease=30) == [LeaseStatus.LOST]
            assert (await stored(second))["timers"] == 1
            assert await finish(second, new, result=b"new") == [True]
            assert (await broker.get("one")).result == b"new"


@pytest.mark.parametrize("deleted", [["ready"], ["timers"], ["ready", "timers"]])
@virtual
async def test_deleted_hints_and_timers(deleted: list[str]) -> None:
    """Jobs survive the deletion of the streams with their hints and timers."""
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as second:
        await broker.enqueue(
            [*messages(3), message("late", delay=100), message("old", retention=1)]
        )
        await broker.enqueue(
            [message("then", depends_on=("old",)), message("expires", expires=200)]
        )
        (first, *done) = await broker.claim(["q"], 4, lease=30)
        assert [claim.message.id for claim in done] == ["0001", "0002", "old"]
        await finish(broker, done)
        for name in deleted:
            await broker._api._ask(f"STREAM.DELETE.{broker._layout.prefix}-{name}")
        await second.enqueue([message("new")])
        await second.claim(["none"], 1, lease=30)
        seen: list[str] = []
        for _ in range(12):
            await asyncio.sleep(10)
            await second.maintain()
            claims = await second.claim(["q"], 9, lease=1000)
            seen += [claim.message.id for claim in claims]
            await finish(second, claims)
        assert first.message.id == "0000"
        assert sorted(seen) == ["0000", "expires", "late", "new", "then"]
        await asyncio.sleep(200)
        await second.maintain()
        assert await stored(second) == EMPTY


@virtual
async def test_interrupted_recovery() -> None:
    """A recovery that is interrupted at any request is completed by the next calls."""
    interruptions = 0
    async with served_nats_broker() as broker:
        for requests in range(20):
            await broker.enqueue([message(str(requests))])
            await broker._api._ask(f"STREAM.DELETE.{broker._layout.ready}")
            crash = Crash(broker)
            crash.left = requests
            try:
                await broker.claim(["q"], 1, lease=30)
            except BrokerUnavailableError:
                interruptions += 1
            crash.left = float("inf")
            await broker.count()
            await broker.maintain()
            claims: list[Claim] = []
            async with asyncio.timeout(5):
                while not claims:
                    claims = await broker.claim(["q"], 9, lease=30)
                    await asyncio.sleep(0.1)
            assert [claim.message.id for claim in claims] == [str(requests)]
            await finish(broker, claims)
            await asyncio.sleep(100)
            await broker.maintain()
    assert 5 < interruptions < 20


@virtual
async def test_write_during_timer_recovery() -> None:
    """A job that is written during the recovery of timers gets its timer later."""
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as second:
        records: Any = broker._records
        write = records.write

        async def write_late(changes: Any) -> Any:
            await broker._api._ask(f"STREAM.DELETE.{broker._layout.timers}")
            await second.maintain()
            return await write(changes)

        records.write = write_late
        await broker.enqueue([message(delay=5)])
        await asyncio.sleep(30)
        assert await second.maintain() == MaintenanceStats()
        await asyncio.sleep(31)
        assert await second.maintain() == MaintenanceStats(due=1)


@virtual
async def test_failed_recovery() -> None:
    """Calls fail if streams are still missing after their recovery."""
    async with served_nats_broker() as broker:
        await remove_streams(broker)
        streams: Any = broker._streams
        streams.ensure, ensure = functools.partial(returned, []), streams.ensure
        with pytest.raises(BrokerUnavailableError, match="stream not found"):
            await broker.get("one")
        with pytest.raises(BrokerUnavailableError, match="a stream has no leader"):
            await broker.enqueue([message()])
        streams.ensure = ensure
        with pytest.raises(BrokerUnavailableError, match="invalid subject"):
            await broker._api._ask("no subject")


@pytest.mark.parametrize("answers", [True, False])
@virtual
async def test_stream_without_leader(answers: bool) -> None:
    """A stream without a leader is waited for, and an error says so if it gets none."""
    async with served_nats_broker() as broker:
        streams: Any = broker._streams
        ask, requests = streams._ask, 0

        async def ask_leaderless(subject: str, **body: Any) -> Any:
            nonlocal requests
            requests += 1
            if requests > 3:
                return await ask(subject, **body)
            if not answers:
                await asyncio.sleep(1e9)
            return {"cluster": {"name": "c"}}

        streams._ask = ask_leaderless
        assert await streams.ensure() == []
        requests = -1000
        with pytest.raises(BrokerUnavailableError, match=r"stream KV_\S+ has no leader"):
            await streams.ensure()
        streams._ask = ask


@in_real_time
async def test_stream_creation_error() -> None:
    """Calls fail if a stream can't be created, and the next call tries it again."""
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


# Changed records and consumers


@virtual
async def test_newer_records(caplog: pytest.LogCaptureFixture) -> None:
    """Records of a newer version are neither claimed, counted nor changed."""
    async with served_nats_broker() as broker:
        await broker.enqueue([message(), message("two"), message("three", delay=5)])
        api: Any = broker._api
        for id in ("one", "three"):
            (entry,) = await broker._records.load([id])
            newer = entry.record.replace(b'"v":1', b'"v":2')
            await api.replace([(broker._layout.job(id), newer, entry.revision)])
        claims = await broker.claim(["q"], 5, lease=30)
        assert [claim.message.id for claim in claims] == ["two"]
        assert await broker.enqueue([message(), message("four")]) == [False, True]
        for inspect in (
            lambda: broker.get("one"),
            lambda: broker.wait("one", 60),
            broker.count,
            lambda: anext(broker.scan()),
        ):
            with pytest.raises(QueueError, match="jobs of version 2, from a newer version") as info:
                await inspect()
            assert not isinstance(info.value, BrokerUnavailableError)
        assert await broker.purge() == 0
        await asyncio.sleep(6)
        assert await broker.maintain() == MaintenanceStats()
        (entry,) = await broker._records.load(["three"])
        old = entry.record.replace(b'"v":2', b'"v":1')
        await api.replace([(broker._layout.job("three"), old, entry.revision)])
        await asyncio.sleep(11)
        assert await broker.maintain() == MaintenanceStats(due=1)
    assert caplog.text.count("version 2") == 1


def test_invalid_record() -> None:
    """An invalid record raises an error with its revision."""
    for record in (b"", b"[]", b"{}\n", b'{"v":1}\n', b"\xff"):
        with pytest.raises(BrokerUnavailableError, match="revision 7"):
            decode(record, 7)


@pytest.mark.parametrize("waits", [True, False])
@virtual
async def test_deleted_consumers(waits: bool) -> None:
    """Deleted consumers are created again by claims and by waiting for work."""
    async with served_nats_broker() as broker:
        await broker.enqueue([message()])
        await broker.claim(["q"], 1, lease=30)
        await broker.enqueue([message("two")])
        for again in (True, False):
            name, _ = broker._layout.consumer("q", again=again)
            await broker._api._ask(f"CONSUMER.DELETE.{broker._layout.ready}.{name}")
        if waits:
            await broker.wait_for_work(["q"], 100)
        claims = await broker.claim(["q"], 5, lease=30)
        assert [claim.message.id for claim in claims] == ["two"]


@virtual
async def test_consumer_settings() -> None:
    """A consumer that exists with different settings is rejected."""
    async with served_nats_broker() as broker:
        name, settings = broker._layout.consumer("q", again=True)
        changed = {**settings, "ack_wait": 5_000_000_000}
        await broker._api.ensure_consumer(broker._layout.ready, name, changed)
        with pytest.raises(BrokerUnavailableError, match="ack_wait is 5000000000 instead of"):
            await broker.claim(["q"], 1, lease=30)


@virtual
async def test_claim_after_enqueue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim finds jobs that were enqueued just before.

    A consumer may lag behind its stream.
    """
    monkeypatch.setattr("background.queues.nats.ready_queue._EXPECTED", 2)
    async with served_nats_broker() as broker:
        for number in range(100):
            await broker.enqueue([message(f"{number}-{n}") for n in range(3)])
            claims = await broker.claim(["q"], 2, lease=30)
            claims += await broker.claim(["q"], 1, lease=30)
            assert [claim.message.id for claim in claims] == [f"{number}-{n}" for n in range(3)]
            await finish(broker, claims)
        assert not broker._ready._expected


@virtual
async def test_delayed_acknowledgement() -> None:
    """Hints of a claim are acknowledged with the next claim, or after a short delay.

    Otherwise the cost of a claim would grow with the number of ready jobs.
    """
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(9))
        for most, left in ((2, 9), (2, 7)):
            await broker.claim(["q"], most, lease=30)
            await broker.get("0000")
            assert await poll_hints(broker, left) == left
        await asyncio.sleep(0.2)  # after that, acknowledgements do not wait for another claim
        assert await poll_hints(broker, 5) == 5
        assert len(await broker.claim(["q"], 9, lease=30)) == 5
        assert await poll_hints(broker, 0) == 0


async def poll_hints(broker: NatsBroker, expected: int) -> int:
    """Return the number of hints once it is at most `expected`, or after 500 queries."""
    for _ in range(500):
        left = (await stored(broker))["ready"]
        if left <= expected:
            break
    return left


@virtual
async def test_overlapping_fetches() -> None:
    """The hints of two overlapping fetches are acknowledged after a short delay."""
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(9))
        ready = broker._ready
        for offers in [await ready.take("q", 2), await ready.take("q", 2)]:
            ready.done(offers)
        assert await poll_hints(broker, 9) == 9
        await asyncio.sleep(0.2)
        assert await poll_hints(broker, 5) == 5


@virtual
async def test_duplicate_settlement() -> None:
    """The first of two settlements of a job in one call is accepted."""
    async with served_nats_broker() as broker:
        await broker.enqueue([message()])
        claims = await broker.claim(["q"], 1, lease=30)
        assert await finish(broker, claims * 2) == [True, False]


@virtual
async def test_changes_during_lease() -> None:
    """A lease is still held after another broker has renewed it and saved a result."""
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as second:
        await broker.enqueue([message()])
        claims = await broker.claim(["q"], 1, lease=30)
        assert await second.renew(claims, lease=60) == [LeaseStatus.HELD]
        assert await second.save("one", claims[0].token, b"half")
        assert await broker.renew(claims, lease=90) == [LeaseStatus.HELD]
        await asyncio.sleep(80)
        await second.maintain()
        assert await finish(broker, claims, result=b"1") == [True]
        assert await finish(second, claims) == [False]


@virtual
async def test_expired_leases_in_memory() -> None:
    """A broker drops its leases that have expired."""
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
async def test_delay_longer_than_lease() -> None:
    """A job can be scheduled with a delay that is longer than its lease."""
    async with served_nats_broker() as broker:
        await broker.enqueue([message()])
        (claim,) = await broker.claim(["q"], 1, lease=30)
        again = Settlement(id="one", token=claim.token, state=JobState.SCHEDULED, delay=100)
        assert await broker.settle([again]) == [True]
        await asyncio.sleep(101)
        assert await broker.maintain() == MaintenanceStats(due=1)


@virtual
async def test_hints_of_failed_claim() -> None:
    """The hints of a failed claim are available to other brokers at once."""
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as second:
        await second.enqueue(messages(3))
        jobs: Any = broker._jobs
        jobs.change = functools.partial(_fail, "lost")
        with pytest.raises(BrokerUnavailableError, match="lost"):
            await broker.claim(["q"], 3, lease=30)
        seen: list[str] = []
        async with asyncio.timeout(SOON):
            while len(seen) < 3:
                seen += [claim.message.id for claim in await second.claim(["q"], 3, lease=30)]
        assert seen == ["0000", "0001", "0002"]


async def _fail(message: str, *args: Any, **options: Any) -> None:
    raise BrokerUnavailableError(message)


# Deletion


@virtual
async def test_lease_timers_after_settlement() -> None:
    """The lease timers of a claim are deleted when all its jobs are settled."""
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
async def test_streams_after_retention() -> None:
    """All records, hints and timers are deleted after the retention of their jobs."""
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
        settlements = [
            Settlement(id=claim.message.id, token=claim.token, state=state, delay=delay)
            for claim, (state, delay) in zip(
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
        assert await broker.settle(settlements) == [True] * 4
        assert await broker.requeue(claims[0].message.id)
        await broker.maintain()
        for round in range(6):
            held = await broker.claim(["q"], 50, lease=30)
            await broker.renew(held, lease=45)
            await finish(broker, held[round < 5 :])  # in all rounds but the last, one lease expires
            await asyncio.sleep(100)
            await broker.maintain()
        await asyncio.sleep(700)
        await broker.maintain()
        assert await stored(broker) == EMPTY
