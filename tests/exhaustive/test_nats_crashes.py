"""Jobs in NATS whose process died between two steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from secrets import token_hex
from typing import Any

import pytest
from support.brokers.nats import (
    EMPTY,
    Crash,
    finish,
    message,
    messages,
    needed,
    opened,
    real,
    state_of,
    stored,
    virtual,
)
from support.brokers.nats_servers import (
    remove_streams,
    served_nats_broker,
    shared_server,
)
from support.cancellation.injection import How, Point, World
from support.cancellation.stepping import When

from background.queues._errors import BrokerUnavailableError
from background.queues._states import FINAL, JobState
from background.queues.abc import Claim, Settlement
from background.queues.nats import NatsBroker, timer_wheel


async def enqueues(broker: NatsBroker, claims: list[Claim]) -> None:
    await broker.enqueue(
        [
            message("new"),
            message("later", delay=50),
            message("then", depends_on=("new", "0000")),
            message("none", handler=None),
            message("all", depends_on=("none", "then"), handler=None),
        ]
    )


async def claims_some(broker: NatsBroker, claims: list[Claim]) -> None:
    await broker.claim(["q"], 3, lease=30)


async def finishes(broker: NatsBroker, claims: list[Claim]) -> None:
    await finish(broker, claims, result=b"1")


async def hands_back(broker: NatsBroker, claims: list[Claim]) -> None:
    states = [JobState.READY, JobState.SCHEDULED, JobState.DEAD]
    await broker.settle(
        [
            Settlement(id=each.message.id, token=each.token, state=state, delay=5)
            for each, state in zip(claims, states, strict=True)
        ]
    )


async def cancels(broker: NatsBroker, claims: list[Claim]) -> None:
    await broker.cancel("0004")
    await broker.cancel("0000")


async def requeues(broker: NatsBroker, claims: list[Claim]) -> None:
    await finish(broker, claims[:1])
    await broker.requeue("0000")


async def waits_and_maintains(broker: NatsBroker, claims: list[Claim]) -> None:
    await asyncio.sleep(31)
    await broker.maintain()


ACTS = [enqueues, claims_some, finishes, hands_back, cancels, requeues, waits_and_maintains]


@pytest.mark.parametrize(("act", "keep"), [*((act, 60) for act in ACTS), (finishes, 0)])
@virtual
async def test_what_a_crash_leaves_is_put_right_by_others(act: Any, keep: float) -> None:
    """At each request in turn: every job that was stored runs or ends, and nothing is left."""
    tried = 0
    async with served_nats_broker() as other:
        for number in count():
            async with served_nats_broker(like=other) as broker:
                await other.enqueue(
                    [
                        *messages(6, retention=keep),
                        message("d", depends_on=("0000", "0001")),
                        message("e", depends_on=("d",)),
                    ]
                )
                await other.enqueue([message("x", expires=31), message("s", delay=31)])
                claims = await broker.claim(["q"], 3, lease=30)
                crash = Crash(broker)
                crash.left = number
                try:
                    await act(broker, claims)
                except BrokerUnavailableError as error:
                    assert str(error) == "the process has died"  # noqa: PT017
                    tried += 1
                    died = True
                else:
                    died = False
                crash.left = 0
                await recover(other)
                assert [job async for job in other.scan() if job.state not in FINAL] == []
                await asyncio.sleep(700)
                await other.maintain()
                assert await stored(other) == EMPTY, number
                crash.left = float("inf")
            if not died:
                break
    assert tried > 3


async def claims_briefly(broker: NatsBroker, claims: list[Claim]) -> None:
    await broker.claim(["q"], 3, lease=LEASE)


async def sweeps(broker: NatsBroker, claims: list[Claim]) -> None:
    await asyncio.sleep(LEASE + 0.01)
    await broker.maintain()


LEASE = 1.0  # less than what others are given for what they have begun
SWEEP = LEASE / 3
#: What a process may die of, and within how many seconds others have done it then.
IN_TIME = {
    claims_briefly: LEASE,
    finishes: LEASE,
    hands_back: LEASE,
    sweeps: LEASE,
    enqueues: timer_wheel.COVER + 0.1,
    cancels: timer_wheel.COVER,
    requeues: timer_wheel.COVER,
}


@pytest.mark.parametrize("act", IN_TIME)
@virtual
async def test_what_a_crash_leaves_is_put_right_in_time(act: Any) -> None:
    """Within a lease and a sweep of the last one that died of it, at whichever request."""
    tried = 0
    async with served_nats_broker() as other:
        for number in count():
            async with served_nats_broker(like=other) as broker:
                sent = [*messages(6), message("d", depends_on=("0000", "0001"))]
                await other.enqueue([*sent, message("e", depends_on=("d",))])
                claims = await broker.claim(["q"], 3, lease=LEASE)
                crash = Crash(broker)
                crash.left = number
                died = True
                try:
                    await act(broker, claims)
                except BrokerUnavailableError:
                    tried += 1
                else:
                    died = False
                crash.left = 0
                await redeliver(other)
                until = other._clock.now() + IN_TIME[act] + SWEEP
                while other._clock.now() + SWEEP <= until + 0.01:
                    await asyncio.sleep(SWEEP)
                    await other.maintain()
                    while some := await other.claim(["q"], 10, lease=30):
                        assert all(await finish(other, some))
                assert await left_over(other) == [], number
                await recover(other)
                await other.purge()
                crash.left = float("inf")
            if not died:
                break
    assert tried > 3


async def left_over(broker: Any) -> list[str]:
    """The jobs that could have been run, and have not been."""
    left: list[str] = []
    async for found in broker.scan():
        job = await broker._records.get(found.message.id)
        later = job.state is JobState.SCHEDULED and (job.unmet or job.due > broker._clock.now())
        if job.state not in FINAL and not later:
            left.append(f"{job.message.id} {job.state}")
    return left


async def recover(broker: NatsBroker) -> list[str]:
    """Do as a worker does, for as long as there may be anything to do; return the jobs' ids."""
    await redeliver(broker)
    seen: list[str] = []
    idle = 0
    while idle < 4:
        await broker.maintain()
        claims = await broker.claim(["q"], 10, lease=30)
        assert all(await finish(broker, claims, result=b"2"))
        seen += [each.message.id for each in claims]
        idle = 0 if claims else idle + 1
        await asyncio.sleep(15)
    return seen


