"""Shutdown requests."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.closing import cleans_up, counts
from support.time import Clock, ages

from background import (
    LoopsStoppedError,
    Manager,
    ManagerClosing,
    ManagerState,
    TaskCancelledError,
    TaskStatus,
)
from background.testing import RecordingObserver


async def test_first_request(recorder: RecordingObserver) -> None:
    """A shutdown request stops the loops; one-offs are still accepted and run."""
    async with Manager(observers=[recorder]) as manager:
        waiting = manager.every(10, checkpoint)
        delayed = manager.after(3, checkpoint)
        await anyio.sleep(1)
        manager.request_shutdown()
        assert manager.state is ManagerState.STOPPING
        await manager.shutdown_requested()
        assert waiting.status is TaskStatus.CANCELLED
        with pytest.raises(LoopsStoppedError):
            manager.loop(checkpoint)
        await manager.run(checkpoint)
        await delayed
        assert recorder.of(ManagerClosing) == []
    assert manager.state is ManagerState.CLOSED


async def test_close_counts_as_request(manager: Manager) -> None:
    """`shutdown_requested()` returns when closing begins, too."""
    states: list[ManagerState] = []

    async def watch() -> None:
        await manager.shutdown_requested()
        states.append(manager.state)

    manager.run(watch)
    manager.run(anyio.sleep, 10)
    await anyio.wait_all_tasks_blocked()
    assert states == []
    await manager.close()
    assert states == [ManagerState.CLOSING]


async def test_close_after_request(clock: Clock) -> None:
    """`close()` after a shutdown request waits for tasks until the end of the grace."""
    async with Manager(grace=10) as manager:
        handle = manager.run(ages)
        manager.request_shutdown()
        await anyio.sleep(4)
        report = await manager.close()
        assert clock.now == 10
        assert report.cancelled == (handle,)


async def test_request_while_closing(clock: Clock) -> None:
    """A shutdown request while the manager closes starts the grace."""
    async with Manager(grace=10) as manager:
        handle = manager.run(ages)
        async with anyio.create_task_group() as group:
            group.start_soon(manager.close)
            await anyio.sleep(4)
            assert manager.state is ManagerState.CLOSING
            manager.request_shutdown()
            assert manager.state is ManagerState.CLOSING
        assert clock.now == 14
    assert handle.status is TaskStatus.CANCELLED


async def test_grace_ends_without_close(clock: Clock, recorder: RecordingObserver) -> None:
    """The end of the grace closes the manager if `close()` was not called."""
    async with Manager(grace=10, observers=[recorder]) as manager:
        handle = manager.run(ages)
        manager.request_shutdown()
        with pytest.raises(TaskCancelledError, match="shutdown"):
            await handle
        assert clock.now == 10
        (closing,) = recorder.of(ManagerClosing)
        assert "grace" in closing.reason
        await anyio.sleep(1)
        assert manager.state is ManagerState.CLOSED


async def test_zero_grace(clock: Clock) -> None:
    """With `grace=0` a shutdown request cancels the tasks immediately."""
    async with Manager(grace=0) as manager:
        handle = manager.run(ages)
        manager.request_shutdown()
        assert manager.state is ManagerState.STOPPING
        assert await handle.wait() is TaskStatus.CANCELLED
        assert clock.now == 0


async def test_endless_grace(clock: Clock) -> None:
    """With `grace=None` a shutdown request never cancels tasks."""
    async with Manager(grace=None) as manager:
        handle = manager.run(anyio.sleep, 10_000)
        manager.request_shutdown()
    assert clock.now == 10_000
    assert handle.status is TaskStatus.SUCCEEDED


async def test_timeout_shorter_than_grace(clock: Clock) -> None:
    """A timeout that is shorter than the grace replaces it."""
    async with Manager(grace=10) as manager:
        manager.run(ages)
        manager.request_shutdown()
        await manager.close(timeout=3)
        assert clock.now == 3


async def test_timeout_longer_than_grace(clock: Clock) -> None:
    """A timeout that is longer than the grace does not extend it."""
    async with Manager(grace=10) as manager:
        manager.run(ages)
        manager.request_shutdown()
        await manager.close(timeout=30)
        assert clock.now == 10


@pytest.mark.parametrize("order", ["before", "after", "while closing"])
async def test_timeout_none_waives_grace(clock: Clock, order: str) -> None:
    """`close(timeout=None)` waives the grace, before and after the shutdown request."""
    async with Manager(grace=10) as manager:
        handle = manager.run(anyio.sleep, 100)
        if order == "before":
            manager.request_shutdown()
        async with anyio.create_task_group() as group:
            if order == "while closing":
                manager.request_shutdown()
                group.start_soon(manager.close)
                await anyio.sleep(1)
            group.start_soon(lambda: manager.close(timeout=None))
            await anyio.wait_all_tasks_blocked()
            if order == "after":
                manager.request_shutdown()
        assert clock.now == 100
    assert handle.status is TaskStatus.SUCCEEDED


async def test_second_request(clock: Clock, recorder: RecordingObserver) -> None:
    """A second shutdown request cancels the tasks immediately."""
    async with Manager(grace=10, observers=[recorder]) as manager:
        handle = manager.run(ages)
        manager.request_shutdown()
        await anyio.sleep(1)
        manager.request_shutdown()
        assert manager.state is ManagerState.CLOSING
        assert await handle.wait() is TaskStatus.CANCELLED
        assert clock.now == 1
        assert recorder.of(ManagerClosing)[0].reason == "a second shutdown request"
        assert (await manager.close()).cancelled == (handle,)


async def test_second_request_while_closing(clock: Clock) -> None:
    """A second shutdown request cancels the tasks even during `close(timeout=None)`."""
    async with Manager() as manager:
        handle = manager.run(ages)
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: manager.close(timeout=None))
            await anyio.sleep(1)
            manager.request_shutdown()
            await anyio.sleep(1)
            assert handle.status is TaskStatus.RUNNING
            manager.request_shutdown()
        assert clock.now == 2


@pytest.mark.parametrize("steps", range(5))
async def test_timeout_none_after_second_request(clock: Clock, steps: int) -> None:
    """`close(timeout=None)` does not waive a second shutdown request."""
    async with Manager() as manager:
        handle = manager.run(anyio.sleep, 100)
        await anyio.wait_all_tasks_blocked()
        manager.request_shutdown()
        manager.request_shutdown()
        for _ in range(steps):
            await checkpoint()
        await manager.close(timeout=None)
        assert clock.now == 0
        assert handle.status is TaskStatus.CANCELLED


async def test_third_request(clock: Clock) -> None:
    """Shutdown requests after the second one change nothing."""
    async with Manager(cancel_timeout=5) as manager:
        manager.run(cleans_up, 4)
        await anyio.wait_all_tasks_blocked()
        for _ in range(5):
            manager.request_shutdown()
        report = await manager.close()
        assert clock.now == 4
        assert counts(report) == {"cancelled": 1}


async def test_request_after_closing(recorder: RecordingObserver) -> None:
    """Shutdown requests after closing change nothing."""
    async with Manager(observers=[recorder]) as manager:
        await manager.close()
        manager.request_shutdown()
        manager.request_shutdown()
        assert manager.state is ManagerState.CLOSED
    manager.request_shutdown()
    assert manager.state is ManagerState.CLOSED
    assert recorder.names() == ["closing", "closed"]


async def test_grace_ends_after_closing(recorder: RecordingObserver) -> None:
    """The end of the grace after closing changes nothing."""
    async with Manager(grace=10, observers=[recorder]) as manager:
        manager.request_shutdown()
        await manager.close()
        await anyio.sleep(20)
    assert recorder.names() == ["closing", "closed"]


async def test_requests_in_closing_hook(clock: Clock) -> None:
    """Two shutdown requests in `on_manager_closing` cancel the tasks immediately."""

    class Requesting(RecordingObserver):
        def on_manager_closing(self, event: Any) -> None:  # type: ignore[override]
            manager.request_shutdown()
            manager.request_shutdown()

    async with Manager(observers=[Requesting()]) as manager:
        manager.run(ages)
        await anyio.sleep(1)
        report = await manager.close()
        assert clock.now == 1
        assert counts(report) == {"cancelled": 1}


@pytest.mark.realtime
async def test_request_from_thread(manager: Manager) -> None:
    """A shutdown can be requested from another thread."""
    await anyio.to_thread.run_sync(manager.request_shutdown)
    assert manager.state is ManagerState.STOPPING
