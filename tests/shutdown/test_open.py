"""Managers that are opened and closed without a block."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.closing import cleans_up, closed, counts
from support.leaving import count_tasks, fails_after, report_to, run_in_task
from support.processes.process import PROGRAMS, running
from support.time import SOON, Clock, ages

from background import (
    CloseReport,
    Manager,
    ManagerClosedError,
    ManagerMisuseError,
    ManagerState,
    Observer,
    Task,
    TaskHandle,
    TaskStatus,
)
from background.testing import RecordingObserver

SCRIPT = PROGRAMS / "opened.py"


class Watching(Observer):
    async def watch(self, manager: Manager) -> None:
        await ages()

    async def on_task_succeeded(self, event: Any) -> None:
        await checkpoint()


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


async def start(group: Any, fn: Callable[[], Awaitable[Any]]) -> None:
    """Run `fn` in a task that ends before this function returns."""
    ended = anyio.Event()

    async def run() -> None:
        await fn()
        ended.set()

    group.start_soon(run)
    await ended.wait()
    await anyio.wait_all_tasks_blocked()


# Opening and closing


async def test_open_and_close(clock: Clock, recorder: RecordingObserver) -> None:
    """Tasks of a task group can open a manager, use it, and close it."""
    manager = Manager(observers=[recorder])
    handles: list[TaskHandle[Any]] = []
    reports: list[CloseReport] = []

    async def submit() -> None:
        handles.append(manager.run(anyio.sleep, 10))
        handles.append(manager.every(3, checkpoint))

    async def close() -> None:
        reports.append(await manager.close())

    async with anyio.create_task_group() as group:
        await start(group, manager.open)
        assert manager.state is ManagerState.RUNNING
        await start(group, submit)
        await start(group, close)
    assert manager.state is ManagerState.CLOSED
    assert (reports[0].succeeded, reports[0].cancelled) == (tuple(handles[:1]), tuple(handles[1:]))
    assert report_to(recorder) is reports[0]
    assert await manager.close() is reports[0]
    assert clock.now == pytest.approx(10, abs=1)


async def test_open_and_close_in_native_tasks() -> None:
    """Native tasks without a cancel scope can open and close a manager."""
    manager = Manager()
    await run_in_task(manager.open)
    handle = manager.run(anyio.sleep, 10)
    assert counts(await run_in_task(manager.close)) == {"succeeded": 1}
    assert handle.status is TaskStatus.SUCCEEDED


async def test_open_twice() -> None:
    """A manager can be opened or entered only once."""
    manager = Manager()
    await manager.open()
    for again in (manager.open, manager.__aenter__):
        with pytest.raises(ManagerMisuseError, match="has been entered before"):
            await again()
    await manager.close()
    async with Manager() as manager:
        with pytest.raises(ManagerMisuseError, match="has been entered before"):
            await manager.open()


async def test_open_after_close() -> None:
    """A manager that was closed before can't be opened."""
    manager = Manager()
    await manager.close()
    with pytest.raises(ManagerClosedError, match="was closed before it was entered"):
        await manager.open()


async def test_cancelled_open() -> None:
    """A call of `open()` that is cancelled opens nothing."""
    manager = Manager()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await manager.open()
    assert scope.cancelled_caught
    assert manager.state is ManagerState.NEW


async def test_leave_without_block() -> None:
    """A manager that was opened has no block to leave."""
    manager = Manager(name="app")
    await manager.open()
    with pytest.raises(ManagerMisuseError, match=r"'app' has no block: close\(\) ends what"):
        await manager.__aexit__(None, None, None)
    assert await manager.run(int) == 0
    await manager.close()


@pytest.mark.parametrize("cancel_timeout", [0, 5])
@pytest.mark.parametrize("way", ["outside", "in a task", "shutdown requests"])
async def test_no_internal_tasks_left(way: str, cancel_timeout: float) -> None:
    """No internal task remains after the closing of an opened manager, however it begins."""
    await checkpoint()
    before = count_tasks()
    manager = Manager(observers=[Watching()], cancel_timeout=cancel_timeout)
    await manager.open()
    await manager.run(checkpoint)
    manager.every(1, checkpoint)
    await anyio.sleep(2.5)
    if way == "outside":
        await manager.close()
    elif way == "in a task":
        manager.run(manager.close)
    else:
        manager.request_shutdown()
        manager.request_shutdown()
    await anyio.sleep(1)
    assert count_tasks() == before
    assert manager.state is ManagerState.CLOSED


async def test_cancelled_close(clock: Clock) -> None:
    """Cancelling `close()` does not stop the closing, which ends everything."""
    await checkpoint()
    before = count_tasks()
    manager = Manager(observers=[Watching()])
    await manager.open()
    handle = manager.run(anyio.sleep, 10)
    with anyio.move_on_after(1) as scope:
        await manager.close()
    assert scope.cancelled_caught
    await anyio.sleep(15)
    assert count_tasks() == before
    assert (await manager.close()).succeeded == (handle,)
    assert clock.now == 16


async def test_concurrent_close_calls(clock: Clock) -> None:
    """Concurrent calls of `close()` return the same report."""
    manager = Manager()
    await manager.open()
    manager.run(anyio.sleep, 10)
    reports: list[CloseReport] = []

    async def close() -> None:
        reports.append(await manager.close())

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(close)
    assert [report is reports[0] for report in reports] == [True] * 3
    assert clock.now == 10


