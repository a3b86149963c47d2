"""Chains and groups, and every nesting of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from support.brokers.faulty import FaultyBroker, MemoryResults
from support.brokers.kinds import elapse
from support.job_events import told_of

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
Note = Handler[Any, Any, Any]


@pytest.fixture
def note(jobs: JobQueue) -> Note:
    """A handler that tells its label and what it got from the step before."""

    @jobs.handler(name="note")
    async def note(label: str) -> Any:
        return [label, JobContext.current().previous]

    return note


def build(note: Note, shape: Any) -> Step[Any]:
    if isinstance(shape, str):
        return note.job(shape)
    kind, *steps = shape
    return {C: chain, G: group}[kind](*[build(note, each) for each in steps])


def expected(shape: Any, previous: Any = None) -> Any:
    """What a shape's result is, by what the documentation says."""
    if isinstance(shape, str):
        return [shape, previous]
    kind, *steps = shape
    if kind == G:
        return [expected(each, previous) for each in steps]
    for each in steps:
        previous = expected(each, previous)
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
async def test_each_step_gets_the_result_of_the_one_before(
    jobs: JobQueue, manager: Manager, note: Note, shape: Any
) -> None:
    await jobs.start(manager)
    job = await jobs.enqueue(build(note, shape))
    assert await job.result() == expected(shape)
    info = await job.info()
    assert info is not None
    assert (info.state, info.handler, info.error) == (S.SUCCEEDED, None, None)
    assert info.result == expected(shape)


async def test_a_composite_is_taken_in_one_round_trip(
    jobs: JobQueue, note: Note, broker: FaultyBroker
) -> None:
    job = await jobs.enqueue(chain(note.job("a"), group(note.job("b"), note.job("c"))), id="mine")
    assert job.id == "mine"
    assert broker.asked["enqueue"] == 1
    states = {info.id: info.state async for info in jobs.list()}
    assert states == {
        "mine.1": S.READY,
        "mine.2": S.SCHEDULED,
        "mine.3": S.SCHEDULED,
        "mine": S.SCHEDULED,
    }
    with pytest.raises(TimeoutError, match="job mine was scheduled"):
        await job.result(timeout=0)


async def test_steps_keep_their_options(jobs: JobQueue, note: Note) -> None:
    step = note.options(queue="slow", meta={"m": 1}, delay=60).job("a")
    await jobs.enqueue(group(step, note.job("b")), id="mine")
    infos = {info.id: info async for info in jobs.list()}
    first, second = infos["mine.1"], infos["mine.2"]
    assert (first.queue, first.meta, first.state) == ("slow", {"m": 1}, S.SCHEDULED)
    assert (second.queue, second.meta, second.state) == ("default", {}, S.READY)


async def test_observers_hear_of_every_step(broker: FaultyBroker, anyio_backend: Any) -> None:
    of_queue, of_handler = RecordingObserver(), RecordingObserver()
    async with JobQueue(broker, observers=[of_queue]) as jobs:

        @jobs.handler(name="h", observers=[of_handler])
        async def handler() -> None: ...

        await jobs.enqueue(chain(handler.job(), handler.options(meta={"m": 1}).job()), id="it")
    told = [event for event in of_handler.events if isinstance(event, JobEnqueued)]
    assert [(each.job.id, each.meta) for each in told] == [("it.1", {}), ("it.2", {"m": 1})]
    told = [event for event in of_queue.events if isinstance(event, JobEnqueued)]
    assert [each.job.id for each in told] == ["it.1", "it.2", "it"]


async def test_steps_have_their_attempts(jobs: JobQueue, manager: Manager, note: Note) -> None:
    @jobs.handler(name="shaky", retry=3)
    async def shaky() -> int:
        if (attempt := JobContext.current().attempt) == 1:
            raise ValueError
        return attempt

    await jobs.start(manager)
    assert await (await jobs.enqueue(chain(shaky.job(), note.job("a")))).result() == ["a", 2]


class Odd(Exception):
    """An error of a step."""


def failing(jobs: JobQueue) -> Note:
    @jobs.handler(name="fails")
    async def fails() -> None:
        raise Odd("by itself")

    return fails


