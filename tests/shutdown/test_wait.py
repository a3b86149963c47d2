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


async def test_wait_ignores_loops(manager: Manager, clock: Clock) -> None:
    """`wait()` waits for one-offs, also for delayed ones, and not for loops."""
    manager.loop(anyio.sleep, 1)
    manager.run(anyio.sleep, 5)
    manager.after(20, anyio.sleep, 5)
    await manager.wait()
    assert clock.now == 25
    assert manager.count(TaskKind.LOOP) == 1
    assert manager.state is ManagerState.RUNNING


async def test_wait_is_cancellation_point(manager: Manager) -> None:
    """`wait()` and `stop_loops()` are cancellation points even if there is no task."""
    for wait in (manager.wait, manager.stop_loops):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await wait()
        assert scope.cancelled_caught


async def test_new_one_offs(manager: Manager, clock: Clock) -> None:
    """`wait()` includes one-offs that are submitted meanwhile."""

    async def chain(left: int) -> None:
        await anyio.sleep(1)
        if left:
            manager.run(chain, left - 1)

    manager.run(chain, 9)
    await manager.wait()
    assert clock.now == 10


async def test_follow_up_task(manager: Manager, clock: Clock) -> None:
    """`wait()` includes a one-off that is submitted when the last one has ended.

    All tasks that wait for the same end run before `wait()` returns, in any order.
    """

    async def follow(first: TaskHandle[None]) -> None:
        await first
        manager.run(anyio.sleep, 5)

    for _ in range(10):
        async with anyio.create_task_group() as group:
            group.start_soon(follow, manager.run(anyio.sleep, 5))
            await anyio.sleep(1)
            await manager.wait()
    assert clock.now == 100


async def test_submission_as_last_task_ends(clock: Clock) -> None:
    """`wait()` includes a one-off that is submitted in the step in which the last one ends.

    The waiter has been woken by then, but has not run.
    """

    class Submitting(Observer):
        @contextmanager
        def around_task(self, event: TaskStarted) -> Generator[None]:
            yield
            if event.id == "first":
                assert manager.count() == 0
                manager.run(anyio.sleep, 5)

    async with Manager(observers=[Submitting()]) as manager:
        manager.run_task(Task(anyio.sleep, args=(5,), id="first"))
        await manager.wait()
        assert clock.now == 10


async def test_wait_in_task(manager: Manager, clock: Clock) -> None:
    """Tasks that call `wait()` wait neither for themselves nor for each other."""

    async def wait() -> float:
        with anyio.fail_after(1000):
            await manager.wait()
        return clock.now

    handles = [manager.run(wait) for _ in range(3)]
    manager.run(anyio.sleep, 5)
    assert [await handle for handle in handles] == [5, 5, 5]


async def test_wait_outside_task(manager: Manager, clock: Clock) -> None:
    """`wait()` outside of tasks includes the tasks that call `wait()`."""

    async def wait() -> None:
        await manager.wait()
        await anyio.sleep(7)

    manager.run(wait)
    manager.run(anyio.sleep, 5)
    await anyio.wait_all_tasks_blocked()
    await manager.wait()
    assert clock.now == 12
    assert manager.count() == 0


async def test_stop_loops_in_loop(manager: Manager, clock: Clock) -> None:
    """Loops that call `stop_loops()` wait neither for themselves nor for each other."""
    ended: list[float] = []

    async def stop() -> None:
        await anyio.sleep(1)
        with anyio.fail_after(1000):
            await manager.stop_loops()
        ended.append(clock.now)

    handles = [manager.loop(stop), manager.loop(stop)]
    manager.loop(anyio.sleep, 10)
    for handle in handles:
        with pytest.raises(TaskCancelledError, match="stopped"):
            await handle
    assert ended == [10, 10]
    assert manager.count() == 0
    assert manager.state is ManagerState.RUNNING


async def test_stop_loops_repeatedly(manager: Manager, clock: Clock) -> None:
    """`stop_loops()` can be called concurrently and again; only new loops are refused after it."""
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


async def test_cancelled_stop_loops(manager: Manager) -> None:
    """A cancelled call of `stop_loops()` still stops the loops."""
    handle = manager.every(10, checkpoint)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await manager.stop_loops()
    assert handle.status is TaskStatus.CANCELLED


async def test_wait_after_closing() -> None:
    """No method waits for a stuck task after the manager has closed."""
    async with Manager(cancel_timeout=1) as manager:
        stuck = manager.run(cleans_up, 1000)
        await anyio.wait_all_tasks_blocked()
        await manager.close(timeout=0)
        with anyio.fail_after(1):
            await manager.wait()
            await manager.stop_loops()
            await manager.shutdown_requested()
    assert stuck.status is TaskStatus.RUNNING
    await stuck.wait()


async def test_pending_wait_at_stuck_task(clock: Clock) -> None:
    """A pending `wait()` returns when closing reports the last task as stuck."""
    async with Manager(cancel_timeout=1) as manager:
        stuck = manager.run(cleans_up, 1000)
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as group:
            group.start_soon(manager.wait)
            await anyio.wait_all_tasks_blocked()
            await manager.close(timeout=0)
        assert clock.now < 2
    await stuck.wait()
