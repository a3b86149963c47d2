"""Tasks and threads that do not end when they are cancelled, in every kind of shutdown.

Besides the tests of closing, these combine every kind of stuck task with every kind of shutdown,
and check the waiters and the later ends of the tasks.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint
from support.outcomes import nap
from support.time import SOON

from background import (
    Manager,
    ManagerClosedError,
    ManagerState,
    Task,
    TaskCancelledError,
    TaskHandle,
    TaskKind,
    TaskStatus,
)
from background.testing import RecordingObserver

LASTS = 1000.0  # seconds until a stuck task ends by itself, long after closing
CLEAN_UP = 2.0  # the cancel_timeout


async def shielded() -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(LASTS)  # stuck here


async def stuck_in_finally() -> None:
    try:
        await anyio.sleep_forever()
    finally:
        await shielded()


async def stuck_in_except() -> str:
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class():
        await shielded()
    return "ended late"


async def swallows_forever() -> None:
    until = anyio.current_time() + LASTS
    while anyio.current_time() < until:
        with suppress(anyio.get_cancelled_exc_class()):
            await shielded()
            await checkpoint()


async def stuck_in_a_child() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(shielded)
        group.start_soon(anyio.sleep_forever)


async def fails_late() -> None:
    await shielded()
    raise ValueError("ended late")


async def swallows_a_few() -> None:
    """Swallow a few cancellations: not stuck, as it ends after a few steps."""
    for _ in range(10):
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep_forever()


STUCK: dict[str, tuple[Callable[[], Awaitable[Any]], TaskStatus]] = {
    "shielded": (shielded, TaskStatus.SUCCEEDED),
    "in finally": (stuck_in_finally, TaskStatus.CANCELLED),
    "in except": (stuck_in_except, TaskStatus.SUCCEEDED),
    "swallows forever": (swallows_forever, TaskStatus.SUCCEEDED),
    "in a child": (stuck_in_a_child, TaskStatus.CANCELLED),
    "fails late": (fails_late, TaskStatus.FAILED),
}
NAMES = {fn.__name__ for fn, _ in STUCK.values()}


class Critical(Exception):
    pass


async def fails_critically() -> None:
    raise Critical


# Kinds of shutdown. They begin at 1 s and cancel the remaining tasks some seconds later.

Begin = Callable[[Manager, anyio.CancelScope], Awaitable[None]]


async def closes(manager: Manager, scope: anyio.CancelScope) -> None:
    await manager.close(timeout=0)


async def closes_soon(manager: Manager, scope: anyio.CancelScope) -> None:
    await manager.close(timeout=3)


async def closes_many_times(manager: Manager, scope: anyio.CancelScope) -> None:
    async with anyio.create_task_group() as group:
        for timeout in (7, 5, 3, 9):
            group.start_soon(lambda timeout: manager.close(timeout=timeout), timeout)


async def requests(manager: Manager, scope: anyio.CancelScope) -> None:
    manager.request_shutdown()


async def requests_twice(manager: Manager, scope: anyio.CancelScope) -> None:
    manager.request_shutdown()
    manager.request_shutdown()


async def fails_by_a_task(manager: Manager, scope: anyio.CancelScope) -> None:
    # A loop, as loops are not queued behind the stuck task.
    manager.run_task(Task(fails_critically, kind=TaskKind.LOOP, max_failures=1, critical=True))
    await anyio.sleep_forever()


async def fails_by_the_body(manager: Manager, scope: anyio.CancelScope) -> None:
    manager.request_shutdown()
    raise Critical


async def is_interrupted(manager: Manager, scope: anyio.CancelScope) -> None:
    raise KeyboardInterrupt


async def is_cancelled(manager: Manager, scope: anyio.CancelScope) -> None:
    scope.cancel()
    await anyio.sleep_forever()


@dataclass
class Shutdown:
    begin: Begin
    after: float = 0  # seconds until the remaining tasks are cancelled
    raises: tuple[type[BaseException], ...] = field(default=())


SHUTDOWNS = {
    "close at once": Shutdown(closes),
    "close soon": Shutdown(closes_soon, 3),
    "close many times": Shutdown(closes_many_times, 3),
    "grace": Shutdown(requests, 4),
    "forced": Shutdown(requests_twice),
    "critical": Shutdown(fails_by_a_task, 0, (ExceptionGroup,)),
    "error in the body": Shutdown(fails_by_the_body, 4, (Critical,)),
    "interrupt": Shutdown(is_interrupted, 0, (KeyboardInterrupt,)),
    "cancelled": Shutdown(is_cancelled),
}


async def run_shutdown(
    shutdown: Shutdown, manager: Manager, prepare: Callable[[], object]
) -> float:
    """Enter a manager, shut it down, and return the seconds that this took."""
    began = anyio.current_time()
    with suppress(*shutdown.raises), anyio.CancelScope() as scope:
        async with manager:
            prepare()
            await anyio.sleep(1)
            began = anyio.current_time()
            await shutdown.begin(manager, scope)
    return anyio.current_time() - began


def assert_one_end(recorder: RecordingObserver, handle: TaskHandle[Any], why: object) -> None:
    ends = [
        name
        for name in recorder.names(handle.id)
        if name in ("succeeded", "failed", "cancelled", "expired")
    ]
    assert ends == [handle.status], why


@pytest.mark.parametrize("name", STUCK)
async def test_stuck_task(name: str) -> None:
    """A stuck task is reported with its stack in time, and its later end is emitted once."""
    fn, status = STUCK[name]
    longest = 0.0
    for kind in TaskKind:
        for title, shutdown in SHUTDOWNS.items():
            recorder = RecordingObserver()
            manager = Manager(observers=[recorder], grace=4, cancel_timeout=CLEAN_UP)
            handles: list[TaskHandle[Any]] = []
            took = await run_shutdown(
                shutdown,
                manager,
                lambda: handles.append(manager.run_task(Task(fn, kind=kind))),  # noqa: B023
            )
            (handle,) = handles
            why = title, kind
            assert took <= shutdown.after + CLEAN_UP + 0.01, why
            longest = max(longest, took - shutdown.after)
            assert manager.state is ManagerState.CLOSED, why
            report = await manager.close()
            assert report.stuck == (handle,), why
            assert report.stacks[handle.id][0].name in NAMES, why
            assert "stuck here" in str(report) or name == "in a child", why
            assert handle.status is TaskStatus.RUNNING, why
            assert recorder.names()[-1] == "closed", why
            assert manager.get(handle.id) is handle, why
            with anyio.fail_after(5 * LASTS):
                await handle.wait()
            expected = TaskStatus.CANCELLED if kind is TaskKind.LOOP else status
            assert handle.status is expected, why
            if kind is TaskKind.ONE_OFF:
                assert_one_end(recorder, handle, why)
            assert manager.count() == 0, why
            assert await manager.close() is report, why
    print(f"{name}: closed {longest:g} s after the deadline; limit {CLEAN_UP:g} s")


async def test_few_swallowed_cancellations() -> None:
    """A task that swallows a few cancellations is not stuck."""
    for title, shutdown in SHUTDOWNS.items():
        handles: list[TaskHandle[Any]] = []
        manager = Manager(grace=4, cancel_timeout=CLEAN_UP)
        took = await run_shutdown(
            shutdown,
            manager,
            lambda: handles.append(manager.run(swallows_a_few)),  # noqa: B023
        )
        assert took <= shutdown.after + 0.01, title
        assert (await manager.close()).stuck == (), title
        assert handles[0].status is TaskStatus.SUCCEEDED, title


@pytest.mark.parametrize("shutdown", SHUTDOWNS)
async def test_waiters_with_stuck_task(shutdown: str, recorder: RecordingObserver) -> None:
    """All other tasks and all waiters have ended when the manager has closed."""
    manager = Manager(
        observers=[recorder], limit=1, capacity=3, grace=4, cancel_timeout=CLEAN_UP, threads=1
    )
    stuck: list[TaskHandle[Any]] = []
    waiting: list[TaskHandle[Any]] = []
    ended: list[str] = []

    async def record_end(name: str, awaitable: Awaitable[object]) -> None:
        with suppress(ManagerClosedError, TaskCancelledError):
            await awaitable
        ended.append(name)

    async with anyio.create_task_group() as group:

        def prepare() -> None:
            stuck.append(manager.run(shielded))
            waiting.extend([manager.run(nap), manager.after(50, nap), manager.every(1, nap)])
            group.start_soon(record_end, "submit", manager.submit(Task(nap)))
            group.start_soon(record_end, "wait", manager.wait())
            group.start_soon(record_end, "stop", manager.shutdown_requested())
            group.start_soon(record_end, "result", waiting[0].result())
            group.start_soon(record_end, "stuck", stuck[0].result())

        await run_shutdown(SHUTDOWNS[shutdown], manager, prepare)
        await anyio.wait_all_tasks_blocked()
        assert sorted(ended) == ["result", "stop", "submit", "wait"]
        report = await manager.close()
        assert report.stuck == tuple(stuck)
        assert {handle.status for handle in waiting} == {TaskStatus.CANCELLED}
        assert waiting[0] in report.not_started
        assert manager.tasks() == stuck
    assert ended[-1] == "stuck"
    assert manager.count() == 0
    for handle in (*stuck, *waiting):
        assert_one_end(recorder, handle, handle)


async def test_nested_managers() -> None:
    """Two nested managers wait for their own stuck tasks only, the inner one first."""
    recorder = RecordingObserver()
    began = anyio.current_time()
    async with (
        Manager(observers=[recorder], cancel_timeout=CLEAN_UP, grace=1) as outer,
        Manager(observers=[recorder], cancel_timeout=CLEAN_UP, grace=1) as inner,
    ):
        first, second = outer.run(shielded), inner.run(shielded)
        outer.request_shutdown()
        inner.request_shutdown()
    took = anyio.current_time() - began
    assert took <= 1 + 2 * CLEAN_UP + 0.01
    assert (await outer.close()).stuck == (first,)
    assert (await inner.close()).stuck == (second,)
    await first.wait()
    await second.wait()
    for handle in (first, second):
        assert_one_end(recorder, handle, handle)


async def test_module_without_source() -> None:
    """A report omits the source lines of a module whose loader raises."""

    class Loader:
        def get_source(self, name: str) -> str:
            raise RuntimeError("no source")

    source = "async def odd():\n with anyio.CancelScope(shield=True):\n  await sleep(100)\n"
    namespace: dict[str, Any] = {
        "__name__": "odd",
        "__loader__": Loader(),
        "anyio": anyio,
        "sleep": anyio.sleep,
    }
    exec(compile(source, "/nowhere/odd.py", "exec"), namespace)
    async with Manager(cancel_timeout=CLEAN_UP) as manager:
        handle = manager.run(namespace["odd"])
        await anyio.sleep(1)
        assert handle.stack()[0].name == "odd"
        with anyio.fail_after(50):
            report = await manager.close(timeout=0)
    assert report.stuck == (handle,)
    assert "line 3, in odd" in str(report)


# Threads


@contextmanager
def gate() -> Iterator[threading.Event]:
    """Yield an event that threads wait for, and set it at the end."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


