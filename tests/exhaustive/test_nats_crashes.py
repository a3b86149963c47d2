"""Crashes of processes between two requests to NATS."""

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
    finish_dependency,
    in_real_time,
    message,
    messages,
    opened,
    state_of,
    stored,
    virtual,
)
from support.brokers.nats_servers import (
    remove_streams,
    served_nats_broker,
    shared_server,
)
from support.cancellation.injection import How, InjectedRun, Point
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


async def releases(broker: NatsBroker, claims: list[Claim]) -> None:
    states = [JobState.READY, JobState.SCHEDULED, JobState.DEAD]
    await broker.settle(
        [
            Settlement(id=claim.message.id, token=claim.token, state=state, delay=5)
            for claim, state in zip(claims, states, strict=True)
        ]
    )


async def cancels(broker: NatsBroker, claims: list[Claim]) -> None:
    await broker.cancel("0004")
    await broker.cancel("0000")


async def cancels_many(broker: NatsBroker, claims: list[Claim]) -> None:
    await broker.cancel_many(["e", "d", "0004", "0001", "0000"])


async def requeues(broker: NatsBroker, claims: list[Claim]) -> None:
    await finish(broker, claims[:1])
    await broker.requeue("0000")


async def waits_and_maintains(broker: NatsBroker, claims: list[Claim]) -> None:
    await asyncio.sleep(31)
    await broker.maintain()


ACTS = [
    enqueues,
    claims_some,
    finishes,
    releases,
    cancels,
    cancels_many,
    requeues,
    waits_and_maintains,
]


@pytest.mark.parametrize(("act", "keep"), [*((act, 60) for act in ACTS), (finishes, 0)])
@virtual
async def test_crash_is_repaired(act: Any, keep: float) -> None:
    """After a crash at any request, all stored jobs run or end, and no message remains."""
    tried = 0
    async with served_nats_broker() as survivor:
        for number in count():
            async with served_nats_broker(like=survivor) as broker:
                await survivor.enqueue(
                    [
                        *messages(6, retention=keep),
                        message("d", depends_on=("0000", "0001")),
                        message("e", depends_on=("d",)),
                    ]
                )
                await survivor.enqueue([message("x", expires=31), message("s", delay=31)])
                claims = await broker.claim(["q"], 3, lease=30)
                crash = Crash(broker)
                crashed = await crash_at(crash, number, act, claims)
                tried += crashed
                await recover(survivor)
                assert [job async for job in survivor.scan() if job.state not in FINAL] == []
                await asyncio.sleep(700)
                await survivor.maintain()
                assert await stored(survivor) == EMPTY, number
                crash.left = float("inf")
            if not crashed:
                break
    assert tried > 3


async def claims_briefly(broker: NatsBroker, claims: list[Claim]) -> None:
    await broker.claim(["q"], 3, lease=LEASE)


async def sweeps(broker: NatsBroker, claims: list[Claim]) -> None:
    await asyncio.sleep(LEASE + 0.01)
    await broker.maintain()


LEASE = 1.0  # shorter than the cover of interrupted changes
SWEEP = LEASE / 3
#: Calls that crash, and the seconds within which other processes complete them.
IN_TIME = {
    claims_briefly: LEASE,
    finishes: LEASE,
    releases: LEASE,
    sweeps: LEASE,
    enqueues: timer_wheel.COVER + 0.1,
    cancels: timer_wheel.COVER,
    cancels_many: timer_wheel.COVER,
    requeues: timer_wheel.COVER,
}


@pytest.mark.parametrize("act", IN_TIME)
@virtual
async def test_crash_is_repaired_in_time(act: Any) -> None:
    """A crashed call is completed within its lease or cover and a sweep, at any request."""
    tried = 0
    async with served_nats_broker() as survivor:
        for number in count():
            async with served_nats_broker(like=survivor) as broker:
                sent = [*messages(6), message("d", depends_on=("0000", "0001"))]
                await survivor.enqueue([*sent, message("e", depends_on=("d",))])
                claims = await broker.claim(["q"], 3, lease=LEASE)
                crash = Crash(broker)
                crashed = await crash_at(crash, number, act, claims)
                tried += crashed
                await make_available(survivor)
                until = survivor._clock.now() + IN_TIME[act] + SWEEP
                while survivor._clock.now() + SWEEP <= until + 0.01:
                    await asyncio.sleep(SWEEP)
                    await survivor.maintain()
                    while claimed := await survivor.claim(["q"], 10, lease=30):
                        assert all(await finish(survivor, claimed))
                assert await unfinished_jobs(survivor) == [], number
                await recover(survivor)
                await survivor.purge()
                crash.left = float("inf")
            if not crashed:
                break
    assert tried > 3