async def test_a_failed_step_ends_the_chain(
    jobs: JobQueue, manager: Manager, note: Note, recorder: RecordingObserver
) -> None:
    fails = failing(jobs)
    await jobs.start(manager)
    job = await jobs.enqueue(chain(note.job("a"), fails.job(), note.job("b"), note.job("c")))
    with pytest.raises(JobFailedError, match="by itself") as caught:
        await job.result()
    assert (caught.value.id, caught.value.type) == (f"{job.id}.2", f"{__name__}.Odd")
    assert "raise Odd" in caught.value.traceback
    assert await job.wait() is S.DEAD
    info = await job.info()
    assert info is not None
    assert f"{job.id}.4, which it depends on, is dead" in str(info.error)
    states = [info.state async for info in jobs.list()]
    assert states == [S.SUCCEEDED, S.DEAD, S.DEAD, S.DEAD, S.DEAD]
    assert told_of(recorder, f"{job.id}.3") == []
    with pytest.raises(JobFailedError, match=f"{job.id}.2"):
        await jobs.handle(f"{job.id}.4").result()
    assert await jobs.handle(f"{job.id}.1").result() == ["a", None]


async def test_a_failed_member_fails_the_group_and_the_others_go_on(
    jobs: JobQueue, manager: Manager, note: Note
) -> None:
    fails = failing(jobs)
    await jobs.start(manager, concurrency=1)
    job = await jobs.enqueue(
        chain(group(note.job("a"), fails.job(), chain(note.job("b"), note.job("c"))), note.job("d"))
    )
    with pytest.raises(JobFailedError, match="by itself"):
        await job.result()
    assert await jobs.handle(f"{job.id}.4").result() == ["c", ["b", None]]
    assert await jobs.handle(f"{job.id}.5").wait() is S.DEAD


async def test_a_cancelled_step_is_what_the_handle_tells_of(
    jobs: JobQueue, manager: Manager, note: Note
) -> None:
    job = await jobs.enqueue(chain(note.job("a"), note.job("b"), note.job("c")))
    assert await jobs.cancel(f"{job.id}.2")
    with pytest.raises(JobFailedError, match=f"job {job.id}.2, which it depends on, is cancelled"):
        await job.result()
    await jobs.start(manager)
    assert await jobs.handle(f"{job.id}.1").result() == ["a", None]


async def test_an_expired_step_is_what_the_handle_tells_of(
    jobs: JobQueue, manager: Manager, note: Note
) -> None:
    await jobs.start(manager)
    first, second = note.options(delay=10).job("a"), note.options(expires=5).job("b")
    job = await jobs.enqueue(chain(first, second))
    with pytest.raises(JobFailedError, match=f"job {job.id}.2, which it depends on, is expired"):
        await job.result()


async def test_a_composite_is_cancelled_as_a_whole(
    jobs: JobQueue, manager: Manager, note: Note, recorder: RecordingObserver
) -> None:
    started = anyio.Event()

    @jobs.handler(name="waits")
    async def waits() -> None:
        started.set()
        await anyio.sleep_forever()

    await jobs.start(manager)
    job = await jobs.enqueue(
        chain(note.job("a"), group(waits.job(), note.job("b")), note.job("c"), note.job("d"))
    )
    await started.wait()
    await jobs.handle(f"{job.id}.3").wait()
    assert await jobs.cancel(job.id)
    with pytest.raises(JobCancelledError, match=f"job {job.id} was cancelled"):
        await job.result()
    assert await jobs.handle(f"{job.id}.2").wait() is S.CANCELLED
    states = {info.id: info.state async for info in jobs.list()}
    assert states == {
        f"{job.id}.1": S.SUCCEEDED,
        f"{job.id}.2": S.CANCELLED,
        f"{job.id}.3": S.SUCCEEDED,
        f"{job.id}.4": S.CANCELLED,
        f"{job.id}.5": S.CANCELLED,
        job.id: S.CANCELLED,
    }
    assert not await job.cancel()


async def test_cancelling_a_composite_is_taken_up_again_where_the_broker_was_lost(
    jobs: JobQueue, note: Note, broker: FaultyBroker
) -> None:
    job = await jobs.enqueue(chain(note.job("a"), note.job("b")))
    broker.lose("cancel")
    with pytest.raises(BrokerUnavailableError):
        await job.cancel()
    assert await jobs.count(state=S.CANCELLED) == 1
    assert await job.cancel()
    assert await jobs.count(state=S.CANCELLED) == 3
    assert not await job.cancel()


async def test_the_id_of_a_composite_is_taken(jobs: JobQueue, manager: Manager, note: Note) -> None:
    await jobs.start(manager)
    job = await jobs.enqueue(chain(note.job("a")), id="mine")
    for _ in range(2):
        with pytest.raises(DuplicateJobError, match="'mine'"):
            await jobs.enqueue(group(note.job("b")), id="mine")
        assert await job.result() == ["a", None]
    await jobs.purge(older_than=0)
    assert await (await jobs.enqueue(group(note.job("b")), id="mine")).result() == [["b", None]]


