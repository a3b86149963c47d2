"""`wait()` and `stop_loops()`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.closing import cleans_up
from support.time import Clock

from background import (
    LoopsStoppedError,
    Manager,
    ManagerState,
    Observer,
    Task,
    TaskCancelledError,
    TaskHandle,
    TaskKind,
    TaskStarted,
    TaskStatus,
)


async def test_waiting_for_one_offs_only(manager: Manager, clock: Clock) -> None:
    manager.loop(anyio.sleep, 1)
    manager.run(anyio.sleep, 5)
    manager.after(20, anyio.sleep, 5)
    await manager.wait()
    assert clock.now == 25
    assert manager.count(TaskKind.LOOP) == 1
    assert manager.state is ManagerState.RUNNING


async def test_waiting_for_nothing_is_a_cancellation_point(manager: Manager) -> None:
    for wait in (manager.wait, manager.stop_loops):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await wait()
        assert scope.cancelled_caught


async def test_new_one_offs_prolong_the_wait(manager: Manager, clock: Clock) -> None:
    async def chain(left: int) -> None:
        await anyio.sleep(1)
        if left:
            manager.run(chain, left - 1)

    manager.run(chain, 9)
    await manager.wait()
    assert clock.now == 10


async def test_a_one_off_that_follows_the_last_one_prolongs_the_wait(
    manager: Manager, clock: Clock
) -> None:
    """Whoever was woken by the same end has a turn before the wait is over, in any order."""

    async def follow(first: TaskHandle[None]) -> None:
        await first
        manager.run(anyio.sleep, 5)

    for _ in range(10):
        async with anyio.create_task_group() as group:
            group.start_soon(follow, manager.run(anyio.sleep, 5))
            await anyio.sleep(1)
            await manager.wait()
    assert clock.now == 100


async def test_a_one_off_that_comes_as_the_last_one_ends_prolongs_the_wait(clock: Clock) -> None:
    """Who waits has been woken by then, but has not made a step."""

    class Follows(Observer):
        @contextmanager
        def around_task(self, event: TaskStarted) -> Generator[None]:
            yield
            if event.id == "first":
                assert manager.count() == 0
                manager.run(anyio.sleep, 5)

    async with Manager(observers=[Follows()]) as manager:
        manager.run_task(Task(anyio.sleep, args=(5,), id="first"))
        await manager.wait()
        assert clock.now == 10


async def test_waiting_inside_a_task_leaves_that_one_out(manager: Manager, clock: Clock) -> None:
    async def waits() -> float:
        with anyio.fail_after(1000):
            await manager.wait()
        return clock.now

    handles = [manager.run(waits) for _ in range(3)]
    manager.run(anyio.sleep, 5)
    assert [await handle for handle in handles] == [5, 5, 5]


async def test_waiting_outside_includes_the_tasks_that_wait(manager: Manager, clock: Clock) -> None:
    """They wait for the others, but nobody outside waits for less than all."""

    async def waits() -> None:
        await manager.wait()
        await anyio.sleep(7)

    manager.run(waits)
    manager.run(anyio.sleep, 5)
    await anyio.wait_all_tasks_blocked()
    await manager.wait()
    assert clock.now == 12
    assert manager.count() == 0


async def test_stopping_loops_inside_a_loop(manager: Manager, clock: Clock) -> None:
    ended: list[float] = []

    async def stops() -> None:
        await anyio.sleep(1)
        with anyio.fail_after(1000):
            await manager.stop_loops()
        ended.append(clock.now)

    handles = [manager.loop(stops), manager.loop(stops)]
    manager.loop(anyio.sleep, 10)
    for handle in handles:
        with pytest.raises(TaskCancelledError, match="stopped"):
            await handle
    assert ended == [10, 10]
    assert manager.count() == 0
    assert manager.state is ManagerState.RUNNING


async def test_stopping_loops_concurrently_and_again(manager: Manager, clock: Clock) -> None:
    manager.loop(anyio.sleep, 10)
    await anyio.sleep(1)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(manager.stop_loops)
    assert clock.now == 10
    await manager.stop_loops()
    with pytest.raises(LoopsStoppedError):
        manager.loop(checkpoint)
    await manager.run(checkpoint)


async def test_a_cancelled_stop_still_stops(manager: Manager) -> None:
    handle = manager.every(10, checkpoint)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await manager.stop_loops()
    assert handle.status is TaskStatus.CANCELLED


async def test_waiting_ends_with_closing(manager: Manager) -> None:
    """With a task stuck, everything that waits is let go when the manager has closed."""
    async with Manager(cancel_timeout=1) as other:
        stuck = other.run(cleans_up, 1000)
        await anyio.wait_all_tasks_blocked()
        await other.close(timeout=0)
        with anyio.fail_after(1):
            await other.wait()
            await other.stop_loops()
            await other.shutdown_requested()
    assert stuck.status is TaskStatus.RUNNING
    await stuck.wait()


async def test_a_wait_under_way_is_let_go_when_a_task_is_given_up(clock: Clock) -> None:
    async with Manager(cancel_timeout=1) as manager:
        stuck = manager.run(cleans_up, 1000)
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as group:
            group.start_soon(manager.wait)
            await anyio.wait_all_tasks_blocked()
            await manager.close(timeout=0)
        assert clock.now < 2
    await stuck.wait()
