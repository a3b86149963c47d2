"""What is in the events."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.outcomes import (
    EVENTS,
    FATES,
    JOBS,
    LOOP,
    TWICE,
    Flaky,
    JobFate,
    broken,
    fine,
    meet,
    meet_job,
    nap,
)
from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt, wait_fixed

from background import (
    JobDead,
    JobEnqueued,
    Manager,
    ManagerClosed,
    ManagerClosing,
    Task,
    TaskAdded,
    TaskCancelled,
    TaskCancelledError,
    TaskEvent,
    TaskExpired,
    TaskExpiredError,
    TaskFailed,
    TaskKind,
    TaskRetrying,
    TaskStalled,
    TaskStarted,
    TaskStatus,
    TaskSucceeded,
    every,
)
from background._support.frozen import empty, frozen, thawed
from background.testing import RecordingObserver, virtual_wall_clock


@pytest.mark.parametrize("kind", EVENTS)
def test_events_are_frozen_and_slotted(kind: type) -> None:
    values: dict[str, Any] = {field.name: None for field in dataclasses.fields(kind)}
    event = kind(**values)
    assert not hasattr(event, "__dict__")
    for name in values:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, name, 1)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(event, name)
    assert event == kind(**values) == copy.copy(event) == pickle.loads(pickle.dumps(event))
    assert event != values
    with pytest.raises(TypeError, match=rf"^{kind.__name__}\.__init__\(\)"):
        kind(*values.values())


@frozen
class Middling:
    first: int
    second: str = "two"
    third: list[int]
    fourth: Mapping[str, Any] = dataclasses.field(default_factory=empty)
    fifth: int = 5


def test_frozen_classes() -> None:
    """Fields with defaults may come before fields without; a default factory is called once."""
    short = Middling(first=1, third=[3])
    assert (short.second, short.fourth, short.fifth) == ("two", {}, 5)
    assert short.fourth is Middling(first=1, third=[]).fourth
    with pytest.raises(TypeError, match="missing"):
        Middling(first=1)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        short.fifth = 6  # type: ignore[misc]


def test_thawed_classes() -> None:
    """An instance of a thawed class becomes a frozen one."""
    made = object.__new__(thawed(Middling))
    made.first, made.second, made.third, made.fourth, made.fifth = 1, "two", [3], {}, 5
    made.__class__ = Middling
    assert made == Middling(first=1, third=[3])
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.fifth = 6


@pytest.mark.parametrize("kind", [each for each in EVENTS if issubclass(each, TaskEvent)])
def test_events_of_tasks_know_no_job_unless_told(kind: type) -> None:
    names = [field.name for field in dataclasses.fields(kind) if field.name != "job"]
    assert kind(**dict.fromkeys(names)).job is None


@pytest.mark.parametrize("fate", JOBS.values(), ids=JOBS)
async def test_the_job_in_every_event(fate: JobFate, recorder: RecordingObserver) -> None:
    """The attempt of the job's event is the job's, and so is that of its task."""
    with virtual_wall_clock(datetime(2030, 1, 1, tzinfo=UTC)):
        id = await meet_job(fate, recorder)
    (enqueued,) = recorder.of(JobEnqueued)
    assert (enqueued.job.attempt, enqueued.meta, enqueued.delay) == (0, {}, 0)
    attempt = 0
    for event in (*recorder.of(TaskEvent, id), *recorder.of(JobDead, id)):
        assert event.job is not None
        assert (event.job.id, event.job.handler, event.job.queue) == (id, "job", "mail")
        assert event.job.enqueued_at == enqueued.job.enqueued_at == enqueued.time
    for event in recorder.of(TaskEvent, id):
        attempt += isinstance(event, TaskAdded)
        assert event.job is not None
        assert event.job.attempt == attempt
        assert event.attempt == (0 if isinstance(event, TaskAdded) or fate.queued else attempt)
    for dead in recorder.of(JobDead, id):
        assert dead.job.attempt == attempt
        assert dead.error is recorder.of(TaskFailed, id)[-1].error


async def test_identity_in_every_event(recorder: RecordingObserver) -> None:
    """Each event carries the task's id, name, kind and meta, and the wall-clock time."""
    meta = {"user": 7}
    flaky = Flaky(1)

    async def work() -> None:
        await anyio.sleep(2)
        await flaky()

    with virtual_wall_clock(datetime(2030, 1, 1, tzinfo=UTC)):
        began = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
        async with Manager(observers=[recorder]) as manager:
            task = Task(work, id="one", name="refresh", meta=meta, retry=TWICE, delay=3)
            handle = manager.run_task(task)
            await anyio.sleep(4)
            manager.report_stall("one", elapsed=1)
            await handle.wait()
    events = recorder.of(TaskEvent)
    assert recorder.names("one") == ["added", "started", "stalled", "retrying", "succeeded"]
    for event in events:
        assert (event.id, event.name, event.kind) == ("one", "refresh", TaskKind.ONE_OFF)
        assert event.meta == meta
        assert event.iteration == 0
    assert [event.attempt for event in events] == [0, 1, 1, 1, 2]
    assert [event.time - began for event in events] == pytest.approx([0, 3, 4, 5, 12])


