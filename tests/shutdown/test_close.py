"""Closing a manager: what it waits for, and its report."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.closing import cleans_up, closed, counts, fates
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


async def fails() -> None:
    raise ValueError("no luck")


# The report


async def test_the_report_has_every_fate(recorder: RecordingObserver, clock: Clock) -> None:
    release = anyio.Event()

    async def fails_later() -> None:
        await anyio.sleep(1)
        raise ValueError

    tasks: list[Task[Any]] = [
        Task(anyio.sleep, args=(1,), id="succeeded"),
        Task(fails_later, id="failed"),
        Task(ages, id="cancelled"),
        Task(ages, id="cancelled by hand"),
        Task(ages, id="expired", lifespan=2),
        Task(checkpoint, id="not started", delay=100),
        Task(cleans_up, args=(100,), id="stuck"),
        Task(anyio.sleep, args=(3,), id="loop", kind=TaskKind.LOOP),
        Task(checkpoint, id="loop not started", kind=TaskKind.LOOP, delay=100),
        Task(fails_later, id="loop failed", kind=TaskKind.LOOP, max_failures=1),
    ]
    async with Manager(observers=[recorder], cancel_timeout=5) as manager:
        before = manager.run(checkpoint)
        await before
        for task in tasks:
            manager.run_task(task)
        await anyio.sleep(0.5)
        async with anyio.create_task_group() as group:

            async def cancel_one() -> None:
                manager.cancel("cancelled by hand")

            group.start_soon(cancel_one)
            report = await closed(manager, timeout=10)
        assert clock.now == 15.5
        assert fates(report) == {
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
        release.set()


async def test_nothing_to_report(manager: Manager) -> None:
    await manager.run(checkpoint)
    report = await manager.close()
    assert report == CloseReport()
    assert str(report) == "nothing was left"


async def test_a_report_in_words(clock: Clock) -> None:
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


async def test_a_loop_that_is_stopped_before_it_ever_ran_is_cancelled(manager: Manager) -> None:
    manager.run_task(Task(checkpoint, kind=TaskKind.LOOP, delay=5))
    report = await manager.close()
    assert counts(report) == {"cancelled": 1}


# Waiting


async def test_closing_waits_for_one_offs_as_long_as_it_takes(
    manager: Manager, clock: Clock
) -> None:
    manager.run(anyio.sleep, 1_000_000)
    report = await manager.close()
    assert clock.now == 1_000_000
    assert counts(report) == {"succeeded": 1}


async def test_closing_lets_a_loop_finish_its_iteration(manager: Manager, clock: Clock) -> None:
    handle = manager.loop(anyio.sleep, 10)
    await anyio.sleep(15)
    report = await manager.close()
    assert clock.now == 20
    assert handle.iteration == 2
    assert report.cancelled == (handle,)
    with pytest.raises(TaskCancelledError, match="stopped"):
        await handle


async def test_delayed_tasks_are_cancelled_at_once(
    manager: Manager, recorder: RecordingObserver, clock: Clock
) -> None:
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


async def test_a_delayed_task_that_is_due_when_closing_begins_runs(clock: Clock) -> None:
    """Also if the timer has not come round to it."""
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


async def test_queued_tasks_run_all_the_same(clock: Clock) -> None:
    """They are due; only the limit holds them back."""
    async with Manager(limit=2) as manager:
        for _ in range(6):
            manager.run(anyio.sleep, 10)
        report = await manager.close()
    assert clock.now == 30
    assert counts(report) == {"succeeded": 6}


async def test_queued_tasks_that_miss_the_deadline_have_not_started(
    recorder: RecordingObserver,
) -> None:
    async with Manager(limit=1, observers=[recorder]) as manager:
        handles = [manager.run(anyio.sleep, 10) for _ in range(4)]
        report = await manager.close(timeout=15)
    assert fates(report) == {
        "succeeded": [handles[0].id],
        "cancelled": [handles[1].id],
        "not_started": [handles[2].id, handles[3].id],
    }
    reasons = {event.id: event.reason for event in recorder.of(TaskCancelled)}
    assert reasons == {handle.id: "shutdown" for handle in handles[1:]}
    assert all(handle.started_at is None for handle in handles[2:])


async def test_tasks_in_backoff_keep_their_policy(manager: Manager, clock: Clock) -> None:
    policy = AsyncRetrying(stop=stop_after_attempt(4), wait=wait_fixed(60))
    handle = manager.run_task(Task(fails, retry=policy))
    await anyio.sleep(10)
    assert handle.status is TaskStatus.RETRYING
    report = await manager.close()
    assert clock.now == 180
    assert handle.attempt == 4
    assert report.failed == (handle,)


async def test_tasks_in_backoff_keep_their_policy_until_the_deadline(
    manager: Manager, clock: Clock
) -> None:
    handle = manager.run_task(Task(fails, retry=AsyncRetrying(wait=wait_fixed(60))))
    await anyio.sleep(10)
    report = await manager.close(timeout=100)
    assert clock.now == 110
    assert handle.attempt == 2
    assert report.cancelled == (handle,)
    with pytest.raises(TaskCancelledError, match="shutdown"):
        await handle


# Again, concurrently, and from inside


async def test_every_call_returns_the_same_report(manager: Manager) -> None:
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


async def test_closing_is_told_once(manager: Manager, recorder: RecordingObserver) -> None:
    manager.run(anyio.sleep, 10)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(manager.close)
    await manager.close()
    (closing,) = recorder.of(ManagerClosing)
    assert (closing.name, closing.outstanding) == ("test", 1)
    assert recorder.names()[-1] == "closed"
    assert recorder.names().count("closed") == 1


async def test_a_cancelled_call_does_not_stop_the_closing(manager: Manager, clock: Clock) -> None:
    handle = manager.run(anyio.sleep, 10)
    with anyio.move_on_after(1) as scope:
        await manager.close()
    assert scope.cancelled_caught
    assert manager.state is ManagerState.CLOSING
    assert handle.status is TaskStatus.RUNNING
    await anyio.sleep(10)
    assert manager.state is ManagerState.CLOSED
    assert (await manager.close()).succeeded == (handle,)


async def test_a_call_that_is_cancelled_from_the_start_begins_to_close(manager: Manager) -> None:
    manager.run(anyio.sleep, 10)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await manager.close()
    assert scope.cancelled_caught
    assert manager.state is ManagerState.CLOSING


async def test_inside_a_task_it_is_not_waited_for(manager: Manager, clock: Clock) -> None:
    reports: list[CloseReport] = []

    async def closer() -> str:
        await anyio.sleep(1)
        reports.append(await closed(manager))
        await anyio.sleep(5)
        return "closed it"

    handle = manager.run(closer)
    other = manager.run(anyio.sleep, 10)
    assert await handle == "closed it"
    assert clock.now == 15
    assert fates(reports[0]) == {"succeeded": [other.id]}


async def test_inside_a_task_group_of_a_task(manager: Manager, clock: Clock) -> None:
    async def closer() -> None:
        async with anyio.create_task_group() as outer, anyio.create_task_group() as inner:
            inner.start_soon(closed, manager)
            outer.start_soon(anyio.sleep, 30)

    handle = manager.run(closer)
    await handle
    assert clock.now == 30
    assert manager.state is ManagerState.CLOSED
    assert await manager.close() == CloseReport()


async def test_inside_two_tasks_at_once(manager: Manager, clock: Clock) -> None:
    reports: list[CloseReport] = []

    async def closer() -> None:
        reports.append(await closed(manager))

    one, two = manager.run(closer), manager.run(closer)
    other = manager.run(anyio.sleep, 10)
    await one
    await two
    assert clock.now == 10
    assert reports[0] is reports[1]
    assert fates(reports[0]) == {"succeeded": [other.id]}


async def test_inside_a_loop(manager: Manager, clock: Clock) -> None:
    reports: list[CloseReport] = []

    async def closer() -> None:
        await anyio.sleep(1)
        reports.append(await closed(manager))

    handle = manager.loop(closer)
    other = manager.loop(anyio.sleep, 10)
    with pytest.raises(TaskCancelledError, match="stopped"):
        await handle
    assert clock.now == 10
    assert handle.iteration == 1
    assert fates(reports[0]) == {"cancelled": [other.id]}


async def test_inside_a_task_at_no_time_at_all(manager: Manager, clock: Clock) -> None:
    """The others are cancelled, and it is not, as it is not waited for."""
    steps: list[str] = []

    async def closer() -> None:
        report = await closed(manager, timeout=0)
        steps.append("closed")
        assert fates(report) == {"cancelled": [other.id]}
        await checkpoint()
        steps.append("done")

    other = manager.run(ages)
    await anyio.wait_all_tasks_blocked()
    await manager.run(closer)
    assert steps == ["closed", "done"]
    assert clock.now == 0


async def test_inside_a_task_twice_at_once(manager: Manager, clock: Clock) -> None:
    """The task is not waited for as long as one call is left."""

    async def gives_up() -> None:
        with anyio.move_on_after(1):
            await manager.close()

    async def closer() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(gives_up)
            group.start_soon(closed, manager)

    handle = manager.run(closer)
    manager.run(anyio.sleep, 10)
    await handle
    assert clock.now == 10


async def test_a_task_that_gave_up_closing_is_waited_for_again(
    manager: Manager, clock: Clock
) -> None:
    async def closer() -> None:
        with anyio.move_on_after(1):
            await manager.close()
        await anyio.sleep(50)

    handle = manager.run(closer)
    manager.run(anyio.sleep, 10)
    report = await closed(manager)
    assert clock.now == 51
    assert handle in report.succeeded


async def test_the_block_waits_for_the_task_that_closes(clock: Clock) -> None:
    """Which the report can't wait for."""

    async def closer() -> None:
        await closed(manager)
        await anyio.sleep(20)

    async with Manager() as manager:
        handle = manager.run(closer)
        manager.run(anyio.sleep, 10)
    assert handle.status is TaskStatus.SUCCEEDED
    assert clock.now == 30


