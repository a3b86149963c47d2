"""Calls of `close()` from every place in every situation, and resources after closing.

Besides the tests of closing, these combine all places and situations, call `close()` several times
with different timeouts, and measure leaks.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.outcomes import TWICE, broken, fine, nap
from support.time import SOON

from background import (
    CloseReport,
    Manager,
    ManagerClosedError,
    ManagerMisuseError,
    ManagerState,
    Observer,
    Task,
    TaskHandle,
    TaskKind,
    TaskStatus,
    every,
)
from background.observers import LoggingObserver, StallObserver

CLEAN_UP = 2.0  # the cancel_timeout
TIMEOUTS = (
    9,
    3,
    "grace",
    5,
    3,
    None,
    4,
    "grace",
    9,
    3,
)  # of ten calls at the same time; the shortest one counts


class Critical(Exception):
    pass


async def fails_critically() -> None:
    await anyio.sleep(1)
    raise Critical


async def stuck() -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(1000)


Close = Callable[[], Awaitable[None]]  # calls `close()` ten times and stores the reports


async def from_the_body(manager: Manager, close: Close) -> None:
    await close()


async def from_a_task(manager: Manager, close: Close) -> None:
    await manager.run(close).wait()


async def from_a_loop(manager: Manager, close: Close) -> None:
    await manager.loop(close).wait()


async def from_dependent_tasks(manager: Manager, close: Close) -> None:
    handles: list[TaskHandle[None]] = []

    async def wait_and_close(number: int) -> None:
        await checkpoint()
        if number:
            await handles[number - 1].wait()
        await close()

    handles.extend(manager.run(wait_and_close, number) for number in range(3))
    await manager.shutdown_requested()


async def from_every_task(manager: Manager, close: Close) -> None:
    for _ in range(5):
        manager.run(close)
        manager.run_task(Task(close, kind=TaskKind.LOOP, schedule=every(1)))
    await manager.shutdown_requested()


class Closes(Observer):
    """Closes the manager in the hook `where`, or in `watch()`."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.close: Close

    def on_task_cancelled(self, event: Any) -> Awaitable[None] | None:
        return self.close() if self.where == "def hook" else None

    async def on_task_expired(self, event: Any) -> None:
        if self.where == "async hook":
            await self.close()

    async def watch(self, manager: Manager) -> None:
        if self.where == "watch":
            await anyio.sleep(1)
            await self.close()


async def from_an_observer(manager: Manager, close: Close) -> None:
    manager.run(nap).cancel()
    manager.run_task(Task(nap, lifespan=0.5))
    await manager.shutdown_requested()


PLACES: dict[str, Callable[[Manager, Close], Awaitable[None]]] = {
    "body": from_the_body,
    "task": from_a_task,
    "loop": from_a_loop,
    "dependent tasks": from_dependent_tasks,
    "every task": from_every_task,
    "def hook": from_an_observer,
    "async hook": from_an_observer,
    "watch": from_an_observer,
}

SITUATIONS: dict[str, tuple[tuple[Task[Any], ...], type[BaseException] | None]] = {
    "idle": ((), None),
    "busy": ((Task(nap, args=(2,)), Task(nap, kind=TaskKind.LOOP), Task(fine, delay=99)), None),
    "endless": ((Task(anyio.sleep_forever), Task(broken, retry=TWICE)), None),
    "stuck": ((Task(stuck), Task(nap)), None),
    "error in the body": ((Task(nap, args=(2,)),), ValueError),
    "interrupt": ((Task(nap),), KeyboardInterrupt),
    "critical": ((Task(fails_critically, critical=True), Task(nap)), None),
}