async def test_a_composite_with_a_step_whose_id_is_taken_does_not_run(
    jobs: JobQueue, note: Note
) -> None:
    await note.options(id="mine.2", delay=60).enqueue("foreign")
    with pytest.raises(DuplicateJobError, match=r"'mine\.2'"):
        await jobs.enqueue(chain(note.job("a"), note.job("b"), note.job("c")), id="mine")
    states = {info.id: info.state async for info in jobs.list()}
    assert states.pop("mine.2") is S.SCHEDULED
    assert set(states.values()) <= {S.CANCELLED}


async def test_a_composite_whose_answer_was_lost_is_one(
    jobs: JobQueue, manager: Manager, note: Note, broker: FaultyBroker
) -> None:
    await jobs.start(manager)
    broker.lose("enqueue", 2)
    job = await jobs.enqueue(chain(note.job("a"), note.job("b")), id="mine")
    assert await job.result() == ["b", ["a", None]]
    assert await jobs.count() == 3


async def test_a_composite_is_not_requeued(jobs: JobQueue, manager: Manager, note: Note) -> None:
    """It would succeed at once, whatever its steps have come to."""
    fails = failing(jobs)
    await jobs.start(manager)
    job = await jobs.enqueue(chain(fails.job(), note.job("b")))
    assert await job.wait() is S.DEAD
    with pytest.raises(QueueError, match=f"{job.id} is a chain or group"):
        await jobs.requeue(job.id)
    assert await job.wait() is S.DEAD


async def test_results_pass_where_none_are_kept(manager: Manager, broker: FaultyBroker) -> None:
    """Also where results have a store of their own."""
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


async def test_the_result_outlives_the_steps(manager: Manager, broker: FaultyBroker) -> None:
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


async def test_as_many_levels_as_there_may_be(jobs: JobQueue, manager: Manager, note: Note) -> None:
    await jobs.start(manager)
    shape: Any = "a"
    for level in range(50):
        shape = (G, shape) if level % 2 else (C, shape)
    step = build(note, (shape[0], shape[1]))
    assert await (await jobs.enqueue(step)).result() == expected(shape)
    deep: Any = note.job("a")
    for _ in range(50):
        deep = group(deep)
    job = await jobs.enqueue(deep)
    assert await job.result() == expected(eval_groups(50))
    for make in (chain, group):
        with pytest.raises(ValueError, match="50 deep"):
            make(deep)


def eval_groups(levels: int) -> Any:
    shape: Any = "a"
    for _ in range(levels):
        shape = (G, shape)
    return shape


async def test_a_thousand_members(jobs: JobQueue, manager: Manager) -> None:
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


async def test_what_is_no_composite(jobs: JobQueue, note: Note) -> None:
    for make in (chain, group):
        with pytest.raises(ValueError, match=rf"{make.__name__}\(\) needs at least one"):
            make()
        for wrong in (note, "a", None, [note.job("a")]):
            with pytest.raises(TypeError, match=rf"a step of {make.__name__}\(\)"):
                make(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="id of a chain or group can have 120"):
        await jobs.enqueue(chain(note.job("a")), id="a" * 121)
    with pytest.raises(ValueError, match="id must"):
        await jobs.enqueue(chain(note.job("a")), id="a b")
    with pytest.raises(ValueError, match="only id"):
        await jobs.enqueue(chain(note.job("a")), meta={})  # type: ignore[call-overload]
    assert await jobs.count() == 0
    assert (await jobs.enqueue(chain(note.job("a")), id="a" * 120)).id == "a" * 120


class LosingBroker(MemoryBroker):
    """Loses the next request to enqueue, once `gate` is set."""

    gate: anyio.Event | None = None

    async def enqueue(self, messages: Sequence[Message]) -> list[bool]:
        gate, self.gate = self.gate, None
        if gate is not None:
            await gate.wait()
            raise BrokerUnavailableError("lost")
        return await super().enqueue(messages)


async def test_a_lost_composite_does_not_cancel_the_same_of_somebody_else(manager: Manager) -> None:
    broker = LosingBroker()
    jobs = JobQueue(broker)

    @jobs.handler(name="same")
    async def same(number: int) -> int:
        return number

    async def late() -> None:
        with pytest.raises(DuplicateJobError):
            await jobs.enqueue(chain(same.job(1), same.job(2)), id="c")

    async with jobs:
        broker.gate = gate = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(late)
            await anyio.wait_all_tasks_blocked()
            job = await jobs.enqueue(chain(same.job(1), same.job(2)), id="c")
            gate.set()
        await jobs.start(manager)
        assert await job.result(timeout=10) == 2
        await manager.close(timeout=0)
