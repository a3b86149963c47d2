"""Deadlines of closing."""

from __future__ import annotations

import threading
from contextlib import suppress
from math import inf, nan
from typing import Any

import anyio
import anyio.from_thread
import pytest
from support.closing import cleans_up, closed, counts
from support.time import SOON, Clock, ages

from background import (
    Manager,
    ManagerState,
    TaskCancelled,
    TaskStatus,
)
from background.testing import RecordingObserver


@pytest.mark.parametrize("timeout", [-1, -0.001, nan, inf, True, "5"])
async def test_invalid_timeout(manager: Manager, timeout: Any) -> None:
    """An invalid timeout is refused before it changes anything."""
    with pytest.raises(ValueError, match="timeout must be"):
        await manager.close(timeout=timeout)
    assert manager.state is ManagerState.RUNNING
    with pytest.raises(ValueError, match="timeout must be"):
        await Manager().close(timeout=timeout)


async def test_zero_timeout(manager: Manager, recorder: RecordingObserver, clock: Clock) -> None:
    """`close(timeout=0)` cancels running tasks immediately."""
    handle = manager.run(ages)
    await anyio.wait_all_tasks_blocked()
    report = await manager.close(timeout=0)
    assert clock.now == 0
    assert report.cancelled == (handle,)
    assert recorder.of(TaskCancelled)[0].reason == "shutdown"


async def test_zero_timeout_before_first_step(manager: Manager) -> None:
    """`close(timeout=0)` reports a task before its first step by whether it still ran."""
    ran: list[int] = []

    async def work() -> None:
        ran.append(1)

    handle = manager.run(work)
    report = await manager.close(timeout=0)
    assert (report.not_started, report.succeeded) in (((handle,), ()), ((), (handle,)))
    assert len(ran) == len(report.succeeded)


async def test_task_ends_before_timeout(manager: Manager, clock: Clock) -> None:
    """A task that ends before the timeout is not cancelled."""
    manager.run(anyio.sleep, 5)
    report = await manager.close(timeout=10)
    assert clock.now == 5
    assert counts(report) == {"succeeded": 1}


async def test_cleanup_within_cancel_timeout(clock: Clock) -> None:
    """A cancelled task has `cancel_timeout` seconds to clean up."""
    async with Manager(cancel_timeout=5) as manager:
        handle = manager.run(cleans_up, 4.9)
        await anyio.wait_all_tasks_blocked()
        report = await manager.close(timeout=1)
    assert clock.now == 5.9
    assert report.cancelled == (handle,)


async def test_cleanup_exceeds_cancel_timeout(clock: Clock) -> None:
    """A task whose clean-up exceeds `cancel_timeout` is stuck, and outstanding until it ends."""
    async with Manager(cancel_timeout=5) as manager:
        handle = manager.run(cleans_up, 5.1)
        await anyio.wait_all_tasks_blocked()
        report = await manager.close(timeout=1)
        assert clock.now == 6
        assert report.stuck == (handle,)
        assert handle.status is TaskStatus.RUNNING
    assert clock.now == 6
    assert manager.state is ManagerState.CLOSED
    assert manager.tasks() == [handle]
    with anyio.fail_after(1):
        assert await handle.wait() is TaskStatus.CANCELLED
    assert manager.count() == 0


async def test_zero_cancel_timeout(clock: Clock) -> None:
    """With `cancel_timeout=0` only tasks that need time to clean up are stuck."""
    async with Manager(cancel_timeout=0) as manager:
        quick = [manager.run(ages) for _ in range(20)]
        slow = manager.run(cleans_up, 1)
        await anyio.wait_all_tasks_blocked()
        report = await manager.close(timeout=1)
        assert clock.now == 1
        assert set(report.cancelled) == set(quick)
        assert report.stuck == (slow,)
    await slow.wait()


async def test_task_swallows_cancellation(clock: Clock) -> None:
    """A task that swallows its cancellation and returns has succeeded."""

    async def work() -> str:
        try:
            await ages()
        except anyio.get_cancelled_exc_class():
            return "done anyway"

    async with Manager() as manager:
        handle = manager.run(work)
        await anyio.wait_all_tasks_blocked()
        report = await manager.close(timeout=0)
    assert clock.now == 0
    assert report.succeeded == (handle,)
    assert await handle == "done anyway"


@pytest.mark.realtime
async def test_task_swallows_every_cancellation() -> None:
    """A task that swallows every cancellation is stuck."""
    release = threading.Event()

    async def work() -> None:
        while not release.is_set():
            try:
                await anyio.sleep(0.001)
            except anyio.get_cancelled_exc_class():
                pass

    async with Manager(cancel_timeout=0.05) as manager:
        handle = manager.run(work)
        await anyio.wait_all_tasks_blocked()
        report = await manager.close(timeout=0)
        assert report.stuck == (handle,)
        assert report.stacks[handle.id][0].name == "work"
    assert handle.status is TaskStatus.RUNNING
    assert await manager.close() is report
    release.set()
    await handle.wait()


