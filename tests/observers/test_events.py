"""The fields of events."""

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
    JOBS,
    LOOP,
    SCENARIOS,
    TWICE,
    Flaky,
    JobScenario,
    broken,
    fine,
    nap,
    play,
    play_job,
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
def test_frozen_events(kind: type) -> None:
    """Events are frozen, have slots and keyword-only fields, and can be copied and pickled."""
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
class Example:
    first: int
    second: str = "two"
    third: list[int]
    fourth: Mapping[str, Any] = dataclasses.field(default_factory=empty)
    fifth: int = 5


def test_frozen_class() -> None:
    """Fields with defaults may precede fields without, and a default factory is called once."""
    short = Example(first=1, third=[3])
    assert (short.second, short.fourth, short.fifth) == ("two", {}, 5)
    assert short.fourth is Example(first=1, third=[]).fourth
    with pytest.raises(TypeError, match="missing"):
        Example(first=1)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        short.fifth = 6  # type: ignore[misc]


def test_thawed_class() -> None:
    """An instance of a thawed class becomes one of the frozen class."""
    made = object.__new__(thawed(Example))
    made.first, made.second, made.third, made.fourth, made.fifth = 1, "two", [3], {}, 5
    made.__class__ = Example
    assert made == Example(first=1, third=[3])
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.fifth = 6


@pytest.mark.parametrize("kind", [kind for kind in EVENTS if issubclass(kind, TaskEvent)])
def test_no_job_by_default(kind: type) -> None:
    """An event of a task has no job by default."""
    names = [field.name for field in dataclasses.fields(kind) if field.name != "job"]
    assert kind(**dict.fromkeys(names)).job is None


@pytest.mark.parametrize("scenario", JOBS.values(), ids=JOBS)
async def test_job_of_events(scenario: JobScenario, recorder: RecordingObserver) -> None:
    """Every event of a job's task has the job, with the number of its attempt."""
    with virtual_wall_clock(datetime(2030, 1, 1, tzinfo=UTC)):
        id = await play_job(scenario, recorder)
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
        assert event.attempt == (0 if isinstance(event, TaskAdded) or scenario.queued else attempt)
    for dead in recorder.of(JobDead, id):
        assert dead.job.attempt == attempt
        assert dead.error is recorder.of(TaskFailed, id)[-1].error


async def test_common_fields(recorder: RecordingObserver) -> None:
    """Every event has the task's id, name, kind and meta, and the wall-clock time."""
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


async def test_read_only_meta(manager: Manager, recorder: RecordingObserver) -> None:
    """The `meta` of an event is a read-only copy."""
    meta = {"user": 7}
    await manager.run_task(Task(fine, meta=meta))
    meta["user"] = 8
    for event in recorder.of(TaskEvent):
        assert event.meta == {"user": 7}
        with pytest.raises(TypeError):
            event.meta["user"] = 9  # type: ignore[index]


async def test_loop_counters(recorder: RecordingObserver) -> None:
    """Iterations count from 1, and so do the attempts of an iteration."""
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
async def test_added(manager: Manager, recorder: RecordingObserver, delay: float) -> None:
    """`TaskAdded` has the task's delay."""
    manager.after(delay, fine)
    (event,) = recorder.of(TaskAdded)
    assert event.delay == delay


async def test_started(recorder: RecordingObserver) -> None:
    """`TaskStarted` has the seconds since the task was due, which exclude its delay."""
    async with Manager(observers=[recorder], limit=1) as manager:
        first = manager.run(nap, 10)
        second = manager.after(4, fine)
        third = manager.after(20, fine)
        await manager.wait()
    queued_for = {event.id: event.queued_for for event in recorder.of(TaskStarted)}
    assert queued_for == pytest.approx({first.id: 0, second.id: 6, third.id: 0})


async def test_started_loop(recorder: RecordingObserver) -> None:
    """A loop's `queued_for` is 0, because it is due on its grid and ignores the limit."""
    async with Manager(observers=[recorder], limit=1) as manager:
        manager.run(nap, 100)
        manager.every(10, nap, 15)
        await anyio.sleep(45)
        await manager.close(timeout=0)
    loops = [event for event in recorder.of(TaskStarted) if event.kind is LOOP]
    assert [event.queued_for for event in loops] == pytest.approx([0, 0, 0])


async def test_retrying(manager: Manager, recorder: RecordingObserver) -> None:
    """`TaskRetrying` has the error of the attempt and the delay of the next one."""
    handle = manager.run_task(Task(broken, retry=TWICE))
    await handle.wait()
    (event,) = recorder.of(TaskRetrying)
    assert isinstance(event.error, ValueError)
    assert event.delay == 5