async def test_close_in_task(clock: Clock) -> None:
    """`close()` in a task does not wait for that task; a call outside of tasks does."""
    manager = Manager()
    await manager.open()

    async def closer() -> float:
        await closed(manager)
        await anyio.sleep(20)
        return clock.now

    handle = manager.run(closer)
    manager.run(anyio.sleep, 10)
    await manager.close()
    assert clock.now == 30
    assert handle.status is TaskStatus.SUCCEEDED


async def test_close_in_hook(clock: Clock) -> None:
    """An `async def` hook that calls `close()` delays it by no more than the time to catch up."""

    class Closing(Observer):
        async def on_task_succeeded(self, event: Any) -> None:
            await manager.close()

    manager = Manager(observers=[Closing()], cancel_timeout=5)
    await manager.open()
    manager.run(checkpoint)
    await manager.shutdown_requested()
    with anyio.fail_after(100):
        await manager.close()
    assert clock.now <= 10


async def test_close_by_watch(clock: Clock) -> None:
    """A `watch()` service may close the manager, and ends with it."""

    class Closing(Observer):
        async def watch(self, manager: Manager) -> None:
            await anyio.sleep(3)
            await manager.close()

    manager = Manager(observers=[Closing()])
    await manager.open()
    await manager.shutdown_requested()
    await manager.close()
    assert clock.now == 3


async def test_grace(clock: Clock) -> None:
    """A shutdown request bounds the closing by the grace, as in a block."""
    manager = Manager(grace=10)
    await manager.open()
    handle = manager.run(ages)
    manager.request_shutdown()
    await anyio.sleep(5)
    await manager.close()
    assert clock.now == 10
    assert handle.status is TaskStatus.CANCELLED


async def test_stuck_task(clock: Clock) -> None:
    """`close()` does not wait for a stuck task."""
    manager = Manager(cancel_timeout=2)
    await manager.open()
    handle = manager.run(cleans_up, 100)
    await anyio.sleep(1)
    assert (await manager.close(timeout=0)).stuck == (handle,)
    assert clock.now == 3
    await handle.wait()


# Failures


async def test_critical_failure(clock: Clock) -> None:
    """A critical failure cancels the tasks, and every `close()` outside of tasks raises it."""
    manager = Manager()
    await manager.open()
    manager.run_task(Task(fails_after, args=(5, ValueError("vital")), critical=True))
    sleeper = manager.run(ages)
    await manager.shutdown_requested()
    assert clock.now == 5
    assert await sleeper.wait() is TaskStatus.CANCELLED
    for _ in range(2):
        with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="vital")):
            await manager.close()


async def test_critical_failure_and_close_in_task() -> None:
    """`close()` in a task returns the report in spite of a critical failure."""
    manager = Manager()
    await manager.open()

    async def closer() -> CloseReport:
        return await manager.close()

    closing = manager.run(closer)
    manager.run_task(Task(fails_after, args=(5, ValueError("vital")), critical=True))
    assert counts(await closing) == {"failed": 1}
    with pytest.RaisesGroup(ValueError):
        await manager.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
async def test_fatal_error(error: BaseException) -> None:
    """A `KeyboardInterrupt` or `SystemExit` of a task is raised by `close()`, not in a group."""
    manager = Manager()
    await manager.open()
    manager.run(fails_after, 5, error)
    await manager.shutdown_requested()
    with pytest.raises(type(error)) as caught:
        await manager.close()
    assert caught.value is error


# Real event loops and processes


@pytest.mark.realtime
async def test_close_from_thread() -> None:
    """A sync task can close the manager from its thread."""
    manager = Manager()
    await manager.open()
    handle = manager.run(partial(anyio.from_thread.run, manager.close))
    with anyio.fail_after(SOON):
        assert await handle == CloseReport()
        await manager.close()


def test_notebook() -> None:
    """A notebook runs a cell in a task of its own, in an event loop that runs between cells, too.

    The manager is opened in one cell, used in others, and closed in the last one.
    """
    manager = Manager()
    ran: list[str] = []

    async def work(label: str) -> str:
        await asyncio.sleep(0)
        ran.append(label)
        return label

    async def submit() -> TaskHandle[str]:
        return manager.run(work, "first")

    async def use(handle: TaskHandle[str]) -> str:
        manager.run(work, "second")
        return await handle

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        loop.run_until_complete(manager.open())
        handle = loop.run_until_complete(submit())
        assert loop.run_until_complete(use(handle)) == "first"
        report = loop.run_until_complete(manager.close())
        assert len(asyncio.all_tasks(loop)) == 0
    assert sorted(ran) == ["first", "second"]
    assert report.failed == ()


def test_never_closed(backend: str) -> None:
    """A manager that is opened and never closed does not keep the process alive.

    The event loop cancels its tasks, which is logged.
    """
    with running(SCRIPT, backend, "returns") as process:
        assert process.wait() == 0
    assert process.lines[0::2] == ["returns", "done"]
    assert process.lines[1].endswith("was cancelled from outside the manager")


@pytest.mark.skipif(sys.platform == "win32", reason="a process can't be sent SIGTERM on Windows")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", ["stays", "stays_with_grace"])
def test_signals(backend: str, program: str, number: signal.Signals) -> None:
    """A signal ends a process whose manager is never closed, as it ends one with a block."""
    with running(SCRIPT, backend, program) as process:
        process.wait_for("ready")
        process.send(number)
        if program == "stays":
            process.wait_for("shutdown requested")
            process.send(number)
        assert process.wait() == -number
    assert {"job cancelled", "background: 1 cancelled"} < set(process.lines)
    assert ("KeyboardInterrupt" in process.output) == (number is signal.SIGINT)
