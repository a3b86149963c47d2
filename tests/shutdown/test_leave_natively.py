"""Leaving of a manager's block by native cancellation on asyncio and trio."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.closing import cleans_up
from support.leaving import Run, fails_after, report_to
from support.time import SOON, ages

from background import (
    Manager,
    ManagerClosing,
    ManagerState,
    Observer,
    Task,
    TaskCancelledError,
    TaskHandle,
    TaskStatus,
    TaskSucceeded,
)
from background.testing import RecordingObserver, virtual_time


async def until(condition: Callable[[], bool]) -> None:
    """Return in the step of the event loop in which the condition becomes true."""
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition never became true")


# asyncio


def test_cancel_native_task(run: Run) -> None:
    """Cancelling the asyncio task of the block cancels the tasks, which can clean up."""
    done: list[str] = []
    recorder = RecordingObserver()

    async def serve() -> None:
        async with Manager(observers=[recorder]) as manager:
            manager.run(cleans_up, 0.01, done)
            started.set()
            await asyncio.sleep(1000)

    async def main() -> None:
        task = asyncio.create_task(serve())
        await started.wait()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert len(asyncio.all_tasks()) == 1

    started = asyncio.Event()
    run(main)
    assert done == ["cleaned up"]
    assert len(report_to(recorder).cancelled) == 1


def test_cancel_native_task_while_leaving(run: Run) -> None:
    """Cancelling the asyncio task while it leaves the block cancels the tasks."""
    recorder = RecordingObserver()

    async def serve() -> None:
        async with Manager(observers=[recorder]) as manager:
            manager.run(asyncio.sleep, 1000)

    async def main() -> None:
        task = asyncio.create_task(serve())
        await until(lambda: recorder.of(ManagerClosing) != [])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    run(main)
    assert len(report_to(recorder).cancelled + report_to(recorder).not_started) == 1


def test_cancel_native_task_repeatedly(run: Run) -> None:
    """Repeated cancellations do not shorten the tasks' time to clean up."""
    done: list[str] = []

    async def serve() -> None:
        async with Manager() as manager:
            manager.run(cleans_up, 0.01, done)
            started.set()
            await asyncio.sleep(1000)

    async def main() -> None:
        task = asyncio.create_task(serve())
        await started.wait()
        await asyncio.sleep(0)
        for _ in range(5):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == ["cleaned up"]
        assert len(asyncio.all_tasks()) == 1

    started = asyncio.Event()
    run(main)


def test_native_timeout(run: Run) -> None:
    """`asyncio.timeout()` around the block cancels the tasks and raises `TimeoutError`."""

    async def main() -> TaskStatus:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                async with Manager() as manager:
                    handle = manager.run(asyncio.sleep, 1000)
                    await asyncio.sleep(1000)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        return handle.status

    assert run(main) is TaskStatus.CANCELLED


def test_native_timeout_while_leaving(run: Run) -> None:
    """`asyncio.timeout()` that expires while the block is left cancels the tasks."""

    async def main() -> TaskStatus:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                async with Manager() as manager:
                    handle = manager.run(asyncio.sleep, 1000)
        return handle.status

    assert run(main) is TaskStatus.CANCELLED


def test_no_pending_native_cancellation(run: Run) -> None:
    """The asyncio task has no pending cancellation after a critical failure."""

    async def main() -> int:
        with pytest.RaisesGroup(ValueError):
            async with Manager() as manager:
                manager.run_task(Task(fails_after, args=(0.01, ValueError()), critical=True))
                await asyncio.sleep(1000)
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert run(main) == 0


@pytest.mark.parametrize("steps", range(6))
def test_run_ends_in_open_block(run: Run, steps: int) -> None:
    """A manager closes when `asyncio.run()` ends and cancels all tasks, the manager's included."""
    recorder = RecordingObserver()

    async def serve() -> None:
        async with Manager(observers=[recorder], limit=2) as manager:
            manager.run(asyncio.sleep, 1000)
            manager.run(asyncio.sleep, 1000)
            manager.run(asyncio.sleep, 1000)
            manager.after(1000, checkpoint)
            manager.every(1000, checkpoint)
            manager.loop(asyncio.sleep, 1000)
            started.set()
            await asyncio.sleep(1000)

    async def main() -> None:
        asyncio.create_task(serve())  # noqa: RUF006
        await started.wait()
        for _ in range(steps):
            await asyncio.sleep(0)

    started = asyncio.Event()
    run(main)
    assert recorder.names()[-1] == "closed"
    assert recorder.names().count("cancelled") == 6


