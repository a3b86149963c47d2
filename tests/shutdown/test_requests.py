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


async def test_a_shutdown_request(recorder: RecordingObserver) -> None:
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


async def test_shutdown_is_requested_by_closing_too(manager: Manager) -> None:
    seen: list[ManagerState] = []

    async def watch() -> None:
        await manager.shutdown_requested()
        seen.append(manager.state)

    manager.run(watch)
    manager.run(anyio.sleep, 10)
    await anyio.wait_all_tasks_blocked()
    assert seen == []
    await manager.close()
    assert seen == [ManagerState.CLOSING]


async def test_closing_after_a_request_has_until_the_end_of_the_grace(clock: Clock) -> None:
    async with Manager(grace=10) as manager:
        handle = manager.run(ages)
        manager.request_shutdown()
        await anyio.sleep(4)
        report = await manager.close()
        assert clock.now == 10
        assert report.cancelled == (handle,)


async def test_a_request_while_closing_sets_the_grace(clock: Clock) -> None:
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


async def test_when_nobody_closes_the_end_of_the_grace_does(
    clock: Clock, recorder: RecordingObserver
) -> None:
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


async def test_no_grace_at_all(clock: Clock) -> None:
    async with Manager(grace=0) as manager:
        handle = manager.run(ages)
        manager.request_shutdown()
        assert manager.state is ManagerState.STOPPING
        assert await handle.wait() is TaskStatus.CANCELLED
        assert clock.now == 0


async def test_an_endless_grace(clock: Clock) -> None:
    async with Manager(grace=None) as manager:
        handle = manager.run(anyio.sleep, 1_000_000)
        manager.request_shutdown()
    assert clock.now == 1_000_000
    assert handle.status is TaskStatus.SUCCEEDED


async def test_a_timeout_tightens_the_grace(clock: Clock) -> None:
    async with Manager(grace=10) as manager:
        manager.run(ages)
        manager.request_shutdown()
        await manager.close(timeout=3)
        assert clock.now == 3


async def test_a_timeout_does_not_lengthen_the_grace(clock: Clock) -> None:
    async with Manager(grace=10) as manager:
        manager.run(ages)
        manager.request_shutdown()
        await manager.close(timeout=30)
        assert clock.now == 10


@pytest.mark.parametrize("order", ["before", "after", "while closing"])
async def test_waiting_as_long_as_it_takes_waives_the_grace(clock: Clock, order: str) -> None:
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


async def test_a_second_request_cancels_at_once(clock: Clock, recorder: RecordingObserver) -> None:
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


async def test_a_second_request_while_closing_cancels_at_once(clock: Clock) -> None:
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
async def test_nothing_waives_a_second_request(clock: Clock, steps: int) -> None:
    """Whoever waits as long as it takes is told by a second request that it has taken too long."""
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


async def test_a_third_request_changes_nothing(clock: Clock) -> None:
    async with Manager(cancel_timeout=5) as manager:
        manager.run(cleans_up, 4)
        await anyio.wait_all_tasks_blocked()
        for _ in range(5):
            manager.request_shutdown()
        report = await manager.close()
        assert clock.now == 4
        assert counts(report) == {"cancelled": 1}


async def test_a_request_after_closing_changes_nothing(recorder: RecordingObserver) -> None:
    async with Manager(observers=[recorder]) as manager:
        await manager.close()
        manager.request_shutdown()
        manager.request_shutdown()
        assert manager.state is ManagerState.CLOSED
    manager.request_shutdown()
    assert manager.state is ManagerState.CLOSED
    assert recorder.names() == ["closing", "closed"]


async def test_the_end_of_the_grace_after_closing_changes_nothing(
    recorder: RecordingObserver,
) -> None:
    async with Manager(grace=10, observers=[recorder]) as manager:
        manager.request_shutdown()
        await manager.close()
        await anyio.sleep(20)
    assert recorder.names() == ["closing", "closed"]


async def test_a_request_from_the_hook_that_tells_of_closing(clock: Clock) -> None:
    class Asks(RecordingObserver):
        def on_manager_closing(self, event: Any) -> None:  # type: ignore[override]
            manager.request_shutdown()
            manager.request_shutdown()

    async with Manager(observers=[Asks()]) as manager:
        manager.run(ages)
        await anyio.sleep(1)
        report = await manager.close()
        assert clock.now == 1
        assert counts(report) == {"cancelled": 1}


@pytest.mark.realtime
async def test_a_request_from_another_thread(manager: Manager) -> None:
    await anyio.to_thread.run_sync(manager.request_shutdown)
    assert manager.state is ManagerState.STOPPING