async def redeliver(broker: Any) -> None:
    """Have what a process took that has died handed out again, without waiting for it."""
    broker._ready.reset()
    for again in (True, False):
        name, _ = broker._layout.consumer("q", again=again)
        await broker._api._ask(f"CONSUMER.DELETE.{broker._layout.ready}.{name}")


@virtual
async def test_what_a_process_enqueues_that_stalls_for_long() -> None:
    """At each request in turn: others may have run the first jobs before the last are stored."""
    async with served_nats_broker() as other:
        for number in count():
            async with served_nats_broker(like=other) as broker:
                call, sent = broker._link._call, count()

                async def stalling(requests: Any, at: int = number, call: Any = call) -> Any:
                    answers: list[Any] = []
                    for each in requests:
                        if next(sent) == at:  # noqa: B023
                            await recover(other)
                        answers += await call([each])
                    return answers

                broker._link._call = stalling  # type: ignore[method-assign]
                large = {"body": b"[]" * 10_000, "retention": 10_000, "dead_retention": 10_000}
                a, b = message("a", **large), message("b", depends_on=("a",), **large)
                await broker.enqueue([a, b, message("c", depends_on=("a", "b"), **large)])
                stalled = next(sent) > number
                await recover(other)
                states = [await state_of(other, id) for id in ("a", "b", "c")]
                assert states == [JobState.SUCCEEDED] * 3, number
                assert await other.purge() == 3
            if not stalled:
                break
    assert number > 4


