"""How a manager says that it stands."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from support.time import SOON, ages

from background import Health, Manager, ManagerState, Observer, Task, TaskKind, TaskStatus


async def test_before_entering_a_manager_is_not_well() -> None:
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


async def test_it_is_well_while_it_takes_one_offs() -> None:
    seen: list[tuple[ManagerState, bool]] = []

    def look() -> None:
        health = manager.health()
        assert health.state is manager.state
        seen.append((health.state, health.ok))

    manager = Manager()
    look()
    async with manager:
        look()
        manager.request_shutdown()
        look()
        manager.run(anyio.sleep, 1)
        async with anyio.create_task_group() as group:
            group.start_soon(manager.close)
            await anyio.sleep(0.5)
            look()
        look()
    assert seen == [
        (ManagerState.NEW, False),
        (ManagerState.RUNNING, True),
        (ManagerState.STOPPING, True),
        (ManagerState.CLOSING, False),
        (ManagerState.CLOSED, False),
    ]


async def test_closed_before_it_was_entered() -> None:
    manager = Manager()
    await manager.close()
    health = manager.health()
    assert (health.state, health.ok) == (ManagerState.CLOSED, False)


async def test_it_counts_what_is_outstanding() -> None:
    async def fails() -> None:
        raise ValueError

    async with Manager(limit=3) as manager:
        retrying = manager.run_task(Task(fails, retry=10))
        running = [manager.run(ages) for _ in range(2)]
        while {each.status for each in running} != {TaskStatus.RUNNING}:
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
async def test_it_counts_threads(manager: Manager) -> None:
    release = threading.Event()
    entered = [threading.Event() for _ in range(3)]

    def work(which: int) -> None:
        entered[which].set()
        release.wait(SOON)

    for which in range(3):
        manager.run(work, which)
    for each in entered:
        assert await anyio.to_thread.run_sync(each.wait, SOON)
    assert manager.health().threads == 3
    release.set()
    await manager.wait()
    assert manager.health().threads == 0


@pytest.mark.realtime
async def test_it_can_be_asked_from_another_thread(manager: Manager) -> None:
    health = await anyio.to_thread.run_sync(manager.health)
    assert health.ok
    assert health.name == "test"


async def test_it_counts_what_went_wrong_with_observers() -> None:
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
        await anyio.sleep(1)  # for the async hooks to be called
        assert manager.health().hook_errors == 6
        assert manager.health().events_dropped == 0
        for _ in range(1030):
            manager.run(ages)
        assert manager.health().events_dropped == 1033 - 1025
        await manager.close(timeout=0)
        assert manager.health().hook_errors >= 6


async def test_what_observers_of_single_tasks_got_wrong_counts_too(manager: Manager) -> None:
    class Broken(Observer):
        def on_task_started(self, event: Any) -> None:
            raise ValueError

    for _ in range(3):
        await manager.run_task(Task(anyio.sleep, args=(0,), observers=(Broken(),)))
    assert manager.health().hook_errors == 3


async def test_a_manager_shows_its_name_and_state() -> None:
    manager = Manager(name="mine")
    assert repr(manager) == "<Manager 'mine' new>"
    async with manager:
        assert repr(manager) == "<Manager 'mine' running>"
    assert repr(manager) == "<Manager 'mine' closed>"
