"""Health reports of managers."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from support.time import SOON, ages

from background import Health, Manager, ManagerState, Observer, Task, TaskKind, TaskStatus


async def test_health_before_enter() -> None:
    """A manager that was not entered is not healthy, and all its counts are zero."""
    assert Manager(name="shop").health() == Health(
        name="shop",
        state=ManagerState.NEW,
        ok=False,
        waiting=0,
        running=0,
        retrying=0,
        loops=0,
        threads=0,
        hook_errors=0,
        events_dropped=0,
    )


async def test_health_by_state() -> None:
    """A manager is healthy while it accepts one-off tasks."""
    seen: list[tuple[ManagerState, bool]] = []

    def record_health() -> None:
        health = manager.health()
        assert health.state is manager.state
        seen.append((health.state, health.ok))

    manager = Manager()
    record_health()
    async with manager:
        record_health()
        manager.request_shutdown()
        record_health()
        manager.run(anyio.sleep, 1)
        async with anyio.create_task_group() as group:
            group.start_soon(manager.close)
            await anyio.sleep(0.5)
            record_health()
        record_health()
    assert seen == [
        (ManagerState.NEW, False),
        (ManagerState.RUNNING, True),
        (ManagerState.STOPPING, True),
        (ManagerState.CLOSING, False),
        (ManagerState.CLOSED, False),
    ]


async def test_closed_before_enter() -> None:
    """A manager closed before it was entered is not healthy."""
    manager = Manager()
    await manager.close()
    health = manager.health()
    assert (health.state, health.ok) == (ManagerState.CLOSED, False)


async def test_task_counts() -> None:
    """The report counts waiting, running and retrying tasks, and loops."""

    async def fail() -> None:
        raise ValueError

    async with Manager(limit=3) as manager:
        retrying = manager.run_task(Task(fail, retry=10))
        running = [manager.run(ages) for _ in range(2)]
        while {handle.status for handle in running} != {TaskStatus.RUNNING}:
            await checkpoint()
        while retrying.status is not TaskStatus.RETRYING:
            await checkpoint()
        for _ in range(4):
            manager.run(ages)  # above the limit
        for _ in range(5):
            manager.after(1000, ages)
        for _ in range(6):
            manager.loop(ages)
            manager.every(1000, anyio.sleep, 0)
        health = manager.health()
        assert (health.waiting, health.running, health.retrying, health.loops) == (9, 2, 1, 12)
        assert manager.count(TaskKind.ONE_OFF) == 12
        assert manager.count(TaskKind.LOOP) == len(manager.tasks(TaskKind.LOOP)) == 12
        assert manager.count() == len(manager.tasks()) == 24
        await manager.close(timeout=0)
        health = manager.health()
        assert (health.waiting, health.running, health.retrying, health.loops) == (0, 0, 0, 0)


@pytest.mark.realtime
async def test_thread_count(manager: Manager) -> None:
    """The report counts the threads that run sync functions."""
    release = threading.Event()
    entered = [threading.Event() for _ in range(3)]

    def work(index: int) -> None:
        entered[index].set()
        release.wait(SOON)

    for index in range(3):
        manager.run(work, index)
    for event in entered:
        assert await anyio.to_thread.run_sync(event.wait, SOON)
    assert manager.health().threads == 3
    release.set()
    await manager.wait()
    assert manager.health().threads == 0


@pytest.mark.realtime
async def test_health_from_another_thread(manager: Manager) -> None:
    """The report can be requested from another thread."""
    health = await anyio.to_thread.run_sync(manager.health)
    assert health.ok
    assert health.name == "test"


async def test_observer_errors() -> None:
    """The report counts errors of hooks and events that a slow observer missed."""

    class Broken(Observer):
        def on_task_started(self, event: Any) -> None:
            raise ValueError

        async def on_task_succeeded(self, event: Any) -> None:
            raise ValueError

    class Slow(Observer):
        async def on_task_added(self, event: Any) -> None:
            await ages()

    async with Manager(observers=[Broken(), Slow()], cancel_timeout=1) as manager:
        for _ in range(3):
            await manager.run(anyio.sleep, 1)
        await anyio.sleep(1)  # async hooks are called later
        assert manager.health().hook_errors == 6
        assert manager.health().events_dropped == 0
        for _ in range(1030):
            manager.run(ages)
        assert manager.health().events_dropped == 1033 - 1025
        await manager.close(timeout=0)
        assert manager.health().hook_errors >= 6


async def test_task_observer_errors(manager: Manager) -> None:
    """The report counts errors of observers that belong to single tasks."""

    class Broken(Observer):
        def on_task_started(self, event: Any) -> None:
            raise ValueError

    for _ in range(3):
        await manager.run_task(Task(anyio.sleep, args=(0,), observers=(Broken(),)))
    assert manager.health().hook_errors == 3


async def test_repr() -> None:
    """The representation of a manager contains its name and state."""
    manager = Manager(name="shop")
    assert repr(manager) == "<Manager 'shop' new>"
    async with manager:
        assert repr(manager) == "<Manager 'shop' running>"
    assert repr(manager) == "<Manager 'shop' closed>"
