"""Leaving of a manager's block: by return, by an exception, and in another task."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.closing import cleans_up
from support.leaving import count_tasks, fails_after, report_to, run_in_task
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
    """Tasks that others submit while the block is left are refused."""
    errors: list[BaseException] = []

    async def submit() -> None:
        await anyio.sleep(1)
        with pytest.raises(ManagerClosedError) as caught:
            manager.run(checkpoint)
        errors.append(caught.value)

    async with anyio.create_task_group() as group, Manager() as manager:
        group.start_soon(submit)
        manager.run(anyio.sleep, 2)
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
    """A block may be left in another task than the one that entered it."""
    manager = Manager(observers=[recorder])
    await run_in_task(manager.__aenter__)
    one_off = manager.run(anyio.sleep, 10)
    loop = manager.loop(anyio.sleep, 3)
    kind = type(error) if error else None
    suppresses = await run_in_task(lambda: manager.__aexit__(kind, error, None))
    assert suppresses is (error is None)
    assert clock.now == 10
    assert manager.state is ManagerState.CLOSED
    report = report_to(recorder)
    assert (report.succeeded, report.cancelled) == ((one_off,), (loop,))


async def test_generator_resumed_in_another_task(clock: Clock) -> None:
    """A generator with a block may be resumed in another task.

    Fixtures are such generators if their runner uses a task for the setup and a task for the
    teardown.
    """

    async def fixture() -> AsyncIterator[Manager]:
        async with Manager() as manager:
            yield manager

    generator = fixture()
    manager = await run_in_task(lambda: resume(generator))
    handle = await run_in_task(partial(submit_in_task, manager))
    with pytest.raises(StopAsyncIteration):
        await run_in_task(lambda: resume(generator))
    assert handle.status is TaskStatus.SUCCEEDED
    assert clock.now == 5


async def resume(generator: AsyncIterator[Manager]) -> Manager:
    return await anext(generator)


async def submit_in_task(manager: Manager) -> TaskHandle[Any]:
    return manager.run(anyio.sleep, 5)


async def test_cancelled_in_another_task(clock: Clock) -> None:
    """A cancellation while another task leaves the block cancels the tasks of the manager."""
    manager = Manager()
    await run_in_task(manager.__aenter__)
    handle = manager.run(cleans_up, 3)

    async def leave() -> bool:
        with anyio.move_on_after(5) as scope:
            await manager.__aexit__(None, None, None)
        return scope.cancelled_caught

    assert await run_in_task(leave)
    assert clock.now == 8
    assert handle.status is TaskStatus.CANCELLED


async def test_critical_failure_left_elsewhere(clock: Clock) -> None:
    """A critical failure is raised where the block is left, although its first task has ended."""
    manager = Manager()
    await run_in_task(manager.__aenter__)
    manager.run_task(Task(fails_after, args=(5, ValueError("vital")), critical=True))
    sleeper = manager.run(ages)
    await sleeper.wait()
    await anyio.sleep(1)  # the scope of the ended task must not keep the event loop busy
    assert clock.now == 6
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="vital")):
        await run_in_task(lambda: manager.__aexit__(None, None, None))


async def test_late_critical_failure(clock: Clock) -> None:
    """A critical failure of a stuck task does not cancel the task that entered the block."""
    manager = Manager(cancel_timeout=1)
    left = anyio.Event()

    async def enter() -> float:
        await manager.__aenter__()
        await left.wait()
        await anyio.sleep(100)
        return clock.now

    async def fail_late() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(20)
        raise ValueError("late")

    ended: list[float] = []

    async def serve() -> None:
        ended.append(await run_in_task(enter))

    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        await anyio.wait_all_tasks_blocked()
        manager.run_task(Task(fail_late, critical=True))
        await anyio.wait_all_tasks_blocked()
        await manager.close(timeout=0)
        await manager.__aexit__(None, None, None)
        left.set()
    assert ended == [pytest.approx(101, abs=1)]


@pytest.mark.realtime
async def test_leave_in_another_loop(manager: Manager) -> None:
    """Leaving the block in another event loop is refused, and changes nothing."""

    async def leave() -> None:
        await manager.__aexit__(ValueError, ValueError("of the body"), None)

    with pytest.raises(
        ManagerMisuseError, match="left in the event loop that entered it"
    ) as caught:
        await anyio.to_thread.run_sync(anyio.run, leave)
    assert isinstance(caught.value.__cause__, ValueError)
    assert manager.state is ManagerState.RUNNING
    assert await manager.run(int) == 0


def test_later_loop_in_same_thread() -> None:
    """A manager of an event loop that has ended is refused in a later one of the same thread."""
    manager = Manager()
    handles: list[TaskHandle[Any]] = []

    async def enter() -> None:
        await manager.open()
        handles.append(manager.after(60, checkpoint))

    async def use() -> None:
        for call in (manager.close, manager.wait, handles[0].wait):
            with pytest.raises(ManagerMisuseError, match="must be awaited in the event loop"):
                await call()
        with pytest.raises(ManagerMisuseError, match="left in the event loop that entered it"):
            await manager.__aexit__(None, None, None)

    asyncio.run(enter())
    asyncio.run(use())


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
