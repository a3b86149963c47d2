"""Closing of a manager: waiting, reports and states."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.closing import cleans_up, closed, counts, ids_by_outcome
from support.time import SOON, Clock, ages
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from background import (
    BackgroundError,
    CloseReport,
    LoopsStoppedError,
    Manager,
    ManagerClosed,
    ManagerClosedError,
    ManagerClosing,
    ManagerMisuseError,
    ManagerNotRunningError,
    ManagerState,
    Task,
    TaskCancelled,
    TaskCancelledError,
    TaskHandle,
    TaskKind,
    TaskStatus,
)
from background.testing import RecordingObserver


async def fail() -> None:
    raise ValueError("no luck")


# The report


async def test_report_contents(recorder: RecordingObserver, clock: Clock) -> None:
    """The report lists every task that was outstanding, by its outcome."""

    async def fail_later() -> None:
        await anyio.sleep(1)
        raise ValueError

    tasks: list[Task[Any]] = [
        Task(anyio.sleep, args=(1,), id="succeeded"),
        Task(fail_later, id="failed"),
        Task(ages, id="cancelled"),
        Task(ages, id="cancelled by hand"),
        Task(ages, id="expired", lifespan=2),
        Task(checkpoint, id="not started", delay=100),
        Task(cleans_up, args=(100,), id="stuck"),
        Task(anyio.sleep, args=(3,), id="loop", kind=TaskKind.LOOP),
        Task(checkpoint, id="loop not started", kind=TaskKind.LOOP, delay=100),
        Task(fail_later, id="loop failed", kind=TaskKind.LOOP, max_failures=1),
    ]
    async with Manager(observers=[recorder], cancel_timeout=5) as manager:
        before = manager.run(checkpoint)
        await before
        for task in tasks:
            manager.run_task(task)
        await anyio.sleep(0.5)
        async with anyio.create_task_group() as group:

            async def cancel_by_hand() -> None:
                manager.cancel("cancelled by hand")

            group.start_soon(cancel_by_hand)
            report = await closed(manager, timeout=10)
        assert clock.now == 15.5
        assert ids_by_outcome(report) == {
            "succeeded": ["succeeded"],
            "failed": ["failed", "loop failed"],
            "cancelled": ["cancelled", "cancelled by hand", "loop", "loop not started"],
            "expired": ["expired"],
            "not_started": ["not started"],
            "stuck": ["stuck"],
        }
        assert report.stuck[0].status is TaskStatus.RUNNING
        assert list(report.stacks) == ["stuck"]
        assert report.stacks["stuck"][0].name == "cleans_up"
        (event,) = recorder.of(ManagerClosed)
        assert event.report is report
        assert event.duration == pytest.approx(15)


async def test_empty_report(manager: Manager) -> None:
    """The report of a manager without outstanding tasks is empty."""
    await manager.run(checkpoint)
    report = await manager.close()
    assert report == CloseReport()
    assert str(report) == "nothing was left"


async def test_report_text(clock: Clock) -> None:
    """The text of a report has the number of tasks per outcome and the stacks of stuck tasks."""
    async with Manager(cancel_timeout=1) as manager:
        manager.run(anyio.sleep, 1)
        manager.run(anyio.sleep, 1)
        manager.after(100, checkpoint)
        stuck = manager.run_task(Task(cleans_up, args=(100,), name="slow", id="7"))
        await anyio.wait_all_tasks_blocked()
        report = await manager.close(timeout=2)
    text = str(report)
    assert text.startswith("2 succeeded, 1 not started, 1 stuck\n<TaskHandle 'slow' 7 running> is")
    assert "await anyio.sleep(seconds)" in text
    assert report.stuck == (stuck,)


async def test_loop_before_first_iteration(manager: Manager) -> None:
    """A loop that is stopped before its first iteration counts as cancelled."""
    manager.run_task(Task(checkpoint, kind=TaskKind.LOOP, delay=5))
    report = await manager.close()
    assert counts(report) == {"cancelled": 1}


# Waiting


async def test_one_offs_finish(manager: Manager, clock: Clock) -> None:
    """Closing without a timeout waits until running one-offs have finished."""
    manager.run(anyio.sleep, 10_000)
    report = await manager.close()
    assert clock.now == 10_000
    assert counts(report) == {"succeeded": 1}


async def test_loop_finishes_iteration(manager: Manager, clock: Clock) -> None:
    """Closing stops a loop after its current iteration."""
    handle = manager.loop(anyio.sleep, 10)
    await anyio.sleep(15)
    report = await manager.close()
    assert clock.now == 20
    assert handle.iteration == 2
    assert report.cancelled == (handle,)
    with pytest.raises(TaskCancelledError, match="stopped"):
        await handle


async def test_delayed_task_cancelled(
    manager: Manager, recorder: RecordingObserver, clock: Clock
) -> None:
    """A delayed task that is not due is cancelled as soon as closing begins."""
    manager.run(anyio.sleep, 10)
    delayed = manager.after(5, checkpoint)
    await anyio.sleep(1)
    async with anyio.create_task_group() as group:
        group.start_soon(manager.close)
        with pytest.raises(TaskCancelledError) as caught:
            await delayed
        assert clock.now == 1
    assert caught.value.reason == "shutdown"
    (event,) = recorder.of(TaskCancelled)
    assert (event.id, event.reason, event.duration) == (delayed.id, "shutdown", None)
    report = await manager.close()
    assert report.not_started == (delayed,)
    assert delayed.started_at is None


async def test_due_task_runs(clock: Clock) -> None:
    """A delayed task that is due when closing begins runs, even if the timer has not fired yet."""
    ran: list[float] = []

    async def work() -> None:
        ran.append(clock.now)

    async with Manager() as manager:
        manager.after(5, work)
        with anyio.CancelScope(deadline=anyio.current_time() + 5):
            await ages()
        report = await manager.close()
    assert ran == [5]
    assert counts(report) == {"succeeded": 1}


async def test_queued_tasks_run(clock: Clock) -> None:
    """Tasks that wait for the limit run during closing, because they are due."""
    async with Manager(limit=2) as manager:
        for _ in range(6):
            manager.run(anyio.sleep, 10)
        report = await manager.close()
    assert clock.now == 30
    assert counts(report) == {"succeeded": 6}


async def test_queued_tasks_at_deadline(recorder: RecordingObserver) -> None:
    """Tasks still queued at the deadline are cancelled and reported as not started."""
    async with Manager(limit=1, observers=[recorder]) as manager:
        handles = [manager.run(anyio.sleep, 10) for _ in range(4)]
        report = await manager.close(timeout=15)
    assert ids_by_outcome(report) == {
        "succeeded": [handles[0].id],
        "cancelled": [handles[1].id],
        "not_started": [handles[2].id, handles[3].id],
    }
    reasons = {event.id: event.reason for event in recorder.of(TaskCancelled)}
    assert reasons == {handle.id: "shutdown" for handle in handles[1:]}
    assert all(handle.started_at is None for handle in handles[2:])


async def test_backoff_during_closing(manager: Manager, clock: Clock) -> None:
    """A task in backoff is retried as its policy says while the manager closes."""
    policy = AsyncRetrying(stop=stop_after_attempt(4), wait=wait_fixed(60))
    handle = manager.run_task(Task(fail, retry=policy))
    await anyio.sleep(10)
    assert handle.status is TaskStatus.RETRYING
    report = await manager.close()
    assert clock.now == 180
    assert handle.attempt == 4
    assert report.failed == (handle,)


async def test_backoff_at_deadline(manager: Manager, clock: Clock) -> None:
    """A task in backoff is retried until the deadline and then cancelled."""
    handle = manager.run_task(Task(fail, retry=AsyncRetrying(wait=wait_fixed(60))))
    await anyio.sleep(10)
    report = await manager.close(timeout=100)
    assert clock.now == 110
    assert handle.attempt == 2
    assert report.cancelled == (handle,)
    with pytest.raises(TaskCancelledError, match="shutdown"):
        await handle


# Repeated and concurrent calls, and calls inside tasks


async def test_concurrent_close_calls(manager: Manager) -> None:
    """Concurrent and later calls of `close()` return the same report."""
    manager.run(anyio.sleep, 10)
    reports: list[CloseReport] = []

    async def close() -> None:
        reports.append(await manager.close())

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(close)
    await close()
    assert len(reports) == 11
    assert all(report is reports[0] for report in reports)
    assert counts(reports[0]) == {"succeeded": 1}


async def test_closing_events(manager: Manager, recorder: RecordingObserver) -> None:
    """Several calls of `close()` emit one closing and one closed event."""
    manager.run(anyio.sleep, 10)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(manager.close)
    await manager.close()
    (closing,) = recorder.of(ManagerClosing)
    assert (closing.name, closing.outstanding) == ("test", 1)
    assert recorder.names()[-1] == "closed"
    assert recorder.names().count("closed") == 1


async def test_cancelled_close_call(manager: Manager, clock: Clock) -> None:
    """Cancelling a call of `close()` does not stop the closing."""
    handle = manager.run(anyio.sleep, 10)
    with anyio.move_on_after(1) as scope:
        await manager.close()
    assert scope.cancelled_caught
    assert manager.state is ManagerState.CLOSING
    assert handle.status is TaskStatus.RUNNING
    await anyio.sleep(10)
    assert manager.state is ManagerState.CLOSED
    assert (await manager.close()).succeeded == (handle,)


async def test_close_in_cancelled_scope(manager: Manager) -> None:
    """A call of `close()` in a cancelled scope still starts the closing."""
    manager.run(anyio.sleep, 10)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await manager.close()
    assert scope.cancelled_caught
    assert manager.state is ManagerState.CLOSING


async def test_close_in_task(manager: Manager, clock: Clock) -> None:
    """`close()` in a task does not wait for that task."""
    reports: list[CloseReport] = []

    async def closer() -> str:
        await anyio.sleep(1)
        reports.append(await closed(manager))
        await anyio.sleep(5)
        return "closed it"

    handle = manager.run(closer)
    sleeper = manager.run(anyio.sleep, 10)
    assert await handle == "closed it"
    assert clock.now == 15
    assert ids_by_outcome(reports[0]) == {"succeeded": [sleeper.id]}


async def test_close_in_child_of_task(manager: Manager, clock: Clock) -> None:
    """`close()` in a task group of a task does not wait for that task."""

    async def closer() -> None:
        async with anyio.create_task_group() as outer, anyio.create_task_group() as inner:
            inner.start_soon(closed, manager)
            outer.start_soon(anyio.sleep, 30)

    handle = manager.run(closer)
    await handle
    assert clock.now == 30
    assert manager.state is ManagerState.CLOSED
    assert await manager.close() == CloseReport()


async def test_close_in_two_tasks(manager: Manager, clock: Clock) -> None:
    """Two tasks that call `close()` at once do not wait for each other."""
    reports: list[CloseReport] = []

    async def closer() -> None:
        reports.append(await closed(manager))

    first, second = manager.run(closer), manager.run(closer)
    sleeper = manager.run(anyio.sleep, 10)
    await first
    await second
    assert clock.now == 10
    assert reports[0] is reports[1]
    assert ids_by_outcome(reports[0]) == {"succeeded": [sleeper.id]}


async def test_close_in_loop(manager: Manager, clock: Clock) -> None:
    """`close()` in a loop does not wait for that loop."""
    reports: list[CloseReport] = []

    async def closer() -> None:
        await anyio.sleep(1)
        reports.append(await closed(manager))

    handle = manager.loop(closer)
    sleeper = manager.loop(anyio.sleep, 10)
    with pytest.raises(TaskCancelledError, match="stopped"):
        await handle
    assert clock.now == 10
    assert handle.iteration == 1
    assert ids_by_outcome(reports[0]) == {"cancelled": [sleeper.id]}


async def test_close_in_task_with_zero_timeout(manager: Manager, clock: Clock) -> None:
    """`close(timeout=0)` in a task cancels the other tasks, but not that task."""
    steps: list[str] = []

    async def closer() -> None:
        report = await closed(manager, timeout=0)
        steps.append("closed")
        assert ids_by_outcome(report) == {"cancelled": [sleeper.id]}
        await checkpoint()
        steps.append("done")

    sleeper = manager.run(ages)
    await anyio.wait_all_tasks_blocked()
    await manager.run(closer)
    assert steps == ["closed", "done"]
    assert clock.now == 0


async def test_two_close_calls_in_task(manager: Manager, clock: Clock) -> None:
    """A task is exempt from the waiting while at least one of its calls of `close()` continues."""

    async def close_for_a_second() -> None:
        with anyio.move_on_after(1):
            await manager.close()

    async def closer() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(close_for_a_second)
            group.start_soon(closed, manager)

    handle = manager.run(closer)
    manager.run(anyio.sleep, 10)
    await handle
    assert clock.now == 10


async def test_abandoned_close_in_task(manager: Manager, clock: Clock) -> None:
    """Closing waits for a task again after that task's call of `close()` is cancelled."""

    async def closer() -> None:
        with anyio.move_on_after(1):
            await manager.close()
        await anyio.sleep(50)

    handle = manager.run(closer)
    manager.run(anyio.sleep, 10)
    report = await closed(manager)
    assert clock.now == 51
    assert handle in report.succeeded