async def test_the_block_that_was_left_first_waits_for_a_task_that_closes_later(
    clock: Clock,
) -> None:
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
async def test_from_the_thread_of_a_sync_task(manager: Manager) -> None:
    def closer() -> CloseReport:
        return anyio.from_thread.run(manager.close)

    handle = manager.run(closer)
    with anyio.fail_after(SOON):
        assert await handle == CloseReport()


async def test_from_a_hook_of_an_observer(recorder: RecordingObserver, clock: Clock) -> None:
    """An `async def` hook that closes delays it by no more than the time to catch up."""

    class Closes(RecordingObserver):
        async def on_task_failed(self, event: Any) -> None:  # type: ignore[override]
            await manager.close()

    async with Manager(observers=[Closes()], cancel_timeout=5) as manager:
        manager.run(fails)
        with anyio.fail_after(100):
            await manager.shutdown_requested()
        report = await closed(manager)
    assert counts(report) == {}
    assert clock.now <= 10


async def test_closing_two_managers_from_tasks_of_each_other(clock: Clock) -> None:
    async with Manager() as one, Manager() as other:
        one.run(closed, other)
        other.run(closed, one)
        one.run(anyio.sleep, 5)
        other.run(anyio.sleep, 5)
        await anyio.wait_all_tasks_blocked()
        await closed(one, timeout=20)
        await closed(other, timeout=20)
    assert clock.now < 21


