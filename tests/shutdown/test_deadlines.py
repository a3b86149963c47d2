"""The deadlines of closing a manager."""

from __future__ import annotations

import threading
from math import inf, nan
from typing import Any

import anyio
import anyio.from_thread
import pytest
from support.closing import cleans_up, counts
from support.time import SOON, Clock, ages

from background import (
    Manager,
    ManagerState,
    TaskCancelled,
    TaskStatus,
)
from background.testing import RecordingObserver


@pytest.mark.parametrize("timeout", [-1, -0.001, nan, inf, True, "5"])
async def test_a_timeout_that_cannot_work_is_refused_before_anything_happens(
    manager: Manager, timeout: Any
) -> None:
    with pytest.raises(ValueError, match="timeout must be"):
        await manager.close(timeout=timeout)
    assert manager.state is ManagerState.RUNNING
    with pytest.raises(ValueError, match="timeout must be"):
        await Manager().close(timeout=timeout)


async def test_no_time_at_all(manager: Manager, recorder: RecordingObserver, clock: Clock) -> None:
    handle = manager.run(ages)
    await anyio.wait_all_tasks_blocked()
    report = await manager.close(timeout=0)
    assert clock.now == 0
    assert report.cancelled == (handle,)
    assert recorder.of(TaskCancelled)[0].reason == "shutdown"


async def test_no_time_at_all_for_what_has_not_made_a_step(manager: Manager) -> None:
    ran: list[int] = []

    async def work() -> None:
        ran.append(1)

    handle = manager.run(work)
    report = await manager.close(timeout=0)
    assert (report.not_started, report.succeeded) in (((handle,), ()), ((), (handle,)))
    assert len(ran) == len(report.succeeded)


async def test_a_timeout_leaves_alone_what_ends_before(manager: Manager, clock: Clock) -> None:
    manager.run(anyio.sleep, 5)
    report = await manager.close(timeout=10)
    assert clock.now == 5
    assert counts(report) == {"succeeded": 1}


async def test_clean_up_has_time(clock: Clock) -> None:
    async with Manager(cancel_timeout=5) as manager:
        handle = manager.run(cleans_up, 4.9)
        await anyio.wait_all_tasks_blocked()
        report = await manager.close(timeout=1)
    assert clock.now == 5.9
    assert report.cancelled == (handle,)


async def test_clean_up_that_takes_too_long_is_stuck(clock: Clock) -> None:
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


async def test_without_time_for_clean_up_those_who_need_none_are_not_stuck(clock: Clock) -> None:
    async with Manager(cancel_timeout=0) as manager:
        quick = [manager.run(ages) for _ in range(20)]
        slow = manager.run(cleans_up, 1)
        await anyio.wait_all_tasks_blocked()
        report = await manager.close(timeout=1)
        assert clock.now == 1
        assert set(report.cancelled) == set(quick)
        assert report.stuck == (slow,)
    await slow.wait()


async def test_a_task_that_swallows_one_cancellation_may_finish(clock: Clock) -> None:
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
async def test_a_task_that_swallows_every_cancellation_is_stuck() -> None:
    release = threading.Event()

    async def work() -> None:
        while not release.is_set():
            try:
                await anyio.sleep(0.001)  # stands here
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
async def test_a_thread_that_does_not_return_is_stuck_until_it_does() -> None:
    entered, release = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        release.wait(SOON)  # stands here

    async with Manager(cancel_timeout=0.05) as manager:
        handle = manager.run(work)
        assert await anyio.to_thread.run_sync(entered.wait, SOON)
        report = await manager.close(timeout=0)
        assert report.stuck == (handle,)
        assert report.stacks[handle.id][0].name == "work"
        assert "stands here" in str(report)
        assert manager.health().threads == 1
    assert manager.state is ManagerState.CLOSED
    assert not release.is_set()
    release.set()
    assert await handle.wait() is TaskStatus.CANCELLED
    assert handle.stack() == []
    assert manager.count() == 0
    assert report.stuck == (handle,)


async def test_a_later_close_can_only_tighten_the_deadline(manager: Manager, clock: Clock) -> None:
    handle = manager.run(ages)

    async def later(delay: float, timeout: float) -> None:
        await anyio.sleep(delay)
        await manager.close(timeout=timeout)

    async with anyio.create_task_group() as group:
        group.start_soon(later, 0, 50)
        group.start_soon(later, 1, 100)
        group.start_soon(later, 2, 10)
        group.start_soon(later, 3, 500)
    assert clock.now == 12
    assert (await manager.close()).cancelled == (handle,)


async def test_a_close_without_a_timeout_leaves_anothers_deadline_alone(
    manager: Manager, clock: Clock
) -> None:
    manager.run(ages)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: manager.close(timeout=10))
        await anyio.sleep(1)
        group.start_soon(manager.close)
    assert clock.now == 10


async def test_a_close_that_waits_for_ever_leaves_anothers_deadline_alone(
    manager: Manager, clock: Clock
) -> None:
    """`None` waives the grace after a shutdown request, not what somebody else asked for."""
    manager.run(anyio.sleep, 100)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: manager.close(timeout=10))
        await anyio.sleep(1)
        group.start_soon(lambda: manager.close(timeout=None))
    assert clock.now == 10


async def test_a_deadline_during_clean_up_changes_nothing(clock: Clock) -> None:
    async with Manager(cancel_timeout=5) as manager:
        handle = manager.run(cleans_up, 4)
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: manager.close(timeout=1))
            await anyio.sleep(2)
            report = await manager.close(timeout=0)
    assert clock.now == 5
    assert report.cancelled == (handle,)
