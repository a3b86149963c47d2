"""Leaving of a manager's block by cancellation."""

from __future__ import annotations

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.closing import cleans_up
from support.leaving import fails_after, report_to
from support.time import Clock, ages

from background import (
    Manager,
    ManagerClosing,
    ManagerState,
    TaskCancelled,
    TaskHandle,
    TaskStatus,
)
from background.testing import RecordingObserver


class Ending(BaseException):
    """A base exception that is not an `Exception`."""


async def test_cancelled_body(clock: Clock, recorder: RecordingObserver) -> None:
    """Cancelling the body cancels the tasks, which have `cancel_timeout` seconds to clean up."""
    done: list[str] = []
    with anyio.move_on_after(5) as scope:
        async with Manager(observers=[recorder], cancel_timeout=5) as manager:
            tasks = [
                manager.run(cleans_up, 3, done),
                manager.run(cleans_up, 100),
                manager.after(100, checkpoint),
                manager.loop(anyio.sleep, 100),
                manager.every(100, checkpoint),
            ]
            await ages()
    assert scope.cancelled_caught
    assert clock.now == 10
    assert done == ["cleaned up"]
    report = report_to(recorder)
    assert set(report.cancelled) == {tasks[0], tasks[3], tasks[4]}
    assert report.stuck == (tasks[1],)
    assert report.not_started == (tasks[2],)
    reasons = {event.id: event.reason for event in recorder.of(TaskCancelled)}
    assert reasons == {
        tasks[0].id: "shutdown",
        tasks[2].id: "shutdown",
        tasks[3].id: "shutdown",
        tasks[4].id: "stopped",
    }
    assert recorder.of(ManagerClosing)[0].reason == "the block was cancelled"
    await tasks[1].wait()


async def test_timeout_around_block(clock: Clock) -> None:
    """A timeout around the block cancels the tasks and waits for their clean-up."""
    with pytest.raises(TimeoutError):
        with anyio.fail_after(5):
            async with Manager() as manager:
                handle = manager.run(cleans_up, 1)
                await ages()
    assert clock.now == 6
    assert handle.status is TaskStatus.CANCELLED


async def test_failing_sibling(clock: Clock) -> None:
    """A failing sibling cancels the block and its tasks."""

    async def serve() -> None:
        async with Manager() as manager:
            handles.append(manager.run(ages))
            await ages()

    handles: list[TaskHandle[None]] = []
    with pytest.RaisesGroup(ValueError):
        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            group.start_soon(fails_after, 5, ValueError())
    assert clock.now == 5
    assert handles[0].status is TaskStatus.CANCELLED


async def test_cancelled_while_leaving(clock: Clock, recorder: RecordingObserver) -> None:
    """A cancellation while the block is left cancels the tasks, and the closing continues."""
    with anyio.move_on_after(5) as scope:
        async with Manager(observers=[recorder]) as manager:
            handle = manager.run(cleans_up, 2)
            finished = manager.run(anyio.sleep, 1)
    assert scope.cancelled_caught
    assert clock.now == 7
    report = report_to(recorder)
    assert report.cancelled == (handle,)
    assert report.succeeded == (finished,)


async def test_cancelled_while_leaving_by_error(clock: Clock) -> None:
    """A cancellation while the block is left by an exception cancels the tasks and replaces it."""
    with anyio.move_on_after(5) as scope:
        async with Manager() as manager:
            handle = manager.run(ages)
            raise ValueError
    assert scope.cancelled_caught
    assert clock.now == 5
    assert handle.status is TaskStatus.CANCELLED


async def test_cancelled_during_cleanup(clock: Clock) -> None:
    """A second cancellation does not shorten the tasks' time to clean up."""
    with anyio.move_on_after(5) as outer:
        with anyio.move_on_after(2) as inner:
            async with Manager(cancel_timeout=10) as manager:
                handle = manager.run(cleans_up, 8)
                await ages()
    assert inner.cancel_called
    assert outer.cancelled_caught
    assert clock.now == 10
    assert handle.status is TaskStatus.CANCELLED


async def test_shielded_block(clock: Clock) -> None:
    """The tasks of a shielded block are not cancelled with the scope around it."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        with anyio.CancelScope(shield=True):
            async with Manager() as manager:
                handle = manager.run(anyio.sleep, 5)
    assert clock.now == 5
    assert handle.status is TaskStatus.SUCCEEDED


async def test_enter_in_cancelled_scope() -> None:
    """A manager that is entered in a cancelled scope cancels its tasks and closes."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with Manager() as manager:
            handle = manager.run(ages)
            await checkpoint()
    assert scope.cancelled_caught
    assert manager.state is ManagerState.CLOSED
    assert handle.status is TaskStatus.CANCELLED


async def test_body_swallows_cancellation(clock: Clock) -> None:
    """Leaving in a cancelled scope cancels the tasks even if the body swallows its cancellation."""
    with anyio.move_on_after(5):
        async with Manager() as manager:
            handle = manager.run(anyio.sleep, 100)
            try:
                await ages()
            except anyio.get_cancelled_exc_class():
                pass
    assert clock.now == 5
    assert handle.status is TaskStatus.CANCELLED


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Ending])
async def test_leave_by_base_exception(clock: Clock, error: type[BaseException]) -> None:
    """A base exception that is not an `Exception` cancels the tasks and is raised."""
    raised = error()
    with pytest.raises(error) as caught:
        async with Manager() as manager:
            handle = manager.run(cleans_up, 1)
            await anyio.sleep(5)
            raise raised
    assert caught.value is raised
    assert clock.now == 6
    assert handle.status is TaskStatus.CANCELLED


async def test_outer_task_survives(clock: Clock) -> None:
    """A task of an outer manager continues when the inner block is cancelled."""
    async with Manager() as outer:
        with anyio.move_on_after(5):
            async with Manager() as inner:
                inner_task = inner.run(anyio.sleep, 100)
                outer_task = outer.run(anyio.sleep, 100)
                await ages()
        assert inner_task.status is TaskStatus.CANCELLED
        assert outer_task.status is TaskStatus.RUNNING
    assert clock.now == 100
    assert outer_task.status is TaskStatus.SUCCEEDED