# States


async def test_the_states_in_their_order(clock: Clock) -> None:
    seen: list[ManagerState] = []

    class Looks(RecordingObserver):
        def on_manager_closing(self, event: Any) -> None:  # type: ignore[override]
            seen.append(manager.state)

        def on_manager_closed(self, event: Any) -> None:  # type: ignore[override]
            seen.append(manager.state)

    manager = Manager(observers=[Looks()])
    seen.append(manager.state)
    async with manager as entered:
        assert entered is manager
        seen.append(manager.state)
        manager.request_shutdown()
        seen.append(manager.state)
        manager.run(anyio.sleep, 1)
        await manager.close()
        seen.append(manager.state)
    assert seen == [
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


async def each_refusal(manager: Manager, error: type[BackgroundError], match: str) -> None:
    for submit in SUBMISSIONS.values():
        with pytest.raises(error, match=match):
            submit(manager)
    with pytest.raises(error, match=match):
        await WAITS["submit"](manager)


async def test_before_entering_everything_says_so() -> None:
    manager = Manager(name="early")
    await each_refusal(manager, ManagerNotRunningError, "'early' is not running yet")
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


async def test_closed_before_it_was_entered() -> None:
    manager = Manager(name="unused")
    report = await manager.close()
    assert report == CloseReport()
    assert await manager.close(timeout=0) is report
    assert manager.state is ManagerState.CLOSED
    with pytest.raises(ManagerClosedError, match="'unused' was closed before it was entered"):
        async with manager:
            pass
    await each_refusal(manager, ManagerClosedError, "closed before it was entered")
    for wait in WAITS.values():
        with pytest.raises(ManagerClosedError):
            await wait(manager)
    with pytest.raises(ManagerClosedError):
        manager.request_shutdown()
    assert (manager.tasks(), manager.count(), manager.get("1")) == ([], 0, None)


async def test_while_closing_and_after_nothing_is_taken(recorder: RecordingObserver) -> None:
    async with Manager(name="late", observers=[recorder]) as manager:
        manager.run(anyio.sleep, 10)
        async with anyio.create_task_group() as group:
            group.start_soon(manager.close)
            await anyio.sleep(1)
            assert manager.state is ManagerState.CLOSING
            await each_refusal(
                manager, ManagerClosedError, "'late' is closing and accepts no more tasks"
            )
            assert manager.count() == 1
        await each_refusal(
            manager, ManagerClosedError, "'late' is closed and accepts no more tasks"
        )
        await manager.wait()
        await manager.stop_loops()
        await manager.shutdown_requested()
    await each_refusal(manager, ManagerClosedError, "'late' is closed")
    assert recorder.names().count("added") == 1


@pytest.mark.parametrize("when", ["inside", "after"])
async def test_a_manager_is_entered_once(when: str) -> None:
    match = "has been entered before; make a new one each time"
    async with Manager() as manager:
        if when == "inside":
            with pytest.raises(ManagerMisuseError, match=match):
                await manager.__aenter__()
            await manager.run(checkpoint)
    with pytest.raises(ManagerMisuseError, match=match):
        await manager.__aenter__()


async def test_a_closing_manager_lets_go_who_waits_for_room() -> None:
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
async def test_a_foreign_event_loop_is_refused(manager: Manager, method: str) -> None:
    """Before anything happens: a refused close() does not close."""

    async def foreign() -> None:
        call = WAITS.get(method, lambda manager: manager.close())
        await call(manager)

    with pytest.raises(ManagerMisuseError, match=rf"{re.escape(method)}\(\) must be awaited in"):
        await anyio.to_thread.run_sync(anyio.run, foreign)
    assert manager.state is ManagerState.RUNNING


async def test_only_exceptions_are_errors_of_the_managers() -> None:
    """Everything that a manager refuses can be caught as one."""
    for error in (
        ManagerNotRunningError,
        ManagerClosedError,
        LoopsStoppedError,
        ManagerMisuseError,
    ):
        assert issubclass(error, BackgroundError)
    assert issubclass(LoopsStoppedError, ManagerClosedError)


async def test_observers_that_are_slow_hold_closing_back_for_a_while_only(clock: Clock) -> None:
    class Slow(RecordingObserver):
        async def on_task_succeeded(self, event: Any) -> None:  # type: ignore[override]
            await ages()

    async with Manager(observers=[Slow()], cancel_timeout=3) as manager:
        await manager.run(checkpoint)
        report = await manager.close()
        assert clock.now == 3
        assert report == CloseReport()
    assert clock.now == 3