@virtual
async def test_enqueued_again_after_a_crash_all_jobs_are_there() -> None:
    """However many had been taken when the connection was lost."""
    async with served_nats_broker() as other:
        for number in count():
            async with served_nats_broker(like=other) as broker:
                crash = Crash(broker)
                crash.left = number
                try:
                    await enqueues(broker, await needed(other))
                except BrokerUnavailableError:
                    await enqueues(other, [])
                    died = True
                else:
                    died = False
                states = [await state_of(other, id) for id in ("new", "then", "none", "all")]
                assert states == [
                    JobState.READY,
                    JobState.SCHEDULED,
                    JobState.SUCCEEDED,
                    JobState.SCHEDULED,
                ]
                await asyncio.sleep(51)
                assert sorted(await recover(other)) == ["later", "new", "then"]
                await asyncio.sleep(700)
                await other.maintain()
                assert await stored(other) == EMPTY
                crash.left = float("inf")
            if not died:
                break
    assert number > 10


@pytest.mark.parametrize("number", range(10))
@virtual
async def test_cancelled_at_any_point_a_call_is_done_or_not(number: int) -> None:
    """At each suspension in turn, and nothing is stuck afterwards."""
    async with served_nats_broker() as broker:
        claims: list[Claim] = []
        calls: list[Callable[[], Any]] = [
            lambda: broker.enqueue([*messages(3), message("x", depends_on=("0000",))]),
            lambda: broker.claim(["q", "r"], 3, lease=30),
            lambda: broker.wait_for_work(["q", "r"], 1),
            lambda: broker.renew(claims, lease=30),
            lambda: finish(broker, claims),
            lambda: broker.cancel("held"),
            lambda: broker.wait("held", 1),
            lambda: broker.purge(),
            lambda: waits_and_maintains(broker, claims),
            lambda: broker.count(),
        ]
        points = 0
        for how in How:
            for when in When:
                for suspension in range(1, 100):
                    await broker.enqueue([message("held", queue="s")])
                    claims[:] = await broker.claim(["s"], 1, lease=30)
                    world = World(Point(suspension, when, how))
                    outcome = await world.drive(calls[number]())
                    assert outcome.cancelled or outcome.error is None
                    await recover_all(broker)
                    assert not broker._link._waiting
                    if world.injected_at is None:
                        break
                    points += 1
                else:
                    raise AssertionError("there is no end to the suspensions")
        assert points > 3
        await asyncio.sleep(200)
        await broker.maintain()
        assert await stored(broker) == EMPTY


async def recover_all(broker: NatsBroker) -> None:
    """Let all jobs end, and be forgotten."""
    await asyncio.sleep(35)
    await broker.maintain()
    while claims := await broker.claim(["q", "r", "s"], 50, lease=30):
        await finish(broker, claims)
    await asyncio.sleep(12)
    await broker.maintain()
    assert [job.message.id async for job in broker.scan() if job.state not in FINAL] == []
    await broker.purge()


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("action", ["open", "close"])
@real
async def test_cancelled_while_opening_or_closing(action: str, how: How) -> None:
    """No task of the client's is left, and the broker can be opened again."""
    tasks = asyncio.all_tasks()
    prefix = f"test-{token_hex(8)}"
    for when in When:
        for suspension in range(1, 100):
            broker: Any = NatsBroker(shared_server().url, prefix=prefix)
            if action == "close":
                await broker.open()
            world = World(Point(suspension, when, how))
            await world.drive(getattr(broker, action)())
            await broker.close()
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == tasks
            if world.injected_at is None:
                break
        assert 1 < suspension < 99
    await broker.open()
    await remove_streams(broker)
    await broker.close()


@real
async def test_what_a_process_took_that_died_is_handed_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("background.queues.nats.layout.ACK_WAIT", 0.2)
    monkeypatch.setattr("background.queues.nats.broker.ACK_WAIT", 0.2)
    monkeypatch.setattr("background.queues.nats.broker._POLL", 0.05)
    async with opened(shared_server()) as broker:
        await broker.enqueue([message()])
        assert len(await broker._ready.take("q", 1)) == 1
        assert await broker.claim(["q"], 1, lease=30) == []
        claims: list[Claim] = []
        while not claims:
            await broker.wait_for_work(["q"], 1000)
            claims = await broker.claim(["q"], 1, lease=30)
        assert (claims[0].attempt, claims[0].crashes) == (1, 0)
        await remove_streams(broker)
