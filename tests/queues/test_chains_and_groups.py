"""Chains and groups of jobs, and their nesting."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import anyio
import pytest
from support.brokers.faulty import FaultyBroker, MemoryResults
from support.brokers.kinds import elapse
from support.job_events import events_of_attempts

from background import JobEnqueued, Manager
from background.queues import (
    BrokerUnavailableError,
    DuplicateJobError,
    Handler,
    JobCancelledError,
    JobContext,
    JobFailedError,
    JobQueue,
    JobState,
    QueueError,
    Step,
    chain,
    group,
)
from background.queues.abc import Message
from background.queues.memory import MemoryBroker
from background.testing import RecordingObserver

S = JobState
C, G = "chain", "group"
Echo = Handler[Any, Any, Any]


@pytest.fixture
def echo(jobs: JobQueue) -> Echo:
    """A handler that returns its label and the previous step's result."""

    @jobs.handler(name="echo")
    async def echo(label: str) -> Any:
        return [label, JobContext.current().previous]

    return echo


def build_step(echo: Echo, shape: Any) -> Step[Any]:
    if isinstance(shape, str):
        return echo.job(shape)
    kind, *steps = shape
    return {C: chain, G: group}[kind](*[build_step(echo, part) for part in steps])


def expected_result(shape: Any, previous: Any = None) -> Any:
    """Return the result that the documentation promises for a shape."""
    if isinstance(shape, str):
        return [shape, previous]
    kind, *steps = shape
    if kind == G:
        return [expected_result(part, previous) for part in steps]
    for part in steps:
        previous = expected_result(part, previous)
    return previous


