"""Leaving of a manager's block: by return, by an exception, and in another task."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.closing import cleans_up
from support.leaving import fails_after, report_to
from support.time import SOON, Clock, ages

from background import (
    Manager,
    ManagerClosed,
    ManagerClosedError,
    ManagerClosing,
    ManagerMisuseError,
    ManagerState,
    Observer,
    Task,
    TaskFailed,
    TaskHandle,
    TaskKind,
    TaskStatus,
)
from background.testing import RecordingObserver

# The same as close()


async def test_leave_by_return(clock: Clock, recorder: RecordingObserver) -> None:
    """Leaving the block by return waits for tasks as `close()` does."""
    async with Manager(observers=[recorder]) as manager:
        one_off = manager.run(anyio.sleep, 10)
        loop = manager.loop(anyio.sleep, 4)
        delayed = manager.after(5, checkpoint)
    assert clock.now == 10
    assert manager.state is ManagerState.CLOSED
    report = report_to(recorder)
    assert (report.succeeded, report.cancelled, report.not_started) == (
        (one_off,),
        (loop,),
        (delayed,),
    )
    assert recorder.of(ManagerClosing)[0].reason == "the block was left"
    assert await manager.close() is report


@pytest.mark.parametrize("kind", [ValueError, StopAsyncIteration, StopIteration, TimeoutError])
async def test_leave_by_exception(clock: Clock, kind: type[Exception]) -> None:
    """Leaving the block by an exception waits for tasks and raises the exception."""
    error = kind("of the body")
    with pytest.raises((kind, RuntimeError)) as caught:
        async with Manager() as manager:
            handle = manager.run(anyio.sleep, 10)
            raise error
    assert caught.value is error or caught.value.__cause__ is error
    assert clock.now == 10
    assert handle.status is TaskStatus.SUCCEEDED


async def test_leave_by_exception_group(clock: Clock) -> None:
    """Leaving the block by an exception group waits for tasks and raises the group."""
    with pytest.RaisesGroup(ValueError):
        async with Manager() as manager, anyio.create_task_group() as group:
            handle = manager.run(anyio.sleep, 10)
            group.start_soon(fails_after, 1, ValueError())
    assert clock.now == 10
    assert handle.status is TaskStatus.SUCCEEDED


async def test_leave_after_closing(clock: Clock) -> None:
    """Leaving the block of a closed manager takes no time."""
    async with Manager() as manager:
        await manager.close()
    assert clock.now == 0


async def test_leave_while_closing(clock: Clock) -> None:
    """Leaving the block while the manager closes waits for the closing."""
    async with Manager() as manager:
        handle = manager.run(anyio.sleep, 10)
        with anyio.move_on_after(1):
            await manager.close()
    assert clock.now == 10
    assert handle.status is TaskStatus.SUCCEEDED


async def test_leave_after_request(clock: Clock) -> None:
    """Leaving the block after a shutdown request cancels tasks at the end of the grace."""
    async with Manager(grace=10) as manager:
        handle = manager.run(ages)
        await anyio.sleep(5)
        manager.request_shutdown()
    assert clock.now == 15
    assert handle.status is TaskStatus.CANCELLED


async def test_request_while_leaving(clock: Clock) -> None:
    """A shutdown request while the block is left starts the grace."""
    async with Manager(grace=10) as manager:

        async def request_shutdown() -> None:
            await anyio.sleep(5)
            manager.request_shutdown()
            await ages()

        handle = manager.run(request_shutdown)
    assert clock.now == 15
    assert handle.status is TaskStatus.CANCELLED


async def test_submission_while_leaving(clock: Clock) -> None:
    """Tasks that are submitted while the block is left are refused."""
    errors: list[BaseException] = []

    async def submit() -> None:
        await anyio.sleep(1)
        try:
            manager.run(checkpoint)
        except ManagerClosedError as error:
            errors.append(error)

    async with Manager() as manager:
        manager.run(submit)
    assert len(errors) == 1


async def test_stuck_task(clock: Clock) -> None:
    """Leaving the block does not wait for a stuck task."""
    async with Manager(grace=1, cancel_timeout=2) as manager:
        handle = manager.run(cleans_up, 100)
        await checkpoint()
        manager.request_shutdown()
    assert clock.now == 3
    assert (await manager.close()).stuck == (handle,)
    assert await handle.wait() is TaskStatus.CANCELLED
    assert clock.now == 101


# Nested managers


async def test_nested_managers(clock: Clock) -> None:
    """Nested managers close from the inside out."""
    order: list[str] = []

    class CloseRecorder(Observer):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_manager_closed(self, event: ManagerClosed) -> None:
            order.append(f"{self.name} at {clock.now:g}")

    async with (
        Manager(observers=[CloseRecorder("outer")]) as outer,
        Manager(observers=[CloseRecorder("inner")]) as inner,
    ):
        inner.run(anyio.sleep, 5)
        outer.run(anyio.sleep, 8)
    assert order == ["inner at 5", "outer at 8"]


async def test_manager_in_task(clock: Clock) -> None:
    """A task of one manager can use another manager."""

    async def serve() -> str:
        async with Manager() as inner:
            handle = inner.run(anyio.sleep, 5)
        return f"{handle.status} at {clock.now:g}"

    async with Manager() as outer:
        handle = outer.run(serve)
    assert await handle == "succeeded at 5"


async def test_cancelled_task_with_manager(clock: Clock) -> None:
    """Cancelling a task cancels the tasks of a manager inside it."""
    handles: list[TaskHandle[Any]] = []

    async def serve() -> None:
        async with Manager() as inner:
            handles.append(inner.run(cleans_up, 2))
            await ages()

    async with Manager(cancel_timeout=5) as outer:
        handle = outer.run(serve)
        await anyio.sleep(5)
        report = await outer.close(timeout=0)
    assert clock.now == 7
    assert report.cancelled == (handle,)
    assert handles[0].status is TaskStatus.CANCELLED


async def test_inner_task_closes_outer_manager(clock: Clock) -> None:
    """A task of an inner manager can close the outer one, whose task waits for the inner block."""

    async def close_outer() -> None:
        await outer.close(timeout=10)

    async def serve() -> None:
        async with Manager() as inner:
            inner.run(close_outer)

    async with Manager() as outer:
        handle = outer.run(serve)
        with anyio.fail_after(100):
            await handle.wait()
    assert clock.now <= 10


# Failures while leaving


async def test_critical_failure(clock: Clock) -> None:
    """A critical failure cancels the body and the tasks, and is raised from the block."""
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="vital")):
        async with Manager(name="core") as manager:
            manager.run_task(Task(fails_after, args=(5, ValueError("vital")), critical=True))
            sleeper = manager.run(cleans_up, 1)
            await ages()
    assert clock.now == 6
    assert sleeper.status is TaskStatus.CANCELLED


async def test_critical_failure_while_leaving(clock: Clock) -> None:
    """A critical failure while the block is left cancels the other tasks and is raised."""
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="vital")):
        async with Manager() as manager:
            manager.run_task(Task(fails_after, args=(5, ValueError("vital")), critical=True))
            sleeper = manager.run(ages)
    assert clock.now == 5
    assert sleeper.status is TaskStatus.CANCELLED


async def test_critical_failure_and_body_error(clock: Clock) -> None:
    """A critical failure and the exception of the body are raised in one group."""
    with pytest.RaisesGroup(
        pytest.RaisesExc(ValueError, match="vital"), pytest.RaisesExc(LookupError, match="body")
    ):
        async with Manager() as manager:
            manager.run_task(Task(fails_after, args=(5, ValueError("vital")), critical=True))
            raise LookupError("body")
    assert clock.now == 5


async def test_critical_failure_in_cleanup(clock: Clock) -> None:
    """A critical failure in the clean-up of a task is raised from the block."""

    async def fail_in_cleanup() -> None:
        try:
            await ages()
        finally:
            raise ValueError("vital")

    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="vital")):
        async with Manager() as manager:
            manager.run_task(Task(fail_in_cleanup, critical=True))
            await anyio.sleep(1)
            await manager.close(timeout=0)


async def test_two_critical_failures(clock: Clock) -> None:
    """Two critical failures are raised in one group."""
    with pytest.RaisesGroup(ValueError, LookupError):
        async with Manager() as manager:
            manager.run_task(Task(fails_after, args=(5, ValueError()), critical=True))
            manager.run_task(Task(fail_when_cancelled, args=(LookupError(),), critical=True))
            await ages()


@pytest.mark.parametrize("where", ["in the body", "while leaving"])
async def test_keyboard_interrupt_in_task(clock: Clock, where: str) -> None:
    """A `KeyboardInterrupt` in a task is raised from the block, not in a group."""
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        async with Manager() as manager:
            manager.run(fails_after, 5, error)
            sleeper = manager.run(ages)
            if where == "in the body":
                await ages()
    assert caught.value is error
    assert clock.now == 5
    assert sleeper.status is TaskStatus.CANCELLED


async def test_system_exit_in_observer() -> None:
    """A `SystemExit` in an observer is raised from the block, not in a group."""

    class Exiting(Observer):
        def on_task_succeeded(self, event: Any) -> None:
            raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        async with Manager(observers=[Exiting()]) as manager:
            manager.run(checkpoint)
            await ages()
    assert caught.value.code == 3


async def test_critical_failure_in_cancelled_block(clock: Clock) -> None:
    """A critical failure in a cancelled block is raised, and the cancellation reaches its scope."""
    with pytest.raises(BaseExceptionGroup) as caught:
        with anyio.move_on_after(5) as scope:
            async with Manager() as manager:
                manager.run_task(
                    Task(fail_when_cancelled, args=(ValueError("vital"),), critical=True)
                )
                await ages()
    assert caught.group_contains(ValueError, match="vital")
    assert scope.cancel_called
    assert clock.now == 5


async def fail_when_cancelled(error: Exception) -> None:
    try:
        await ages()
    finally:
        raise error


# Generators and other tasks


async def test_leave_by_closing_generator(clock: Clock) -> None:
    """Closing a generator leaves the block inside it and cancels the tasks."""
    handles: list[TaskHandle[Any]] = []

    async def serve() -> AsyncGenerator[Manager]:
        async with Manager() as manager:
            handles.append(manager.run(cleans_up, 3))
            yield manager

    generator = serve()
    manager = await anext(generator)
    await anyio.sleep(2)
    await generator.aclose()
    assert clock.now == 5
    assert manager.state is ManagerState.CLOSED
    assert handles[0].status is TaskStatus.CANCELLED


async def test_asynccontextmanager(clock: Clock) -> None:
    """The block works inside a function decorated with `asynccontextmanager`."""

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[dict[str, Manager]]:
        async with Manager() as manager:
            yield {"manager": manager}

    async with lifespan() as state:
        handle = state["manager"].run(anyio.sleep, 5)
    assert clock.now == 5
    assert handle.status is TaskStatus.SUCCEEDED
    with pytest.raises(ValueError, match="body"):
        async with lifespan() as state:
            raise ValueError("body")
    with anyio.move_on_after(1) as scope:
        async with lifespan() as state:
            await ages()
    assert scope.cancelled_caught


@pytest.mark.parametrize("error", [None, ValueError("of the body")])
async def test_leave_in_another_task(
    clock: Clock, recorder: RecordingObserver, error: Exception | None
) -> None:
    """Leaving the block in another task waits for tasks before it raises `ManagerMisuseError`."""
    manager = Manager(observers=[recorder])
    entered, left = anyio.Event(), anyio.Event()
    caught: list[BaseException] = []

    async def enter() -> None:
        await manager.__aenter__()
        entered.set()

    async def leave() -> None:
        await entered.wait()
        handles.append(manager.run(anyio.sleep, 10))
        handles.append(manager.loop(anyio.sleep, 3))
        try:
            await manager.__aexit__(type(error) if error else None, error, None)
        except ManagerMisuseError as misuse:
            caught.append(misuse)
        left.set()

    handles: list[TaskHandle[Any]] = []

    async def host() -> None:
        await enter()
        await left.wait()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(host)
            group.start_soon(leave)
    except* RuntimeError:
        pass  # from trio: the scope was not left by its own task
    (misuse,) = caught
    assert "left in the task that entered it" in str(misuse)
    assert misuse.__cause__ is error
    assert [handle.status for handle in handles] == [TaskStatus.SUCCEEDED, TaskStatus.CANCELLED]
    assert manager.state is ManagerState.CLOSED
    assert len(report_to(recorder).succeeded) == 1
    assert clock.now == 10


async def test_generator_resumed_in_another_task(clock: Clock) -> None:
    """A generator that another task resumes raises `ManagerMisuseError` after the tasks have ended.

    Fixtures are such generators if their runner uses a task for the setup and a task for the
    teardown.
    """
    handles: list[TaskHandle[Any]] = []

    async def fixture() -> AsyncIterator[Manager]:
        async with Manager() as manager:
            handles.append(manager.run(anyio.sleep, 5))
            yield manager

    generator = fixture()
    halfway = anyio.Event()
    caught: list[BaseException] = []

    async def first_half() -> None:
        await anext(generator)
        halfway.set()
        await finished.wait()

    async def second_half() -> None:
        await halfway.wait()
        try:
            await anext(generator, None)
        except ManagerMisuseError as error:
            caught.append(error)
        finished.set()

    finished = anyio.Event()
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(first_half)
            group.start_soon(second_half)
    except* RuntimeError:
        pass
    assert len(caught) == 1
    assert handles[0].status is TaskStatus.SUCCEEDED
    assert clock.now == 5


def count_tasks() -> int:
    """Return the number of tasks in the event loop, including those of this library."""
    if asyncio_running():
        return len(asyncio.all_tasks())
    import trio

    return trio.lowlevel.current_statistics().tasks_living


def asyncio_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


WAYS: dict[str, BaseException | None] = {
    "return": None,
    "error": ValueError(),
    "interrupt": KeyboardInterrupt(),
    "cancellation": None,
}


# Clean-up


@pytest.mark.parametrize("cancel_timeout", [0, 5])
@pytest.mark.parametrize("way", WAYS)
async def test_no_internal_tasks_left(way: str, cancel_timeout: float) -> None:
    """No internal task of a manager remains after its block, however it is left."""

    class Watching(Observer):
        async def watch(self, manager: Manager) -> None:
            await ages()

        async def on_task_succeeded(self, event: Any) -> None:
            await checkpoint()

    await checkpoint()
    before = count_tasks()
    try:
        with anyio.CancelScope() as scope:
            async with Manager(
                observers=[Watching()], cancel_timeout=cancel_timeout, grace=100
            ) as manager:
                await manager.run(checkpoint)
                manager.every(1, checkpoint)
                manager.after(100, checkpoint)
                await anyio.sleep(2.5)
                manager.request_shutdown()
                assert count_tasks() > before
                if (error := WAYS[way]) is not None:
                    raise error
                if way == "cancellation":
                    scope.cancel()
                    await checkpoint()
    except (ValueError, KeyboardInterrupt):
        pass
    for _ in range(5):  # trio's system nursery ends a step later
        await checkpoint()
    assert count_tasks() == before


async def test_watch_exceeds_cancel_timeout(clock: Clock) -> None:
    """A `watch()` service that does not end is abandoned after `cancel_timeout`."""

    class Stubborn(Observer):
        async def watch(self, manager: Manager) -> None:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(20)

    async with Manager(observers=[Stubborn()], cancel_timeout=3):
        await anyio.sleep(1)
    assert clock.now == 4


async def test_watch_requests_shutdown_at_end(clock: Clock) -> None:
    """A shutdown request of a `watch()` service that ends has no effect."""

    class Requesting(Observer):
        async def watch(self, manager: Manager) -> None:
            try:
                await ages()
            finally:
                manager.request_shutdown()

    await checkpoint()
    before = count_tasks()
    async with Manager(observers=[Requesting()]):
        await anyio.sleep(1)
    for _ in range(5):
        await checkpoint()
    assert clock.now == 1
    assert count_tasks() == before


# Threads


@pytest.mark.realtime
async def test_leave_waits_for_thread(recorder: RecordingObserver) -> None:
    """Leaving the block waits for the thread of a sync task."""
    entered, release = threading.Event(), threading.Event()

    def work() -> str:
        entered.set()
        release.wait(SOON)
        return "done"

    async with Manager(observers=[recorder]) as manager:
        handle = manager.run(work)
        assert await anyio.to_thread.run_sync(entered.wait, SOON)
        release.set()
    assert await handle == "done"
    assert report_to(recorder).succeeded == (handle,) or recorder.names()[2] == "succeeded"


@pytest.mark.realtime
async def test_loop_in_thread(recorder: RecordingObserver) -> None:
    """A loop of a sync function finishes its current iteration."""
    entered = threading.Event()
    runs: list[int] = []

    def work() -> None:
        runs.append(1)
        entered.set()

    async with Manager(observers=[recorder]) as manager:
        handle = manager.run_task(Task(work, kind=TaskKind.LOOP))
        assert await anyio.to_thread.run_sync(entered.wait, SOON)
    assert handle.status is TaskStatus.CANCELLED
    assert handle.iteration == len(runs)
    assert recorder.of(TaskFailed) == []


def test_no_log_records(caplog: pytest.LogCaptureFixture) -> None:
    """A block that is left without an error logs nothing."""
    with caplog.at_level(logging.DEBUG, logger="background"):

        async def main() -> None:
            async with Manager() as manager:
                manager.run(checkpoint)

        anyio.run(main)
    assert [record for record in caplog.records if record.name == "background"] == []