@pytest.mark.parametrize("steps", range(8))
def test_run_ends_while_leaving(run: Run, steps: int) -> None:
    """The end of every task is reported if `asyncio.run()` ends at any step of leaving."""
    recorder = RecordingObserver()
    manager = Manager(observers=[recorder], limit=1)
    handles: list[TaskHandle[Any]] = []

    async def serve() -> None:
        async with manager:
            handles.extend(manager.run(asyncio.sleep, 1000) for _ in range(3))
            handles.append(manager.loop(asyncio.sleep, 1000))
            await asyncio.sleep(0)
            leaving.set()

    async def main() -> None:
        asyncio.create_task(serve())  # noqa: RUF006
        await leaving.wait()
        for _ in range(steps):
            await asyncio.sleep(0)

    leaving = asyncio.Event()
    run(main)
    assert manager.state is ManagerState.CLOSED
    assert [handle.status for handle in handles] == [TaskStatus.CANCELLED] * 4
    assert recorder.names().count("cancelled") == 4
    assert recorder.names().count("closed") == 1


@pytest.mark.parametrize("steps", range(6))
def test_cancel_all_tasks_while_leaving(run: Run, steps: int) -> None:
    """Cancelling all asyncio tasks at any step of leaving still reports the end of every task.

    Some programs shut down like this.
    """
    recorder = RecordingObserver()
    manager = Manager(observers=[recorder], limit=1)

    async def serve() -> None:
        async with manager:
            for _ in range(3):
                manager.run(asyncio.sleep, 1000)
            await asyncio.sleep(0)

    async def main() -> None:
        serving = asyncio.create_task(serve())
        await until(lambda: manager.state is ManagerState.CLOSING)
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait([serving])
        assert len(asyncio.all_tasks()) == 1

    run(main)
    assert recorder.names().count("cancelled") == 3
    assert recorder.names().count("closed") == 1


@pytest.mark.parametrize("steps", range(6))
def test_run_ends_without_block(run: Run, steps: int) -> None:
    """`asyncio.run()` ends at any step of closing a manager that was opened."""
    manager = Manager(cancel_timeout=0.01)

    async def main() -> TaskHandle[Any]:
        await manager.open()
        handle = manager.run(cleans_up, 0.01)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asyncio.create_task(manager.close())  # noqa: RUF006
        for _ in range(steps):
            await asyncio.sleep(0)
        return handle

    assert run(main).status is TaskStatus.CANCELLED


@pytest.mark.parametrize("steps", range(12))
def test_cancel_all_tasks_without_block(run: Run, steps: int) -> None:
    """Cancelling all asyncio tasks but the closing one still ends a manager that was opened."""
    manager = Manager(cancel_timeout=0.01)

    async def main() -> None:
        await manager.open()
        manager.run(asyncio.sleep, 1000)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        closing = asyncio.create_task(manager.close(timeout=0))
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task(), closing}:
            task.cancel()
        await closing
        assert len(asyncio.all_tasks()) == 1

    run(main)
    assert manager.state is ManagerState.CLOSED


@pytest.mark.parametrize("steps", range(4))
def test_run_ends_during_cleanup(run: Run, steps: int) -> None:
    """A manager closes if `asyncio.run()` ends while tasks clean up."""
    manager = Manager()

    async def serve() -> None:
        async with manager:
            manager.run(cleans_up, 0.01)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await manager.close(timeout=0)

    async def main() -> None:
        asyncio.create_task(serve())  # noqa: RUF006
        await until(lambda: manager.state is ManagerState.CLOSING)
        for _ in range(steps):
            await asyncio.sleep(0)

    run(main)
    assert manager.state is ManagerState.CLOSED


def test_run_ends_without_leaving(run: Run) -> None:
    """`asyncio.run()` ends and cancels the tasks of a manager that was never left."""

    async def main() -> TaskHandle[Any]:
        manager = await Manager().__aenter__()
        manager.every(1000, checkpoint)
        handle = manager.run(asyncio.sleep, 1000)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return handle

    assert run(main).status is TaskStatus.CANCELLED


def test_run_ends_with_stuck_task(run: Run) -> None:
    """`asyncio.run()` ends and cancels a task that the manager reported as stuck."""

    async def main() -> TaskHandle[Any]:
        async with Manager(cancel_timeout=0.01) as manager:
            handle = manager.run(cleans_up, 1000)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            report = await manager.close(timeout=0)
            assert report.stuck == (handle,)
        return handle

    assert run(main).status is TaskStatus.CANCELLED


def test_run_ends_with_stuck_thread(run: Run) -> None:
    """`asyncio.run()` ends without waiting for a stuck thread."""
    entered, release = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        release.wait(SOON)

    async def main() -> TaskHandle[Any]:
        async with Manager(cancel_timeout=0.01) as manager:
            handle = manager.run(work)
            await until(lambda: entered.wait(0.05))
            report = await manager.close(timeout=0)
            assert report.stuck == (handle,)
        return handle

    handle = run(main)
    assert not release.is_set()
    release.set()
    assert handle.status is TaskStatus.CANCELLED


def test_cancel_all_tasks_in_block(run: Run) -> None:
    """Cancelling all asyncio tasks ends the manager's tasks, even before their first step.

    Some programs shut down like this.
    """

    async def main() -> list[TaskStatus]:
        async with Manager() as manager:
            started = manager.run(asyncio.sleep, 1000)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            fresh = manager.run(asyncio.sleep, 1000)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            return [await started.wait(), await fresh.wait()]

    assert run(main) == [TaskStatus.CANCELLED] * 2