@pytest.mark.realtime
async def test_stuck_thread() -> None:
    """A task whose thread does not return is stuck, and ends when the thread returns."""
    entered, release = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        release.wait(SOON)  # stuck here

    async with Manager(cancel_timeout=0.05) as manager:
        handle = manager.run(work)
        assert await anyio.to_thread.run_sync(entered.wait, SOON)
        report = await manager.close(timeout=0)
        assert report.stuck == (handle,)
        assert report.stacks[handle.id][0].name == "work"
        assert "stuck here" in str(report)
        assert manager.health().threads == 1
    assert manager.state is ManagerState.CLOSED
    assert not release.is_set()
    release.set()
    assert await handle.wait() is TaskStatus.CANCELLED
    assert handle.stack() == []
    assert manager.count() == 0
    assert report.stuck == (handle,)


async def test_later_close_shortens_deadline(manager: Manager, clock: Clock) -> None:
    """A later call of `close()` can shorten the deadline, but not extend it."""
    handle = manager.run(ages)

    async def close_after(delay: float, timeout: float) -> None:
        await anyio.sleep(delay)
        await manager.close(timeout=timeout)

    async with anyio.create_task_group() as group:
        group.start_soon(close_after, 0, 50)
        group.start_soon(close_after, 1, 100)
        group.start_soon(close_after, 2, 10)
        group.start_soon(close_after, 3, 500)
    assert clock.now == 12
    assert (await manager.close()).cancelled == (handle,)


async def test_later_close_without_timeout(manager: Manager, clock: Clock) -> None:
    """A later call of `close()` without a timeout does not change the deadline."""
    manager.run(ages)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: manager.close(timeout=10))
        await anyio.sleep(1)
        group.start_soon(manager.close)
    assert clock.now == 10


async def test_later_close_with_timeout_none(manager: Manager, clock: Clock) -> None:
    """A later `close(timeout=None)` waives the grace only, not the deadline of an earlier call."""
    manager.run(anyio.sleep, 100)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: manager.close(timeout=10))
        await anyio.sleep(1)
        group.start_soon(lambda: manager.close(timeout=None))
    assert clock.now == 10


async def test_deadline_during_cleanup(clock: Clock) -> None:
    """A new deadline while tasks clean up does not shorten `cancel_timeout`."""
    async with Manager(cancel_timeout=5) as manager:
        handle = manager.run(cleans_up, 4)
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: manager.close(timeout=1))
            await anyio.sleep(2)
            report = await manager.close(timeout=0)
    assert clock.now == 5
    assert report.cancelled == (handle,)


# The time for leaving the block


@pytest.mark.parametrize("leave_timeout", [-1, nan, inf, True, "5"])
def test_invalid_leave_timeout(leave_timeout: Any) -> None:
    """An invalid `leave_timeout` is refused."""
    with pytest.raises(ValueError, match="leave_timeout must be"):
        Manager(leave_timeout=leave_timeout)


@pytest.mark.parametrize("error", [None, ValueError("of the body")])
async def test_leave_timeout(clock: Clock, error: Exception | None) -> None:
    """Leaving the block cancels tasks `leave_timeout` seconds later."""
    with suppress(ValueError):
        async with Manager(leave_timeout=30) as manager:
            finished = manager.run(anyio.sleep, 29)
            endless = manager.run(ages)
            await anyio.sleep(5)
            if error is not None:
                raise error
    assert clock.now == 35
    assert finished.status is TaskStatus.SUCCEEDED
    assert endless.status is TaskStatus.CANCELLED


async def test_leave_timeout_and_grace(clock: Clock) -> None:
    """The earlier one of `leave_timeout` and `grace` ends the waiting."""
    for leave_timeout, seconds in ((30, 15), (10, 10)):
        async with Manager(leave_timeout=leave_timeout, grace=20) as manager:
            manager.run(ages)
            manager.request_shutdown()
            await anyio.sleep(5)
            began = clock.now
        assert clock.now - began == seconds


async def test_leave_timeout_while_closing(clock: Clock) -> None:
    """Leaving the block while `close()` waits without a timeout counts `leave_timeout`."""
    async with Manager(leave_timeout=30) as manager:
        manager.run(ages)
        with anyio.move_on_after(5):
            await manager.close(timeout=None)
    assert clock.now == 35


async def test_leave_timeout_before_leaving(clock: Clock) -> None:
    """`leave_timeout` does not bound a call of `close()` in the block."""
    async with Manager(leave_timeout=5) as manager:
        handle = manager.run(anyio.sleep, 100)
        await manager.close()
    assert clock.now == 100
    assert handle.status is TaskStatus.SUCCEEDED


async def test_leave_timeout_of_closing_task(clock: Clock) -> None:
    """`leave_timeout` bounds the wait for a task that called `close()`."""

    async def closer() -> None:
        await closed(manager)
        await ages()

    async with Manager(leave_timeout=30) as manager:
        handle = manager.run(closer)
    assert clock.now == 30
    assert handle.status is TaskStatus.CANCELLED