async def test_block_waits_for_closing_task(clock: Clock) -> None:
    """Leaving the block waits for the task that called `close()`; the report cannot."""

    async def closer() -> None:
        await closed(manager)
        await anyio.sleep(20)

    async with Manager() as manager:
        handle = manager.run(closer)
        manager.run(anyio.sleep, 10)
    assert handle.status is TaskStatus.SUCCEEDED
    assert clock.now == 30


async def test_close_in_task_while_leaving(clock: Clock) -> None:
    """A block that is being left waits for tasks that call `close()` later."""

    async def closer() -> None:
        await anyio.sleep(1)
        await closed(manager)
        await anyio.sleep(20)

    async with Manager() as manager:
        handles = [manager.run(closer) for _ in range(3)]
        manager.run(anyio.sleep, 10)
    assert [handle.status for handle in handles] == [TaskStatus.SUCCEEDED] * 3
    assert clock.now == 30


@pytest.mark.realtime
async def test_close_from_thread(manager: Manager) -> None:
    """A sync task can close the manager from its thread."""

    def closer() -> CloseReport:
        return anyio.from_thread.run(manager.close)

    handle = manager.run(closer)
    with anyio.fail_after(SOON):
        assert await handle == CloseReport()


async def test_close_in_hook(recorder: RecordingObserver, clock: Clock) -> None:
    """An `async def` hook that calls `close()` delays it by no more than the time to catch up."""

    class Closing(RecordingObserver):
        async def on_task_failed(self, event: Any) -> None:  # type: ignore[override]
            await manager.close()

    async with Manager(observers=[Closing()], cancel_timeout=5) as manager:
        manager.run(fail)
        with anyio.fail_after(100):
            await manager.shutdown_requested()
        report = await closed(manager)
    assert counts(report) == {}
    assert clock.now <= 10


