"""Closing from wherever one can call, in whatever state: the same report, in time, nothing left.

What is new here over the tests of closing: each place with each situation, several calls at once
with different timeouts, and what is left behind, which is measured.
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
)  # of ten calls at once; the shortest one counts


class Critical(Exception):
    pass


async def fails_critically() -> None:
    await anyio.sleep(1)
    raise Critical


async def stuck() -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(1000)


Close = Callable[[], Awaitable[None]]  # ten times at once, keeping the reports


async def from_the_body(manager: Manager, close: Close) -> None:
    await close()


async def from_a_task(manager: Manager, close: Close) -> None:
    await manager.run(close).wait()


async def from_a_loop(manager: Manager, close: Close) -> None:
    await manager.loop(close).wait()


async def from_tasks_that_wait_for_each_other(manager: Manager, close: Close) -> None:
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
    """Closes from one of its hooks, if it is the one."""

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
    "tasks that wait for each other": from_tasks_that_wait_for_each_other,
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
async def test_ten_calls_at_once(place: str) -> None:
    """From each place, in each situation: one report for all of them, by the shortest timeout."""
    longest = 0.0
    for situation, (tasks, error) in SITUATIONS.items():
        observer = Closes(place)
        reports: list[CloseReport] = []
        called: list[float] = []
        done: list[float] = []

        async def one(timeout: Any) -> None:
            report = await manager.close(timeout=timeout)  # noqa: B023
            done.append(anyio.current_time())  # noqa: B023
            reports.append(report)  # noqa: B023

        async def close() -> None:
            called.append(anyio.current_time())  # noqa: B023
            async with anyio.create_task_group() as group:
                for timeout in TIMEOUTS:
                    group.start_soon(one, timeout)

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
        assert all(each is report for each in reports), situation
        # Hooks are cut off when the block is left, the rest when everything is cancelled.
        cut_off = "hook" in place or place == "watch" or situation in ("interrupt", "critical")
        assert len(reports) >= len(TIMEOUTS) or cut_off, situation
        hooks = CLEAN_UP if "hook" in place else 0
        for each in done:
            took = each - called[0]
            assert took <= 3 + CLEAN_UP + hooks + 0.01, situation
            longest = max(longest, took)
        outcome = {handle.task.fn for handle in report.stuck}
        assert outcome == ({stuck} if situation == "stuck" else set()), situation
        assert {handle.task.fn for handle in manager.tasks()} == outcome, situation
    print(f"{place}: closed in {longest:g} s; promised {3 + CLEAN_UP:g} s")


async def test_before_the_start(anyio_backend: object) -> None:
    """Any number of calls, one report, and the manager can't be entered any more."""
    manager = Manager()
    reports: list[CloseReport] = []

    async def close() -> None:
        reports.append(await manager.close())

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(close)
    assert all(each is reports[0] for each in reports)
    assert manager.state is ManagerState.CLOSED
    with pytest.raises(ManagerClosedError):
        await manager.__aenter__()


@pytest.mark.parametrize("first", ["close", "enter"])
@pytest.mark.parametrize("steps", range(4))
async def test_closing_while_it_is_entered(first: str, steps: int) -> None:
    """Whoever comes first: what was reported as closed does not run."""
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


async def test_entering_twice_at_once() -> None:
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
    """From those of ten sync tasks at once, through anyio's portal."""
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


# What is left behind


LIVES = 250


class Payload:
    """What a task holds on to."""


class Hearing(Observer):
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
    """Records would be kept by pytest, with all that they refer to."""
    caplog.set_level("CRITICAL", "background")


async def live(payload: Payload, *, timeout: float = 0) -> list[weakref.ref[Any]]:
    """One life of a manager, with tasks of many kinds; return what should go away."""
    observers = [Hearing(), StallObserver(after=10), LoggingObserver(failed="DEBUG")]
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
    return [weakref.ref(each) for each in (manager, own, *observers, *handles)]


def living() -> int:
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_run():
            return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


@pytest.mark.realtime
async def test_hundreds_of_lives_leave_nothing() -> None:
    """No task, no object: as many as after the first few lives."""
    payload = Payload()
    for _ in range(5):
        await live(payload)
    gc.collect()
    objects, tasks = len(gc.get_objects()), living()
    for _ in range(LIVES):
        await live(payload)
    await checkpoint()
    gc.collect()
    grown = len(gc.get_objects()) - objects
    print(f"{grown} objects, {living() - tasks} tasks more")
    assert grown < LIVES / 5
    assert living() == tasks


@pytest.mark.realtime
async def test_what_a_manager_held_goes_with_it() -> None:
    payload = Payload()
    held = weakref.ref(payload)
    refs = await live(payload)
    del payload
    await checkpoint()
    gc.collect()
    assert [ref() for ref in refs if ref() is not None] == []
    assert held() is None


@pytest.mark.parametrize("fn", [give, wait])
async def test_what_a_task_held_goes_without_the_garbage_collector(fn: Any) -> None:
    """In a manager that goes on: an ended task is in no cycle with what it was given."""
    gc.collect()
    gc.disable()
    try:
        async with Manager(observers=[Hearing()]) as manager:
            payload = Payload()
            held = weakref.ref(payload)
            handle = manager.run(fn, payload)
            del payload
            await anyio.sleep(1)
            handle.cancel()
            await handle.wait()
            del handle
            await anyio.sleep(1)
            assert held() is None
    finally:
        gc.enable()


def descriptors() -> int:
    folder = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0  # Windows has none


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_thread_and_no_descriptor_is_left(backend: str) -> None:
    async def main() -> None:
        payload = Payload()
        for _ in range(20):
            await live(payload)
        async with Manager(cancel_timeout=0.1) as manager:
            for _ in range(20):
                manager.run(lambda: None)

    anyio.run(main, backend=backend)  # what is made once, is
    gc.collect()
    before, open_before = set(threading.enumerate()), descriptors()
    anyio.run(main, backend=backend)
    gc.collect()
    started = set(threading.enumerate()) - before
    if backend == "asyncio":  # trio keeps idle ones for a few seconds, which it may use again
        for thread in started:
            thread.join(SOON)  # it has been told to end
            assert not thread.is_alive(), thread
    assert descriptors() <= open_before
    print(f"{len(started)} threads, {descriptors() - open_before} descriptors more")