@pytest.mark.parametrize("act", ACTS)
@virtual
async def test_crash_and_purge(act: Any) -> None:
    """After a crash and the loss of all hints and timers, all stored jobs end."""
    async with served_nats_broker() as survivor:
        for number in count(step=2):
            async with served_nats_broker(like=survivor) as broker:
                sent = [*messages(6), message("d", depends_on=("0000", "0001"))]
                await survivor.enqueue([*sent, message("e", depends_on=("d",))])
                await survivor.enqueue([message("x", expires=31), message("s", delay=31)])
                crash = Crash(broker)
                crashed = await crash_at(crash, number, act, await broker.claim(["q"], 3, lease=30))
                await purge_streams(survivor)
                await restore(survivor)
                await recover(survivor)
                assert [job async for job in survivor.scan() if job.state not in FINAL] == []
                await asyncio.sleep(700)
                await survivor.maintain()
                assert await stored(survivor) == EMPTY, number
                crash.left = float("inf")
            if not crashed:
                break
    assert number > 3


@pytest.mark.parametrize(
    ("first", "streams"), [(0, ("ready",)), (1, ("timers",)), (2, ("ready", "timers"))]
)
@virtual
async def test_crash_during_restoration(first: int, streams: tuple[str, ...]) -> None:
    """After a crash in a pass, another process restores what is missing."""

    async def maintains(broker: NatsBroker, claims: list[Claim]) -> None:
        await broker.maintain()

    async with served_nats_broker() as survivor:
        await survivor.maintain()
        for number in count(first, 3):
            async with served_nats_broker(like=survivor) as broker:
                await survivor.enqueue([*messages(3), message("d", depends_on=("0000",))])
                await survivor.enqueue([message("x", expires=20), message("s", delay=20)])
                await finish(survivor, await survivor.claim(["q"], 1, lease=30))
                await survivor.claim(["q"], 1, lease=30)
                await purge_streams(survivor, streams)
                await asyncio.sleep(61)
                broker._restoration.opened()
                await asyncio.sleep(1)
                crash = Crash(broker, broker._inspection)
                crashed = await crash_at(crash, number, maintains, [])
                await make_available(survivor)
                for _ in range(40):  # for more than an hour
                    await asyncio.sleep(100)
                    await survivor.maintain()
                    await finish(survivor, await survivor.claim(["q"], 10, lease=30))
                assert [job async for job in survivor.scan() if job.state not in FINAL] == []
                await asyncio.sleep(100)
                await survivor.maintain()
                assert await stored(survivor) == EMPTY, number
                crash.left = float("inf")
            if not crashed:
                break
    assert number > 10


async def crash_at(crash: Crash, number: int, act: Any, claims: list[Claim]) -> bool:
    """Call `act` and crash before a request; return whether there were as many requests."""
    crash.left = number
    try:
        await act(crash.broker, claims)
    except BrokerUnavailableError as error:
        assert str(error) == "the process has died"  # noqa: PT017
        return True
    finally:
        crash.left = 0
    return False


async def purge_streams(broker: Any, streams: tuple[str, ...] = ("ready", "timers")) -> None:
    for name in streams:
        await broker._api._ask(f"STREAM.PURGE.{broker._layout.prefix}-{name}")


async def restore(broker: Any) -> None:
    """Make the pass that a restarted worker makes, long after the latest pass."""
    await broker._api._ask(f"STREAM.PURGE.{broker._layout.schedules}")
    broker._restoration.opened()
    await asyncio.sleep(1)
    await broker.maintain()


async def unfinished_jobs(broker: Any) -> list[str]:
    """Return the jobs that are due but have not ended."""
    unfinished: list[str] = []
    async for found in broker.scan():
        (stored,) = await broker._records.load([found.message.id])
        job = broker._records.job_of(stored, broker._clock.now())
        later = job.state is JobState.SCHEDULED and (job.unmet or job.due > broker._clock.now())
        if job.state not in FINAL and not later:
            unfinished.append(f"{job.message.id} {job.state}")
    return unfinished