async def test_mutual_close(clock: Clock) -> None:
    """Tasks of two managers can close each other's manager without a deadlock."""
    async with Manager() as first, Manager() as second:
        first.run(closed, second)
        second.run(closed, first)
        first.run(anyio.sleep, 5)
        second.run(anyio.sleep, 5)
        await anyio.wait_all_tasks_blocked()
        await closed(first, timeout=20)
        await closed(second, timeout=20)
    assert clock.now < 21


# States


async def test_state_transitions(clock: Clock) -> None:
    """A manager is new, running, stopping, closing and closed, in this order."""
    states: list[ManagerState] = []

    class StateRecorder(RecordingObserver):
        def on_manager_closing(self, event: Any) -> None:  # type: ignore[override]
            states.append(manager.state)

        def on_manager_closed(self, event: Any) -> None:  # type: ignore[override]
            states.append(manager.state)

    manager = Manager(observers=[StateRecorder()])
    states.append(manager.state)
    async with manager as entered:
        assert entered is manager
        states.append(manager.state)
        manager.request_shutdown()
        states.append(manager.state)
        manager.run(anyio.sleep, 1)
        await manager.close()
        states.append(manager.state)
    assert states == [
        ManagerState.NEW,
        ManagerState.RUNNING,
        ManagerState.STOPPING,
        ManagerState.CLOSING,
        ManagerState.CLOSING,
        ManagerState.CLOSED,
    ]