async def test_meta_in_events_is_read_only(manager: Manager, recorder: RecordingObserver) -> None:
    meta = {"user": 7}
    await manager.run_task(Task(fine, meta=meta))
    meta["user"] = 8
    for event in recorder.of(TaskEvent):
        assert event.meta == {"user": 7}
        with pytest.raises(TypeError):
            event.meta["user"] = 9  # type: ignore[index]


async def test_iterations_and_attempts_of_a_loop(recorder: RecordingObserver) -> None:
    """Iterations count from 1, and the attempts of each do."""
    async with Manager(observers=[recorder]) as manager:
        handle = manager.run_task(Task(Flaky(1), kind=LOOP, schedule=every(10), retry=TWICE))
        await anyio.sleep(15)
    counts = [
        (name, event.iteration, event.attempt)
        for name, event in zip(
            recorder.names(handle.id), recorder.of(TaskEvent, handle.id), strict=True
        )
    ]
    assert counts == [
        ("added", 0, 0),
        ("started", 1, 1),
        ("retrying", 1, 1),
        ("succeeded", 1, 2),
        ("started", 2, 1),
        ("succeeded", 2, 1),
        ("cancelled", 2, 1),
    ]


@pytest.mark.parametrize("delay", [0, 2.5])
async def test_added_has_the_delay(
    manager: Manager, recorder: RecordingObserver, delay: float
) -> None:
    manager.after(delay, fine)
    (event,) = recorder.of(TaskAdded)
    assert event.delay == delay


async def test_started_has_the_time_in_the_queue(recorder: RecordingObserver) -> None:
    """It counts from when the task was due, not from its submission."""
    async with Manager(observers=[recorder], limit=1) as manager:
        first = manager.run(nap, 10)
        second = manager.after(4, fine)
        third = manager.after(20, fine)
        await manager.wait()
    queued_for = {event.id: event.queued_for for event in recorder.of(TaskStarted)}
    assert queued_for == pytest.approx({first.id: 0, second.id: 6, third.id: 0})


async def test_started_of_a_loop_has_no_time_in_the_queue(recorder: RecordingObserver) -> None:
    """A loop is due on its grid, and never waits for the limit."""
    async with Manager(observers=[recorder], limit=1) as manager:
        manager.run(nap, 100)
        manager.every(10, nap, 15)
        await anyio.sleep(45)
        await manager.close(timeout=0)
    loops = [event for event in recorder.of(TaskStarted) if event.kind is LOOP]
    assert [event.queued_for for event in loops] == pytest.approx([0, 0, 0])


async def test_retrying_has_error_and_delay(manager: Manager, recorder: RecordingObserver) -> None:
    handle = manager.run_task(Task(broken, retry=TWICE))
    await handle.wait()
    (event,) = recorder.of(TaskRetrying)
    assert isinstance(event.error, ValueError)
    assert event.delay == 5


async def test_retrying_after_a_refused_result_has_no_error(
    manager: Manager, recorder: RecordingObserver
) -> None:
    policy = AsyncRetrying(
        stop=stop_after_attempt(2), wait=wait_fixed(3), retry=retry_if_result(bool)
    )
    await manager.run_task(Task(fine, retry=policy)).wait()
    (event,) = recorder.of(TaskRetrying)
    assert event.error is None
    assert event.delay == 3


async def test_duration_is_that_of_the_whole_run(
    manager: Manager, recorder: RecordingObserver
) -> None:
    """It has every attempt and backoff in it, and neither the delay nor the time in the queue."""

    async def work(failing: Flaky) -> None:
        await anyio.sleep(1)
        await failing()

    await manager.run_task(Task(work, args=(Flaky(1),), retry=TWICE, delay=4))
    await manager.run_task(Task(work, args=(Flaky(9),), retry=TWICE)).wait()
    (succeeded,) = recorder.of(TaskSucceeded)
    (failed,) = recorder.of(TaskFailed)
    assert succeeded.duration == pytest.approx(7)
    assert failed.duration == pytest.approx(7)
    assert succeeded.final
    assert failed.final


async def test_duration_is_that_of_one_iteration(recorder: RecordingObserver) -> None:
    async with Manager(observers=[recorder]) as manager:
        manager.every(10, nap, 3)
        await anyio.sleep(15)
    assert [event.duration for event in recorder.of(TaskSucceeded)] == pytest.approx([3, 3])
    assert not any(event.final for event in recorder.of(TaskSucceeded))


async def test_failed_has_the_error_itself(manager: Manager, recorder: RecordingObserver) -> None:
    handle = manager.run(broken)
    await handle.wait()
    (event,) = recorder.of(TaskFailed)
    assert event.error is handle.error
    assert event.final


async def test_failed_is_final_only_at_the_last_of_too_many_failures(
    manager: Manager, recorder: RecordingObserver
) -> None:
    handle = manager.run_task(Task(broken, kind=LOOP, schedule=every(1), max_failures=3))
    assert await handle.wait() is TaskStatus.FAILED
    failed = recorder.of(TaskFailed)
    assert [event.final for event in failed] == [False, False, True]
    assert failed[-1].error is handle.error