@pytest.mark.parametrize("place", PLACES)
async def test_concurrent_calls(place: str) -> None:
    """Ten concurrent calls return the same report, within the shortest timeout."""
    longest = 0.0
    for situation, (tasks, error) in SITUATIONS.items():
        observer = Closes(place)
        reports: list[CloseReport] = []
        called: list[float] = []
        returned: list[float] = []

        async def close_once(timeout: Any) -> None:
            report = await manager.close(timeout=timeout)  # noqa: B023
            returned.append(anyio.current_time())  # noqa: B023
            reports.append(report)  # noqa: B023

        async def close() -> None:
            called.append(anyio.current_time())  # noqa: B023
            async with anyio.create_task_group() as group:
                for timeout in TIMEOUTS:
                    group.start_soon(close_once, timeout)

        observer.close = close
        manager = Manager(observers=[observer], cancel_timeout=CLEAN_UP)
        try:
            async with manager:
                for task in tasks:
                    manager.run_task(task)
                await PLACES[place](manager, close)
                if error is not None:
                    raise error
        except (ValueError, KeyboardInterrupt, ExceptionGroup):
            pass
        assert called, situation
        assert manager.state is ManagerState.CLOSED, situation
        report = await manager.close(timeout=0)
        assert all(repeated is report for repeated in reports), situation
        # Hooks are cancelled when the block is left, tasks when everything is cancelled.
        cancelled = "hook" in place or place == "watch" or situation in ("interrupt", "critical")
        assert len(reports) >= len(TIMEOUTS) or cancelled, situation
        hooks = CLEAN_UP if "hook" in place else 0
        for time in returned:
            took = time - called[0]
            assert took <= 3 + CLEAN_UP + hooks + 0.01, situation
            longest = max(longest, took)
        functions = {handle.task.fn for handle in report.stuck}
        assert functions == ({stuck} if situation == "stuck" else set()), situation
        assert {handle.task.fn for handle in manager.tasks()} == functions, situation
    print(f"{place}: closed in {longest:g} s; limit {3 + CLEAN_UP:g} s")


async def test_before_entering(anyio_backend: object) -> None:
    """Calls before entering return one report, and the manager can't be entered."""
    manager = Manager()
    reports: list[CloseReport] = []

    async def close() -> None:
        reports.append(await manager.close())

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(close)
    assert all(report is reports[0] for report in reports)
    assert manager.state is ManagerState.CLOSED
    with pytest.raises(ManagerClosedError):
        await manager.__aenter__()


@pytest.mark.parametrize("first", ["close", "enter"])
@pytest.mark.parametrize("steps", range(4))
async def test_close_while_entering(first: str, steps: int) -> None:
    """A manager that reported to be closed while it was entered runs no task."""
    manager = Manager()
    states: list[ManagerState] = []

    async def close() -> None:
        if first == "enter":
            for _ in range(steps):
                await checkpoint()
        await manager.close()
        states.append(manager.state)

    async def enter() -> None:
        if first == "close":
            for _ in range(steps):
                await checkpoint()
        with suppress(ManagerClosedError):
            async with manager:
                manager.run(fine)
                await anyio.sleep(1)

    async with anyio.create_task_group() as group:
        for fn in (close, enter) if first == "close" else (enter, close):
            group.start_soon(fn)
    assert states in ([ManagerState.CLOSED], [ManagerState.CLOSING])
    assert manager.state is ManagerState.CLOSED
    assert manager.count() == 0


async def test_concurrent_entering() -> None:
    """A manager can be entered only once."""
    manager = Manager()
    outcomes: list[object] = []

    async def enter() -> None:
        try:
            async with manager:
                await manager.run(fine)
            outcomes.append("left")
        except ManagerMisuseError:
            outcomes.append("refused")

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(enter)
    assert sorted(map(str, outcomes)) == ["left", "refused", "refused"]


@pytest.mark.realtime
async def test_from_threads() -> None:
    """Concurrent calls from the threads of sync tasks return the same report."""
    reports: list[CloseReport] = []

    def close() -> None:
        reports.append(anyio.from_thread.run(manager.close))

    async with Manager(threads=10) as manager:
        handles = [manager.run(close) for _ in range(10)]
        with anyio.fail_after(SOON):
            for handle in handles:
                assert await handle.wait() is TaskStatus.SUCCEEDED
    assert len(reports) == 10
    assert len({id(report) for report in reports}) == 1


# Leaks


MANAGERS = 250


class Payload:
    """An object that tasks refer to."""