async def test_retrying_after_refused_result(manager: Manager, recorder: RecordingObserver) -> None:
    """`TaskRetrying` has no error if the policy refused the result."""
    policy = AsyncRetrying(
        stop=stop_after_attempt(2), wait=wait_fixed(3), retry=retry_if_result(bool)
    )
    await manager.run_task(Task(fine, retry=policy)).wait()
    (event,) = recorder.of(TaskRetrying)
    assert event.error is None
    assert event.delay == 3


async def test_duration_of_run(manager: Manager, recorder: RecordingObserver) -> None:
    """The duration of a run includes its attempts and backoff, but not its delay."""

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


async def test_duration_of_iteration(recorder: RecordingObserver) -> None:
    """The duration in an event of a loop is that of one iteration."""
    async with Manager(observers=[recorder]) as manager:
        manager.every(10, nap, 3)
        await anyio.sleep(15)
    assert [event.duration for event in recorder.of(TaskSucceeded)] == pytest.approx([3, 3])
    assert not any(event.final for event in recorder.of(TaskSucceeded))


async def test_failed(manager: Manager, recorder: RecordingObserver) -> None:
    """`TaskFailed` has the exception that the task raised."""
    handle = manager.run(broken)
    await handle.wait()
    (event,) = recorder.of(TaskFailed)
    assert event.error is handle.error
    assert event.final


async def test_final_failure(manager: Manager, recorder: RecordingObserver) -> None:
    """Only the last of too many failures is final."""
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
async def test_cancelled(
    name: str, reason: str, duration: float | None, recorder: RecordingObserver
) -> None:
    """`TaskCancelled` has the reason, and the duration of a run in progress."""
    handle = await play(SCENARIOS[name], recorder)
    (event,) = recorder.of(TaskCancelled, handle.id)
    assert event.reason == reason
    assert event.duration == (duration if duration is None else pytest.approx(duration))
    with pytest.raises(TaskCancelledError) as caught:
        await handle
    assert caught.value.reason == reason


async def test_cancelled_without_reason(manager: Manager, recorder: RecordingObserver) -> None:
    """The reason in `TaskCancelled` is `None` by default."""
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
async def test_expired(
    name: str, lifespan: float, duration: float | None, recorder: RecordingObserver
) -> None:
    """`TaskExpired` has the lifespan, and the duration of a run in progress."""
    handle = await play(SCENARIOS[name], recorder)
    (event,) = recorder.of(TaskExpired, handle.id)
    assert event.lifespan == lifespan
    assert event.duration == (duration if duration is None else pytest.approx(duration))
    with pytest.raises(TaskExpiredError):
        await handle


async def test_stalled(manager: Manager, recorder: RecordingObserver) -> None:
    """`TaskStalled` has the elapsed time and the stack."""
    handle = manager.run(nap)
    await anyio.sleep(2)
    manager.report_stall(handle.id, elapsed=2)
    (event,) = recorder.of(TaskStalled)
    assert event.elapsed == 2
    assert event.stack[0].name == "nap"
    assert isinstance(event.stack, tuple)


async def test_stall_of_unknown_task(manager: Manager, recorder: RecordingObserver) -> None:
    """`report_stall()` ignores an unknown id."""
    manager.report_stall("unknown", elapsed=2)
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
async def test_stall_without_attempt(
    make: Callable[[], Task[Any]], manager: Manager, recorder: RecordingObserver
) -> None:
    """`report_stall()` ignores a task without an attempt, because the caller may be late."""
    handle = manager.run_task(make())
    await anyio.sleep(1)
    manager.report_stall(handle.id, elapsed=1)
    assert "stalled" not in recorder.names()


async def test_manager_events(recorder: RecordingObserver) -> None:
    """The manager's events have its name and the times, reason and report of closing."""
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


async def test_manager_events_once(recorder: RecordingObserver) -> None:
    """Several calls of `close()` emit one `ManagerClosing` and one `ManagerClosed`."""
    async with Manager(observers=[recorder]) as manager:
        await manager.close()
        await manager.close(timeout=0)
    assert recorder.names() == ["closing", "closed"]
    assert recorder.events[0].reason == "close() was called"


async def test_closing_reason_after_leaving(recorder: RecordingObserver) -> None:
    """`ManagerClosing` has its own reason if the block was left."""
    async with Manager(observers=[recorder]):
        pass
    assert recorder.events[0].reason == "the block was left"