@pytest.mark.parametrize(
    ("name", "reason", "duration"),
    [
        ("one-off cancelled before its first step", "enough", None),
        ("one-off cancelled while delayed", "enough", None),
        ("one-off cancelled while queued", "enough", None),
        ("one-off cancelled while running", "enough", 1),
        ("one-off cancelled in backoff", "enough", 1),
        ("one-off delayed at close", "shutdown", None),
        ("one-off running at close", "shutdown", 2),
        ("loop stopped in an iteration", "stopped", None),
        ("loop stopped between iterations", "stopped", None),
        ("loop stopped before its first iteration", "stopped", None),
        ("loop cancelled in an iteration", "enough", 5),
        ("loop cancelled between iterations", "enough", None),
        ("loop in an iteration at close", "shutdown", 6),
        ("loop between iterations at close", "stopped", None),
    ],
)
async def test_cancelled_has_reason_and_duration(
    name: str, reason: str, duration: float | None, recorder: RecordingObserver
) -> None:
    handle = await meet(FATES[name], recorder)
    (event,) = recorder.of(TaskCancelled, handle.id)
    assert event.reason == reason
    assert event.duration == (duration if duration is None else pytest.approx(duration))
    with pytest.raises(TaskCancelledError) as caught:
        await handle
    assert caught.value.reason == reason


async def test_cancelled_without_a_reason(manager: Manager, recorder: RecordingObserver) -> None:
    manager.run(nap).cancel()
    (event,) = recorder.of(TaskCancelled)
    assert event.reason is None


@pytest.mark.parametrize(
    ("name", "lifespan", "duration"),
    [
        ("one-off expires while queued", 5, None),
        ("one-off expires while running", 5, 5),
        ("one-off expires in backoff", 3, 3),
        ("loop expires in an iteration", 15, 5),
        ("loop expires between iterations", 15, None),
    ],
)
async def test_expired_has_lifespan_and_duration(
    name: str, lifespan: float, duration: float | None, recorder: RecordingObserver
) -> None:
    handle = await meet(FATES[name], recorder)
    (event,) = recorder.of(TaskExpired, handle.id)
    assert event.lifespan == lifespan
    assert event.duration == (duration if duration is None else pytest.approx(duration))
    with pytest.raises(TaskExpiredError):
        await handle


async def test_stalled_has_elapsed_and_stack(manager: Manager, recorder: RecordingObserver) -> None:
    handle = manager.run(nap)
    await anyio.sleep(2)
    manager.report_stall(handle.id, elapsed=2)
    (event,) = recorder.of(TaskStalled)
    assert event.elapsed == 2
    assert event.stack[0].name == "nap"
    assert isinstance(event.stack, tuple)


async def test_stall_of_an_unknown_task_is_ignored(
    manager: Manager, recorder: RecordingObserver
) -> None:
    manager.report_stall("nobody", elapsed=2)
    assert recorder.events == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: Task(nap, delay=5),
        lambda: Task(broken, retry=TWICE),
        lambda: Task(fine, kind=LOOP, schedule=every(10)),
    ],
    ids=["delayed", "in backoff", "between iterations"],
)
async def test_stall_of_a_task_without_an_attempt_is_ignored(
    make: Callable[[], Task[Any]], manager: Manager, recorder: RecordingObserver
) -> None:
    """A watcher that comes too late tells nobody that a task stalls while it does not run."""
    handle = manager.run_task(make())
    await anyio.sleep(1)
    manager.report_stall(handle.id, elapsed=1)
    assert "stalled" not in recorder.names()


async def test_events_of_the_manager(recorder: RecordingObserver) -> None:
    start = datetime(2030, 1, 1, tzinfo=UTC)
    with virtual_wall_clock(start):
        async with Manager(name="mail", observers=[recorder]) as manager:
            handles = [manager.run(nap, 10), manager.run(fine), manager.every(60, fine)]
            await handles[1]
            await anyio.sleep(1)
            report = await manager.close()
    (closing,) = recorder.of(ManagerClosing)
    (closed,) = recorder.of(ManagerClosed)
    assert closing.name == closed.name == "mail"
    assert closing.reason == "close() was called"
    assert closing.outstanding == 2
    assert closing.time == pytest.approx(start.timestamp() + 1)
    assert closed.time == pytest.approx(start.timestamp() + 10)
    assert closed.duration == pytest.approx(9)
    assert closed.report is report
    assert recorder.names()[-4:] == ["closing", "cancelled", "succeeded", "closed"]


async def test_manager_closing_is_told_of_once(recorder: RecordingObserver) -> None:
    async with Manager(observers=[recorder]) as manager:
        await manager.close()
        await manager.close(timeout=0)
    assert recorder.names() == ["closing", "closed"]
    assert recorder.events[0].reason == "close() was called"


async def test_closing_by_leaving_the_block(recorder: RecordingObserver) -> None:
    async with Manager(observers=[recorder]):
        pass
    assert recorder.events[0].reason == "the block was left"