async def recover(broker: NatsBroker) -> list[str]:
    """Maintain and run jobs until there are none; return the ids of the jobs."""
    await make_available(broker)
    seen: list[str] = []
    idle = 0
    while idle < 4:
        await broker.maintain()
        claims = await broker.claim(["q"], 10, lease=30)
        assert all(await finish(broker, claims, result=b"2"))
        seen += [claim.message.id for claim in claims]
        idle = 0 if claims else idle + 1
        await asyncio.sleep(15)
    return seen


async def make_available(broker: Any) -> None:
    """Make messages of a crashed process available again, without waiting for their timeout."""
    broker._ready.reset()
    for again in (True, False):
        name, _ = broker._layout.consumer("q", again=again)
        await broker._api._ask(f"CONSUMER.DELETE.{broker._layout.ready}.{name}")


@virtual
async def test_stalled_enqueue() -> None:
    """All jobs succeed when an enqueue stalls at any request while other jobs run."""
    async with served_nats_broker() as survivor:
        for number in count():
            async with served_nats_broker(like=survivor) as broker:
                call, sent = broker._requests._call, count()

                async def stalling(requests: Any, at: int = number, call: Any = call) -> Any:
                    answers: list[Any] = []
                    for request in requests:
                        if next(sent) == at:  # noqa: B023
                            await recover(survivor)
                        answers += await call([request])
                    return answers

                broker._requests._call = stalling  # type: ignore[method-assign]
                large = {"body": b"[]" * 10_000, "retention": 10_000, "dead_retention": 10_000}
                a, b = message("a", **large), message("b", depends_on=("a",), **large)
                await broker.enqueue([a, b, message("c", depends_on=("a", "b"), **large)])
                stalled = next(sent) > number
                await recover(survivor)
                states = [await state_of(survivor, id) for id in ("a", "b", "c")]
                assert states == [JobState.SUCCEEDED] * 3, number
                assert await survivor.purge() == 3
            if not stalled:
                break
    assert number > 4


@virtual
async def test_enqueue_again_after_crash() -> None:
    """Enqueuing again after a crash at any request stores all jobs."""
    async with served_nats_broker() as survivor:
        for number in count():
            async with served_nats_broker(like=survivor) as broker:
                crash = Crash(broker)
                crash.left = number
                try:
                    await enqueues(broker, await finish_dependency(survivor))
                except BrokerUnavailableError:
                    await enqueues(survivor, [])
                    crashed = True
                else:
                    crashed = False
                states = [await state_of(survivor, id) for id in ("new", "then", "none", "all")]
                assert states == [
                    JobState.READY,
                    JobState.SCHEDULED,
                    JobState.SUCCEEDED,
                    JobState.SCHEDULED,
                ]
                await asyncio.sleep(51)
                assert sorted(await recover(survivor)) == ["later", "new", "then"]
                await asyncio.sleep(700)
                await survivor.maintain()
                assert await stored(survivor) == EMPTY
                crash.left = float("inf")
            if not crashed:
                break
    assert number > 10


@pytest.mark.parametrize("number", range(10))
@virtual
async def test_cancelled_call(number: int) -> None:
    """A call that is cancelled at any suspension leaves no stuck job and no pending request."""
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
                    run = InjectedRun(Point(suspension, when, how))
                    outcome = await run.drive(calls[number]())
                    assert outcome.cancelled or outcome.error is None
                    await recover_all(broker)
                    assert not broker._requests._waiting
                    if run.injected_at is None:
                        break
                    points += 1
                else:
                    raise AssertionError("too many suspensions")
        assert points > 3
        await asyncio.sleep(200)
        await broker.maintain()
        assert await stored(broker) == EMPTY


async def recover_all(broker: NatsBroker) -> None:
    """Run all jobs to their ends, and delete them."""
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
@in_real_time
async def test_cancelled_open_or_close(action: str, how: How) -> None:
    """A cancelled open or close leaks no task, and the broker can be opened again."""
    tasks = asyncio.all_tasks()
    prefix = f"test-{token_hex(8)}"
    for when in When:
        for suspension in range(1, 100):
            broker: Any = NatsBroker(shared_server().url, prefix=prefix)
            if action == "close":
                await broker.open()
            run = InjectedRun(Point(suspension, when, how))
            await run.drive(getattr(broker, action)())
            await broker.close()
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == tasks
            if run.injected_at is None:
                break
        assert 1 < suspension < 99
    await broker.open()
    await remove_streams(broker)
    await broker.close()


@in_real_time
async def test_unclaimed_messages_redelivered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A message that a crashed process took is delivered to another process."""
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