SUBMISSIONS: dict[str, Callable[[Manager], TaskHandle[Any]]] = {
    "run": lambda manager: manager.run(checkpoint),
    "after": lambda manager: manager.after(1, checkpoint),
    "loop": lambda manager: manager.loop(checkpoint),
    "every": lambda manager: manager.every(1, checkpoint),
    "cron": lambda manager: manager.cron("* * * * *", checkpoint),
    "run_task": lambda manager: manager.run_task(Task(checkpoint)),
}
WAITS: dict[str, Callable[[Manager], Awaitable[Any]]] = {
    "submit": lambda manager: manager.submit(Task(checkpoint)),
    "wait": lambda manager: manager.wait(),
    "stop_loops": lambda manager: manager.stop_loops(),
    "shutdown_requested": lambda manager: manager.shutdown_requested(),
}


async def assert_submissions_refused(
    manager: Manager, error: type[BackgroundError], match: str
) -> None:
    for submit in SUBMISSIONS.values():
        with pytest.raises(error, match=match):
            submit(manager)
    with pytest.raises(error, match=match):
        await WAITS["submit"](manager)


async def test_use_before_entering() -> None:
    """A manager that was not entered has no tasks and raises `ManagerNotRunningError`."""
    manager = Manager(name="early")
    await assert_submissions_refused(manager, ManagerNotRunningError, "'early' is not running yet")
    for wait in WAITS.values():
        with pytest.raises(ManagerNotRunningError, match="not running yet"):
            await wait(manager)
    with pytest.raises(ManagerNotRunningError):
        manager.request_shutdown()
    with pytest.raises(ManagerNotRunningError):
        await manager.__aexit__(None, None, None)
    assert (manager.tasks(), manager.count(), manager.get("1")) == ([], 0, None)
    assert manager.cancel("1") is False
    manager.report_stall("1", elapsed=1)
    assert manager.state is ManagerState.NEW