SHAPES = [
    (C, "a"),
    (C, "a", "b", "c"),
    (G, "a"),
    (G, "a", "b", "c"),
    (C, "a", (G, "b", "c"), "d"),
    (C, (G, "a", "b"), "c"),
    (C, "a", (G, "b", "c")),
    (C, (G, "a", "b"), (G, "c", "d", "e")),
    (C, (G, "a", "b"), (G, "c", "d"), (G, "e", "f")),
    (G, (C, "a", "b"), "c", (C, "d", "e", "f")),
    (G, (C, (G, "a", "b"), "c"), (C, "d", (G, "e", "f"))),
    (C, (C, "a", "b"), (C, "c", "d")),
    (C, "a", (C, (C, "b")), "c"),
    (G, (G, "a", "b"), (G, "c")),
    (C, (G, (G, "a", (G, "b", "c")), "d"), "e"),
    (C, (G, (G, (G, "a"))), (G, (C, "b", (G, "c", "d")), "e"), "f"),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
async def test_previous_results(jobs: JobQueue, manager: Manager, echo: Echo, shape: Any) -> None:
    """Every step receives the result of the step before it, in any nesting."""
    await jobs.start(manager)
    job = await jobs.enqueue(build_step(echo, shape))
    assert await job.result() == expected_result(shape)
    info = await job.info()
    assert info is not None
    assert (info.state, info.handler, info.error) == (S.SUCCEEDED, None, None)
    assert info.result == expected_result(shape)


async def test_one_enqueue_call(jobs: JobQueue, echo: Echo, broker: FaultyBroker) -> None:
    """A chain with all its steps is enqueued by one call to the broker."""
    job = await jobs.enqueue(chain(echo.job("a"), group(echo.job("b"), echo.job("c"))), id="parent")
    assert job.id == "parent"
    assert broker.calls["enqueue"] == 1
    states = {info.id: info.state async for info in jobs.list()}
    assert states == {
        "parent..1": S.READY,
        "parent..2": S.SCHEDULED,
        "parent..3": S.SCHEDULED,
        "parent": S.SCHEDULED,
    }
    with pytest.raises(TimeoutError, match="job parent was scheduled"):
        await job.result(timeout=0)


async def test_step_options(jobs: JobQueue, echo: Echo) -> None:
    """A step is enqueued with its own queue, meta and delay."""
    step = echo.options(queue="slow", meta={"m": 1}, delay=60).job("a")
    await jobs.enqueue(group(step, echo.job("b")), id="parent")
    infos = {info.id: info async for info in jobs.list()}
    first, second = infos["parent..1"], infos["parent..2"]
    assert (first.queue, first.meta, first.state) == ("slow", {"m": 1}, S.SCHEDULED)
    assert (second.queue, second.meta, second.state) == ("default", {}, S.READY)


async def test_enqueued_events(broker: FaultyBroker, anyio_backend: Any) -> None:
    """Observers of a handler are notified of its steps, observers of the queue of all jobs."""
    of_queue, of_handler = RecordingObserver(), RecordingObserver()
    async with JobQueue(broker, observers=[of_queue]) as jobs:

        @jobs.handler(name="h", observers=[of_handler])
        async def handler() -> None: ...

        await jobs.enqueue(chain(handler.job(), handler.options(meta={"m": 1}).job()), id="c")
    events = [event for event in of_handler.events if isinstance(event, JobEnqueued)]
    assert [(event.job.id, event.meta) for event in events] == [("c..1", {}), ("c..2", {"m": 1})]
    events = [event for event in of_queue.events if isinstance(event, JobEnqueued)]
    assert [event.job.id for event in events] == ["c..1", "c..2", "c"]


async def test_step_retry(jobs: JobQueue, manager: Manager, echo: Echo) -> None:
    """A failed step is retried before the next step runs."""

    @jobs.handler(name="shaky", retry=3)
    async def shaky() -> int:
        if (attempt := JobContext.current().attempt) == 1:
            raise ValueError
        return attempt

    await jobs.start(manager)
    assert await (await jobs.enqueue(chain(shaky.job(), echo.job("a")))).result() == ["a", 2]


class StepError(Exception):
    """The error of a step."""


def declare_failing(jobs: JobQueue) -> Echo:
    @jobs.handler(name="fails")
    async def fails() -> None:
        raise StepError("by itself")

    return fails


async def test_failed_step(
    jobs: JobQueue, manager: Manager, echo: Echo, recorder: RecordingObserver
) -> None:
    """A failed step makes the following steps and the chain dead, with the step's error."""
    fails = declare_failing(jobs)
    await jobs.start(manager)
    job = await jobs.enqueue(chain(echo.job("a"), fails.job(), echo.job("b"), echo.job("c")))
    with pytest.raises(JobFailedError, match="by itself") as caught:
        await job.result()
    assert (caught.value.id, caught.value.type) == (f"{job.id}..2", f"{__name__}.StepError")
    assert "raise StepError" in caught.value.traceback
    assert await job.wait() is S.DEAD
    info = await job.info()
    assert info is not None
    assert f"{job.id}..4, which it depends on, is dead" in str(info.error)
    states = [info.state async for info in jobs.list()]
    assert states == [S.SUCCEEDED, S.DEAD, S.DEAD, S.DEAD, S.DEAD]
    assert events_of_attempts(recorder, f"{job.id}..3") == []
    with pytest.raises(JobFailedError, match=f"{job.id}..2"):
        await jobs.handle(f"{job.id}..4").result()
    assert await jobs.handle(f"{job.id}..1").result() == ["a", None]


async def test_failed_member(jobs: JobQueue, manager: Manager, echo: Echo) -> None:
    """A failed member fails its group; the remaining members run to their ends."""
    fails = declare_failing(jobs)
    await jobs.start(manager, concurrency=1)
    job = await jobs.enqueue(
        chain(group(echo.job("a"), fails.job(), chain(echo.job("b"), echo.job("c"))), echo.job("d"))
    )
    with pytest.raises(JobFailedError, match="by itself"):
        await job.result()
    assert await jobs.handle(f"{job.id}..4").result() == ["c", ["b", None]]
    assert await jobs.handle(f"{job.id}..5").wait() is S.DEAD


async def test_cancelled_step(jobs: JobQueue, manager: Manager, echo: Echo) -> None:
    """The chain's error names the cancelled step."""
    job = await jobs.enqueue(chain(echo.job("a"), echo.job("b"), echo.job("c")))
    assert await jobs.cancel(f"{job.id}..2")
    with pytest.raises(JobFailedError, match=f"job {job.id}..2, which it depends on, is cancelled"):
        await job.result()
    await jobs.start(manager)
    assert await jobs.handle(f"{job.id}..1").result() == ["a", None]


async def test_expired_step(jobs: JobQueue, manager: Manager, echo: Echo) -> None:
    """The chain's error names the expired step."""
    await jobs.start(manager)
    first, second = echo.options(delay=10).job("a"), echo.options(expires=5).job("b")
    job = await jobs.enqueue(chain(first, second))
    with pytest.raises(JobFailedError, match=f"job {job.id}..2, which it depends on, is expired"):
        await job.result()


async def test_cancel_running_chain(
    jobs: JobQueue, manager: Manager, echo: Echo, recorder: RecordingObserver
) -> None:
    """Cancelling a chain cancels all of its steps that have not succeeded."""
    started = anyio.Event()

    @jobs.handler(name="waits")
    async def waits() -> None:
        started.set()
        await anyio.sleep_forever()

    await jobs.start(manager)
    job = await jobs.enqueue(
        chain(echo.job("a"), group(waits.job(), echo.job("b")), echo.job("c"), echo.job("d"))
    )
    await started.wait()
    await jobs.handle(f"{job.id}..3").wait()
    assert await jobs.cancel(job.id)
    with pytest.raises(JobCancelledError, match=f"job {job.id} was cancelled"):
        await job.result()
    assert await jobs.handle(f"{job.id}..2").wait() is S.CANCELLED
    states = {info.id: info.state async for info in jobs.list()}
    assert states == {
        f"{job.id}..1": S.SUCCEEDED,
        f"{job.id}..2": S.CANCELLED,
        f"{job.id}..3": S.SUCCEEDED,
        f"{job.id}..4": S.CANCELLED,
        f"{job.id}..5": S.CANCELLED,
        job.id: S.CANCELLED,
    }
    assert not await job.cancel()


async def test_cancel_after_lost_answer(jobs: JobQueue, echo: Echo, broker: FaultyBroker) -> None:
    """A second cancel() completes a cancellation that an outage has interrupted."""
    job = await jobs.enqueue(chain(echo.job("a"), echo.job("b")))
    broker.lose("cancel")
    with pytest.raises(BrokerUnavailableError):
        await job.cancel()
    assert await jobs.count(state=S.CANCELLED) == 1
    assert await job.cancel()
    assert await jobs.count(state=S.CANCELLED) == 3
    assert not await job.cancel()


async def test_duplicate_id(jobs: JobQueue, manager: Manager, echo: Echo) -> None:
    """The id of a chain is rejected as a duplicate until the chain is purged."""
    await jobs.start(manager)
    job = await jobs.enqueue(chain(echo.job("a")), id="parent")
    for _ in range(2):
        with pytest.raises(DuplicateJobError, match="'parent'"):
            await jobs.enqueue(group(echo.job("b")), id="parent")
        assert await job.result() == ["a", None]
    await jobs.purge(older_than=0)
    assert await (await jobs.enqueue(group(echo.job("b")), id="parent")).result() == [["b", None]]


async def test_duplicate_step_id(jobs: JobQueue, echo: Echo, broker: FaultyBroker) -> None:
    """A chain is rejected and its steps are cancelled if the id of one step is taken."""
    taken = Message("parent..2", "echo", "default", b"{}", 60, 60, delay=60)
    assert await broker.enqueue([taken]) == [True]
    with pytest.raises(DuplicateJobError, match=r"'parent\.\.2'"):
        await jobs.enqueue(chain(echo.job("a"), echo.job("b"), echo.job("c")), id="parent")
    states = {info.id: info.state async for info in jobs.list()}
    assert states.pop("parent..2") is S.SCHEDULED
    assert set(states.values()) <= {S.CANCELLED}


async def test_enqueue_after_lost_answers(
    jobs: JobQueue, manager: Manager, echo: Echo, broker: FaultyBroker
) -> None:
    """A chain is stored once, although the broker's answers are lost."""
    await jobs.start(manager)
    broker.lose("enqueue", 2)
    job = await jobs.enqueue(chain(echo.job("a"), echo.job("b")), id="parent")
    assert await job.result() == ["b", ["a", None]]
    assert await jobs.count() == 3


async def test_requeue_rejected(jobs: JobQueue, manager: Manager, echo: Echo) -> None:
    """A dead chain can't be requeued, as it would succeed regardless of its steps."""
    fails = declare_failing(jobs)
    await jobs.start(manager)
    job = await jobs.enqueue(chain(fails.job(), echo.job("b")))
    assert await job.wait() is S.DEAD
    with pytest.raises(QueueError, match=f"{job.id} is a chain or group"):
        await jobs.requeue(job.id)
    assert await job.wait() is S.DEAD


async def test_results_not_stored(manager: Manager, broker: FaultyBroker) -> None:
    """Steps receive results that are not stored, also if there is a separate store of results."""
    results = MemoryResults()
    async with JobQueue(broker, results=results) as jobs:

        @jobs.handler(name="count", store_result=False)
        async def count() -> int:
            return 1 + (JobContext.current().previous or 0)

        @jobs.handler(name="last")
        async def last() -> list[int]:
            return [JobContext.current().previous]

        await jobs.start(manager)
        assert await (await jobs.enqueue(chain(count.job(), count.job(), last.job()))).result() == [
            2
        ]
        assert await (await jobs.enqueue(group(count.job(), count.job()), id="g")).result() == [
            1,
            1,
        ]
        assert list(results.kept.values()) == [b"[2]"]


async def test_result_retention(manager: Manager, broker: FaultyBroker) -> None:
    """The result of a group is retained longer than its steps."""
    async with JobQueue(broker, retention=100) as jobs:

        @jobs.handler(name="brief", retention=5)
        async def brief() -> int:
            return 5

        await jobs.start(manager)
        job = await jobs.enqueue(group(brief.job(), brief.job()))
        assert await job.result() == [5, 5]
        await elapse(broker.real, 10)
        assert await jobs.count() == 1
        assert await job.result() == [5, 5]
        await manager.close(timeout=0)


async def test_nesting_limit(jobs: JobQueue, manager: Manager, echo: Echo) -> None:
    """Chains and groups can be nested 50 levels deep, and no deeper."""
    await jobs.start(manager)
    shape: Any = "a"
    for level in range(50):
        shape = (G, shape) if level % 2 else (C, shape)
    step = build_step(echo, (shape[0], shape[1]))
    assert await (await jobs.enqueue(step)).result() == expected_result(shape)
    deep: Any = echo.job("a")
    for _ in range(50):
        deep = group(deep)
    job = await jobs.enqueue(deep)
    assert await job.result() == expected_result(nested_groups(50))
    for make in (chain, group):
        with pytest.raises(ValueError, match="50 deep"):
            make(deep)


def nested_groups(levels: int) -> Any:
    shape: Any = "a"
    for _ in range(levels):
        shape = (G, shape)
    return shape


async def test_thousand_members(jobs: JobQueue, manager: Manager) -> None:
    """A group of a thousand jobs runs, and results have the order of the members."""

    @jobs.handler(name="same")
    async def same(number: int) -> int:
        return number

    @jobs.handler(name="total")
    async def total() -> int:
        return sum(JobContext.current().previous)

    await jobs.start(manager, concurrency=200)
    members = group(*[same.job(n) for n in range(1000)])
    job = await jobs.enqueue(chain(members, total.job()))
    assert await job.result() == sum(range(1000))
    assert await (await jobs.enqueue(group(*[same.job(n) for n in range(9)]))).result() == [
        *range(9)
    ]


async def test_invalid_arguments(jobs: JobQueue, echo: Echo) -> None:
    """Missing steps, wrong steps, wrong ids and further options are rejected."""
    for make in (chain, group):
        with pytest.raises(ValueError, match=rf"{make.__name__}\(\) needs at least one"):
            make()
        for wrong in (echo, "a", None, [echo.job("a")]):
            with pytest.raises(TypeError, match=rf"a step of {make.__name__}\(\)"):
                make(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="id of a chain or group can have 120"):
        await jobs.enqueue(chain(echo.job("a")), id="a" * 121)
    with pytest.raises(ValueError, match="id must"):
        await jobs.enqueue(chain(echo.job("a")), id="a b")
    with pytest.raises(ValueError, match="only id"):
        await jobs.enqueue(chain(echo.job("a")), meta={})  # type: ignore[call-overload]
    assert await jobs.count() == 0
    assert (await jobs.enqueue(chain(echo.job("a")), id="a" * 120)).id == "a" * 120


class LosingBroker(MemoryBroker):
    """Loses the next request to enqueue when `gate` is set."""

    gate: anyio.Event | None = None

    async def enqueue(self, messages: Sequence[Message]) -> list[bool]:
        gate, self.gate = self.gate, None
        if gate is not None:
            await gate.wait()
            raise BrokerUnavailableError("lost")
        return await super().enqueue(messages)


async def test_lost_request_keeps_duplicate(manager: Manager) -> None:
    """A rejected chain whose first request was lost doesn't cancel the chain that has its id."""
    broker = LosingBroker()
    jobs = JobQueue(broker)

    @jobs.handler(name="same")
    async def same(number: int) -> int:
        return number

    async def enqueue_duplicate() -> None:
        with pytest.raises(DuplicateJobError):
            await jobs.enqueue(chain(same.job(1), same.job(2)), id="c")

    async with jobs:
        broker.gate = gate = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(enqueue_duplicate)
            await anyio.wait_all_tasks_blocked()
            job = await jobs.enqueue(chain(same.job(1), same.job(2)), id="c")
            gate.set()
        await jobs.start(manager)
        assert await job.result(timeout=10) == 2
        await manager.close(timeout=0)


async def test_types_of_results(jobs: JobQueue, manager: Manager) -> None:
    """The handle that `enqueue()` returns converts results by the annotations of the handlers."""

    @jobs.handler(name="next-day")
    async def next_day(day: date) -> date:
        return day + timedelta(days=1)

    @jobs.handler(name="count-up")
    async def count_up(number: int) -> Decimal:
        return Decimal(number + 1)

    first, second = next_day.job(date(2030, 1, 1)), count_up.job(1)
    await jobs.start(manager)
    expected = [date(2030, 1, 2), Decimal(2)]
    assert await (await jobs.enqueue(chain(first, second))) == expected[1]
    job = await jobs.enqueue(group(first, chain(second, first), group(second)))
    assert await job == [expected[0], expected[0], [expected[1]]]
    assert await jobs.handle(job.id) == ["2030-01-02", "2030-01-02", ["2"]]