class HookObserver(Observer):
    def on_task_failed(self, event: Any) -> None:
        pass

    async def on_task_succeeded(self, event: Any) -> None:
        await checkpoint()

    async def watch(self, manager: Manager) -> None:
        await anyio.sleep_forever()


async def give(payload: Payload) -> Payload:
    await checkpoint()
    return payload


async def fail(payload: Payload) -> None:
    raise ValueError(payload)


async def wait(payload: Payload) -> None:
    await anyio.sleep_forever()


@pytest.fixture(autouse=True)
def no_records(caplog: pytest.LogCaptureFixture) -> None:
    """Log nothing: pytest would store the records with all objects that they refer to."""
    caplog.set_level("CRITICAL", "background")


async def run_manager(payload: Payload, *, timeout: float = 0) -> list[weakref.ref[Any]]:
    """Run a manager with many kinds of tasks, and return references to objects to be freed."""
    observers = [HookObserver(), StallObserver(after=10), LoggingObserver(failed="DEBUG")]
    async with Manager(observers=observers, cancel_timeout=0.1) as manager:
        own = Observer()
        handles = [
            manager.run_task(Task(give, args=(payload,), observers=(own,))),
            manager.run_task(Task(fail, args=(payload,), retry=1)),
            manager.run_task(Task(wait, args=(payload,), meta={"payload": payload})),
            manager.run_task(Task(wait, args=(payload,), delay=100)),
            manager.run_task(Task(give, args=(payload,), kind=TaskKind.LOOP, schedule=every(50))),
        ]
        await handles[0]
        await manager.close(timeout=timeout)
    return [weakref.ref(made) for made in (manager, own, *observers, *handles)]


def count_tasks() -> int:
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_run():
            return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


@pytest.mark.realtime
async def test_no_leak_of_many_managers() -> None:
    """Hundreds of managers leak no task and no object."""
    payload = Payload()
    for _ in range(5):
        await run_manager(payload)
    gc.collect()
    objects, tasks = len(gc.get_objects()), count_tasks()
    for _ in range(MANAGERS):
        await run_manager(payload)
    await checkpoint()
    gc.collect()
    grown = len(gc.get_objects()) - objects
    print(f"{grown} objects, {count_tasks() - tasks} tasks more")
    assert grown < MANAGERS / 5
    assert count_tasks() == tasks


@pytest.mark.realtime
async def test_manager_is_freed() -> None:
    """A closed manager, its observers, handles and arguments can be garbage-collected."""
    payload = Payload()
    reference = weakref.ref(payload)
    refs = await run_manager(payload)
    del payload
    await checkpoint()
    gc.collect()
    assert [ref() for ref in refs if ref() is not None] == []
    assert reference() is None


@pytest.mark.parametrize("fn", [give, wait])
async def test_arguments_are_freed(fn: Any) -> None:
    """The arguments of an ended task are freed without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        async with Manager(observers=[HookObserver()]) as manager:
            payload = Payload()
            reference = weakref.ref(payload)
            handle = manager.run(fn, payload)
            del payload
            await anyio.sleep(1)
            handle.cancel()
            await handle.wait()
            del handle
            await anyio.sleep(1)
            assert reference() is None
    finally:
        gc.enable()


def count_descriptors() -> int:
    folder = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0  # Windows has none


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_leak_of_threads(backend: str) -> None:
    """A closed manager leaks no thread and no descriptor."""

    async def main() -> None:
        payload = Payload()
        for _ in range(20):
            await run_manager(payload)
        async with Manager(cancel_timeout=0.1) as manager:
            for _ in range(20):
                manager.run(lambda: None)

    anyio.run(main, backend=backend)  # makes objects that are made only once
    gc.collect()
    before, open_before = set(threading.enumerate()), count_descriptors()
    anyio.run(main, backend=backend)
    gc.collect()
    started = set(threading.enumerate()) - before
    if backend == "asyncio":  # trio keeps idle threads for a few seconds
        for thread in started:
            thread.join(SOON)  # its end has been requested
            assert not thread.is_alive(), thread
    assert count_descriptors() <= open_before
    print(f"{len(started)} threads, {count_descriptors() - open_before} descriptors more")