async def test_close_before_entering() -> None:
    """A manager that is closed before it is entered cannot be used any more."""
    manager = Manager(name="unused")
    report = await manager.close()
    assert report == CloseReport()
    assert await manager.close(timeout=0) is report
    assert manager.state is ManagerState.CLOSED
    with pytest.raises(ManagerClosedError, match="'unused' was closed before it was entered"):
        async with manager:
            pass
    await assert_submissions_refused(manager, ManagerClosedError, "closed before it was entered")
    for wait in WAITS.values():
        with pytest.raises(ManagerClosedError):
            await wait(manager)
    with pytest.raises(ManagerClosedError):
        manager.request_shutdown()
    assert (manager.tasks(), manager.count(), manager.get("1")) == ([], 0, None)


async def test_submission_after_close(recorder: RecordingObserver) -> None:
    """A manager accepts no tasks while it closes and after that."""
    async with Manager(name="late", observers=[recorder]) as manager:
        manager.run(anyio.sleep, 10)
        async with anyio.create_task_group() as group:
            group.start_soon(manager.close)
            await anyio.sleep(1)
            assert manager.state is ManagerState.CLOSING
            await assert_submissions_refused(
                manager, ManagerClosedError, "'late' is closing and accepts no more tasks"
            )
            assert manager.count() == 1
        await assert_submissions_refused(
            manager, ManagerClosedError, "'late' is closed and accepts no more tasks"
        )
        await manager.wait()
        await manager.stop_loops()
        await manager.shutdown_requested()
    await assert_submissions_refused(manager, ManagerClosedError, "'late' is closed")
    assert recorder.names().count("added") == 1


@pytest.mark.parametrize("when", ["inside", "after"])
async def test_enter_twice(when: str) -> None:
    """A manager cannot be entered twice."""
    match = "has been entered before; make a new one each time"
    async with Manager() as manager:
        if when == "inside":
            with pytest.raises(ManagerMisuseError, match=match):
                await manager.__aenter__()
            await manager.run(checkpoint)
    with pytest.raises(ManagerMisuseError, match=match):
        await manager.__aenter__()


async def test_pending_submits_at_close() -> None:
    """Calls of `submit()` that wait for room raise `ManagerClosedError` when closing begins."""
    async with Manager(capacity=1) as manager:
        manager.run(anyio.sleep, 10)
        errors: list[BaseException] = []

        async def submit() -> None:
            try:
                await manager.submit(Task(checkpoint))
            except ManagerClosedError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(submit)
            await anyio.wait_all_tasks_blocked()
            report = await manager.close()
        assert len(errors) == 3
        assert counts(report) == {"succeeded": 1}


@pytest.mark.realtime
@pytest.mark.parametrize("method", [*WAITS, "close"])
async def test_foreign_event_loop(manager: Manager, method: str) -> None:
    """A call in another event loop is refused before it changes anything."""

    async def foreign() -> None:
        call = WAITS.get(method, lambda manager: manager.close())
        await call(manager)

    with pytest.raises(ManagerMisuseError, match=rf"{re.escape(method)}\(\) must be awaited in"):
        await anyio.to_thread.run_sync(anyio.run, foreign)
    assert manager.state is ManagerState.RUNNING


async def test_error_hierarchy() -> None:
    """The errors of a manager derive from `BackgroundError`."""
    for error in (
        ManagerNotRunningError,
        ManagerClosedError,
        LoopsStoppedError,
        ManagerMisuseError,
    ):
        assert issubclass(error, BackgroundError)
    assert issubclass(LoopsStoppedError, ManagerClosedError)


async def test_slow_observer_at_close(clock: Clock) -> None:
    """A slow observer delays closing by at most `cancel_timeout`."""

    class Slow(RecordingObserver):
        async def on_task_succeeded(self, event: Any) -> None:  # type: ignore[override]
            await ages()

    async with Manager(observers=[Slow()], cancel_timeout=3) as manager:
        await manager.run(checkpoint)
        report = await manager.close()
        assert clock.now == 3
        assert report == CloseReport()
    assert clock.now == 3
