"""Leaving a manager's block by cancellation."""

from __future__ import annotations

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.leaving import cleans_up, fails_after, report_to
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
    """Neither an `Exception` nor known to anybody."""


async def test_cancelling_the_body_cancels_the_tasks(
    clock: Clock, recorder: RecordingObserver
) -> None:
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


async def test_a_timeout_around_the_block(clock: Clock) -> None:
    with pytest.raises(TimeoutError):
        with anyio.fail_after(5):
            async with Manager() as manager:
                handle = manager.run(cleans_up, 1)
                await ages()
    assert clock.now == 6
    assert handle.status is TaskStatus.CANCELLED


async def test_a_sibling_that_fails(clock: Clock) -> None:
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
    """Closing goes on, but with the tasks cancelled."""
    with anyio.move_on_after(5) as scope:
        async with Manager(observers=[recorder]) as manager:
            handle = manager.run(cleans_up, 2)
            queued = manager.run(anyio.sleep, 1)
    assert scope.cancelled_caught
    assert clock.now == 7
    report = report_to(recorder)
    assert report.cancelled == (handle,)
    assert report.succeeded == (queued,)


async def test_cancelled_while_leaving_by_an_error(clock: Clock) -> None:
    with anyio.move_on_after(5) as scope:
        async with Manager() as manager:
            handle = manager.run(ages)
            raise ValueError
    assert scope.cancelled_caught
    assert clock.now == 5
    assert handle.status is TaskStatus.CANCELLED


async def test_cancelled_while_the_tasks_clean_up(clock: Clock) -> None:
    """They keep their time for it."""
    with anyio.move_on_after(5) as outer:
        with anyio.move_on_after(2) as inner:
            async with Manager(cancel_timeout=10) as manager:
                handle = manager.run(cleans_up, 8)
                await ages()
    assert inner.cancel_called
    assert outer.cancelled_caught
    assert clock.now == 10
    assert handle.status is TaskStatus.CANCELLED


async def test_cancelled_in_a_shielded_block(clock: Clock) -> None:
    """The shield is the caller's decision: nothing is cancelled before the end."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        with anyio.CancelScope(shield=True):
            async with Manager() as manager:
                handle = manager.run(anyio.sleep, 5)
    assert clock.now == 5
    assert handle.status is TaskStatus.SUCCEEDED


async def test_entered_in_a_cancelled_scope() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with Manager() as manager:
            handle = manager.run(ages)
            await checkpoint()
    assert scope.cancelled_caught
    assert manager.state is ManagerState.CLOSED
    assert handle.status is TaskStatus.CANCELLED


async def test_a_body_that_swallows_its_cancellation_leaves_as_it_ends(clock: Clock) -> None:
    """What counts is how the block is left; but inside a cancelled scope waiting is cancelled."""
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
async def test_what_is_no_exception_cancels_the_tasks(
    clock: Clock, error: type[BaseException]
) -> None:
    raised = error()
    with pytest.raises(error) as caught:
        async with Manager() as manager:
            handle = manager.run(cleans_up, 1)
            await anyio.sleep(5)
            raise raised
    assert caught.value is raised
    assert clock.now == 6
    assert handle.status is TaskStatus.CANCELLED


async def test_cancelling_the_caller_touches_only_what_is_in_its_block(clock: Clock) -> None:
    """A task of an outer manager survives that the inner block is cancelled."""
    async with Manager() as outer:
        with anyio.move_on_after(5):
            async with Manager() as inner:
                lost = inner.run(anyio.sleep, 100)
                kept = outer.run(anyio.sleep, 100)
                await ages()
        assert lost.status is TaskStatus.CANCELLED
        assert kept.status is TaskStatus.RUNNING
    assert clock.now == 100
    assert kept.status is TaskStatus.SUCCEEDED