def test_native_cancellation_of_task(run: Run) -> None:
    """A native cancellation ends the task that it hits as cancelled, and no other task."""

    async def cancel_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1000)

    async def main() -> None:
        recorder = RecordingObserver()
        async with Manager(observers=[recorder], retry=5) as manager:
            handle = manager.run(cancel_itself)
            with pytest.raises(TaskCancelledError, match="outside the manager"):
                await handle
            assert await manager.run(asyncio.sleep, 0, "fine") == "fine"
        assert recorder.names(handle.id) == ["added", "started", "cancelled"]

    run(main)


def test_request_from_callback(run: Run) -> None:
    """A shutdown can be requested in a callback of the event loop, which belongs to no task."""

    async def main() -> TaskStatus:
        async with Manager(grace=0.01) as manager:
            handle = manager.run(asyncio.sleep, 1000)
            asyncio.get_running_loop().call_soon(manager.request_shutdown)
            return await handle.wait()

    assert run(main) is TaskStatus.CANCELLED


def test_submission_from_callback(run: Run) -> None:
    """A task can be submitted in a callback of the event loop."""
    recorder = RecordingObserver()
    seen: list[str] = []

    class Later(Observer):
        async def on_task_added(self, event: Any) -> None:
            seen.append("added")

    async def work() -> None:
        seen.append("ran")

    async def main() -> None:
        async with Manager(observers=[Later(), recorder]) as manager:
            asyncio.get_running_loop().call_soon(manager.run, work)
            await recorder.wait_for(TaskSucceeded)

    run(main)
    assert sorted(seen) == ["added", "ran"]


def test_timeout_none_after_signal(run: Run) -> None:
    """`close(timeout=None)` waives the grace of a signal that ends the program afterwards."""
    statuses: list[TaskStatus] = []

    async def main() -> None:
        async with Manager(signals=[signal.SIGINT], grace=0.01) as manager:
            handle = manager.run(asyncio.sleep, 0.05)
            signal.raise_signal(signal.SIGINT)
            await manager.shutdown_requested()
            await asyncio.sleep(0)
            await manager.close(timeout=None)
            statuses.append(handle.status)

    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert statuses == [TaskStatus.SUCCEEDED]


def test_signal_after_closing(run: Run) -> None:
    """A signal while the last services end is deferred until the block has been left."""
    seen: list[tuple[float, int]] = []

    class Late(Observer):
        async def watch(self, manager: Manager) -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        try:
            async with Manager(signals=[signal.SIGINT], observers=[Late()]):
                await asyncio.sleep(0.01)
                left_at = loop.time()
        finally:
            seen.append((loop.time() - left_at, len(asyncio.all_tasks())))

    with pytest.raises(KeyboardInterrupt):
        run(main)
    ((took, tasks),) = seen
    assert took < 1
    assert tasks == 1


def test_wrong_order_of_leaving(run: Run) -> None:
    """Two managers that are left in the wrong order still wait for their tasks."""

    async def main() -> list[TaskStatus]:
        first, second = Manager(), Manager()
        await first.__aenter__()
        await second.__aenter__()
        handles = [first.run(asyncio.sleep, 0.01), second.run(asyncio.sleep, 0.02)]
        for manager in (first, second):
            with suppress(RuntimeError):
                await manager.__aexit__(None, None, None)
        assert first.state is second.state is ManagerState.CLOSED
        return [handle.status for handle in handles]

    assert run(main) == [TaskStatus.SUCCEEDED] * 2


# trio


def test_trio_ends_without_leaving() -> None:
    """The end of trio's event loop cancels the tasks of a manager that was never left."""
    import trio

    async def main() -> TaskHandle[Any]:
        manager = Manager()
        await manager.open()
        handle = manager.run(ages)
        manager.every(1000, checkpoint)
        await anyio.wait_all_tasks_blocked()
        return handle

    handle = trio.run(main)
    assert handle.status is TaskStatus.CANCELLED


def test_trio_ends_while_closing() -> None:
    """trio's event loop ends although a manager that was never left is closing.

    A service that is restarted after its cancellation would run forever.
    """
    handles: list[TaskHandle[Any]] = []

    async def main() -> None:
        manager = Manager()
        await manager.open()
        handles.append(manager.run(cleans_up, 0.05))
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.01):
            await manager.close()

    thread = threading.Thread(
        target=anyio.run, args=(main,), kwargs={"backend": "trio"}, daemon=True
    )
    thread.start()
    thread.join(SOON)
    assert not thread.is_alive()
    assert handles[0].status is TaskStatus.CANCELLED


def test_keyboard_interrupt_on_trio() -> None:
    """A `KeyboardInterrupt` in the body cancels the tasks on trio."""
    backend, options = virtual_time("trio")
    recorder = RecordingObserver()

    async def main() -> None:
        async with Manager(observers=[recorder]) as manager:
            manager.run(ages)
            await anyio.sleep(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend, backend_options=options)
    assert len(report_to(recorder).cancelled) == 1