@pytest.mark.realtime
@pytest.mark.parametrize(
    "shutdown", ["close at once", "forced", "critical", "interrupt", "cancelled"]
)
async def test_stuck_threads(shutdown: str) -> None:
    """Stuck threads are reported, and queued sync functions never start."""
    recorder, entered = RecordingObserver(), threading.Semaphore(0)
    lock = threading.Lock()
    with gate() as release, lock:

        def blocks() -> str:
            entered.release()
            release.wait(SOON)
            return "at last"

        def locks() -> None:
            entered.release()
            while not release.is_set():
                lock.acquire(timeout=0.05)

        def never() -> None:
            raise AssertionError("started without a free thread")

        async def stubborn() -> None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(release.wait, SOON, limiter=limiter)

        limiter = anyio.CapacityLimiter(1)
        manager = Manager(observers=[recorder], threads=2, cancel_timeout=0.05)
        stuck: list[TaskHandle[Any]] = []
        queued: list[TaskHandle[Any]] = []
        took = 0.0
        with suppress(*SHUTDOWNS[shutdown].raises), anyio.CancelScope() as scope:
            async with manager:
                stuck.extend([manager.run(blocks), manager.loop(locks), manager.run(stubborn)])
                for _ in range(2):
                    assert await anyio.to_thread.run_sync(entered.acquire, True, SOON)
                queued.extend([manager.run(never), manager.loop(never)])
                await anyio.wait_all_tasks_blocked()
                took = anyio.current_time()
                await SHUTDOWNS[shutdown].begin(manager, scope)
        took = anyio.current_time() - took
        report = await manager.close()
        assert report.stuck == tuple(stuck)
        assert [report.stacks[task.id][0].name for task in stuck] == ["blocks", "locks", "stubborn"]
        assert {task.status for task in queued} == {TaskStatus.CANCELLED}
        assert manager.health().threads == 2
        assert not release.is_set()
        assert took < SOON / 2
        release.set()
        with anyio.fail_after(SOON):
            statuses = [await task.wait() for task in stuck]
        assert statuses == [TaskStatus.CANCELLED, TaskStatus.CANCELLED, TaskStatus.SUCCEEDED]
    for task in (stuck[0], stuck[2], queued[0]):
        assert_one_end(recorder, task, task)
    assert manager.health().threads == 0
    assert manager.count() == 0
    print(f"{shutdown}: {took:.3f} s, limit 0.05 s and some overhead")
