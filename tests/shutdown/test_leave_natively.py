"""Leaving a manager's block by the cancellation of asyncio and trio themselves."""

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
from support.leaving import Run, cleans_up, fails_after, report_to
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
    """Go on in the very step of the event loop in which something has become true."""
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never became true")


# asyncio's own ways


def test_cancelling_the_native_task(run: Run) -> None:
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


def test_cancelling_the_native_task_while_it_leaves(run: Run) -> None:
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


def test_cancelling_the_native_task_again_and_again(run: Run) -> None:
    """Whoever is impatient gets no less: the tasks keep their time to clean up."""
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


def test_a_native_timeout_around_the_block(run: Run) -> None:
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


def test_a_native_timeout_while_leaving(run: Run) -> None:
    async def main() -> TaskStatus:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                async with Manager() as manager:
                    handle = manager.run(asyncio.sleep, 1000)
        return handle.status

    assert run(main) is TaskStatus.CANCELLED


def test_a_critical_failure_does_not_leave_a_native_cancellation_behind(run: Run) -> None:
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
def test_asyncio_run_ends_while_a_manager_is_open(run: Run, steps: int) -> None:
    """It cancels every task there is, those of the manager among them."""
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
def test_asyncio_run_ends_while_a_manager_is_left(run: Run, steps: int) -> None:
    """Everything is told of its end, whatever step of closing the cancellation hits."""
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
def test_cancelling_every_task_while_a_manager_is_left(run: Run, steps: int) -> None:
    """As careless shutdown code does, in whatever step of closing: also the first."""
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


@pytest.mark.parametrize("steps", range(4))
def test_asyncio_run_ends_while_tasks_clean_up(run: Run, steps: int) -> None:
    done: list[str] = []
    manager = Manager()

    async def serve() -> None:
        async with manager:
            manager.run(cleans_up, 0.01, done)
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


def test_asyncio_run_ends_with_a_manager_that_was_never_left(run: Run) -> None:
    """Nobody sees to its tasks then, but nothing hangs either."""

    async def main() -> TaskHandle[Any]:
        manager = await Manager().__aenter__()
        manager.every(1000, checkpoint)
        handle = manager.run(asyncio.sleep, 1000)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return handle

    assert run(main).status is TaskStatus.CANCELLED


def test_asyncio_run_ends_with_a_stuck_task_left_behind(run: Run) -> None:
    async def main() -> TaskHandle[Any]:
        async with Manager(cancel_timeout=0.01) as manager:
            handle = manager.run(cleans_up, 1000)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            report = await manager.close(timeout=0)
            assert report.stuck == (handle,)
        return handle

    assert run(main).status is TaskStatus.CANCELLED


def test_asyncio_run_ends_with_a_thread_left_behind(run: Run) -> None:
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


def test_cancelling_every_task_inside_the_block(run: Run) -> None:
    """As careless shutdown code does: no task may be lost in its first step."""

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


def test_a_task_that_a_native_cancellation_hits(run: Run) -> None:
    async def stops_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1000)

    async def main() -> None:
        recorder = RecordingObserver()
        async with Manager(observers=[recorder], retry=5) as manager:
            handle = manager.run(stops_itself)
            with pytest.raises(TaskCancelledError, match="outside the manager"):
                await handle
            assert await manager.run(asyncio.sleep, 0, "fine") == "fine"
        assert recorder.names(handle.id) == ["added", "started", "cancelled"]

    run(main)


def test_the_end_of_the_grace_with_plain_asyncio(run: Run) -> None:
    """The request comes from a callback, which belongs to no task."""

    async def main() -> TaskStatus:
        async with Manager(grace=0.01) as manager:
            handle = manager.run(asyncio.sleep, 1000)
            asyncio.get_running_loop().call_soon(manager.request_shutdown)
            return await handle.wait()

    assert run(main) is TaskStatus.CANCELLED


def test_submitting_from_a_callback_with_plain_asyncio(run: Run) -> None:
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


def test_waiting_as_long_as_it_takes_waives_the_grace_of_a_signal(run: Run) -> None:
    """Also of one that ends the program afterwards."""
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


def test_a_signal_after_closing_starts_nothing(run: Run) -> None:
    """One that comes while the last services end is put off until the block has been left."""
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


def test_two_managers_left_in_the_wrong_order(run: Run) -> None:
    """The tasks of both are seen to their end all the same."""

    async def main() -> list[TaskStatus]:
        one, other = Manager(), Manager()
        await one.__aenter__()
        await other.__aenter__()
        handles = [one.run(asyncio.sleep, 0.01), other.run(asyncio.sleep, 0.02)]
        for manager in (one, other):
            with suppress(RuntimeError):
                await manager.__aexit__(None, None, None)
        assert one.state is other.state is ManagerState.CLOSED
        return [handle.status for handle in handles]

    assert run(main) == [TaskStatus.SUCCEEDED] * 2


# trio's own ways


def test_trio_ends_with_a_manager_that_was_never_left() -> None:
    import trio

    async def main() -> TaskHandle[Any]:
        manager = await Manager().__aenter__()
        handle = manager.run(ages)
        manager.every(1000, checkpoint)
        await anyio.wait_all_tasks_blocked()
        manager._runtime._body.__exit__(None, None, None)  # type: ignore[union-attr]
        return handle

    handle = trio.run(main)
    assert handle.status is TaskStatus.CANCELLED


def test_trio_ends_with_a_manager_that_was_never_left_but_closes() -> None:
    """Nothing starts again and again what the end of the event loop cancels."""
    handles: list[TaskHandle[Any]] = []

    async def main() -> None:
        manager = await Manager().__aenter__()
        handles.append(manager.run(cleans_up, 0.05))
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.01):
            await manager.close()
        manager._runtime._body.__exit__(None, None, None)  # type: ignore[union-attr]

    thread = threading.Thread(
        target=anyio.run, args=(main,), kwargs={"backend": "trio"}, daemon=True
    )
    thread.start()
    thread.join(SOON)
    assert not thread.is_alive()
    assert handles[0].status is TaskStatus.CANCELLED


def test_keyboard_interrupt_handed_to_trio_in_the_middle_of_the_body() -> None:
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
