"""Sync functions in worker threads, and calls from other threads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextvars import Context
from typing import Any, TypeVar
from unittest.mock import AsyncMock, Mock

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint
from tenacity import AsyncRetrying, stop_after_attempt, wait_none

from background import (
    DuplicateTaskError,
    InvalidTaskError,
    LoopsStoppedError,
    Manager,
    ManagerClosedError,
    ManagerFullError,
    ManagerNotRunningError,
    Observer,
    Task,
    TaskCancelledError,
    TaskEvent,
    TaskHandle,
    TaskKind,
    TaskStatus,
    every,
)
from background._eventloop.portal import Portal
from background.testing import RecordingObserver

pytestmark = pytest.mark.realtime

T = TypeVar("T")
TIMEOUT = 10  # seconds until a test that hangs fails


async def call_in_worker(fn: Callable[[], T]) -> T:
    """Call a function in a worker thread, and abandon the thread if it hangs."""
    with anyio.fail_after(TIMEOUT):
        return await anyio.to_thread.run_sync(fn, abandon_on_cancel=True)


def call_in_new_thread(fn: Callable[[], object]) -> BaseException | None:
    """Call a function in a new thread without an event loop, and return the error it raises."""
    raised: list[BaseException | None] = []

    def call() -> None:
        try:
            fn()
        except BaseException as error:
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    assert raised, "the call hangs"
    return raised[0]


async def wait_until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(TIMEOUT):
        while not condition():
            await checkpoint()


@contextlib.asynccontextmanager
async def open_manager(**options: Any) -> AsyncIterator[Manager]:
    """Enter a manager that closes immediately if the test fails."""
    async with Manager(**options) as manager:
        try:
            yield manager
        except BaseException:
            with anyio.CancelScope(shield=True):
                await manager.close(timeout=0)
            raise


class Gate:
    """A sync function that blocks until the gate is open and counts its concurrent calls."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.running = self.peak = 0
        self._lock = threading.Lock()

    def __call__(self, value: Any = None) -> Any:
        with self._lock:
            self.running += 1
            self.peak = max(self.peak, self.running)
        self.entered.release()
        try:
            assert self.open.wait(TIMEOUT)
        finally:
            with self._lock:
                self.running -= 1
        if isinstance(value, Exception):
            raise value
        return value


@pytest.fixture
def gate() -> Iterator[Gate]:
    instance = Gate()
    yield instance
    instance.open.set()


# Callables


def add(a: int, b: int = 0) -> int:
    assert threading.current_thread() is not threading.main_thread()
    return a + b


async def add_async(a: int, b: int = 0) -> int:
    assert threading.current_thread() is threading.main_thread()
    await checkpoint()
    return a + b


class Adder:
    def __call__(self, a: int, b: int = 0) -> int:
        return add(a, b)

    def method(self, a: int, b: int = 0) -> int:
        return add(a, b)

    async def async_method(self, a: int, b: int = 0) -> int:
        return await add_async(a, b)


class AsyncAdder:
    async def __call__(self, a: int, b: int = 0) -> int:
        return await add_async(a, b)


class Sum:
    """A class whose instances are awaitable."""

    def __init__(self, a: int, b: int = 0) -> None:
        self._numbers = a, b

    def __await__(self) -> Generator[Any, Any, int]:
        return add_async(*self._numbers).__await__()


def wrap(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    "fn",
    [
        add,
        add_async,
        functools.partial(add, 1),
        functools.partial(add_async, 1),
        functools.partial(functools.partial(add_async), 1),
        Adder(),
        AsyncAdder(),
        functools.partial(Adder(), 1),
        functools.partial(AsyncAdder(), 1),
        Adder().method,
        Adder().async_method,
        Sum,
        lambda a, b: add(a, b),
        lambda a, b: add_async(a, b),
        wrap(add),
        wrap(add_async),
    ],
    ids=[
        "def",
        "async def",
        "partial",
        "async partial",
        "nested partial",
        "object",
        "async object",
        "partial of object",
        "partial of async object",
        "method",
        "async method",
        "class",
        "lambda",
        "lambda around a coroutine",
        "wrapper",
        "wrapper around a coroutine",
    ],
)
async def test_callables(manager: Manager, fn: Callable[..., Any]) -> None:
    """A manager runs callables of all kinds, sync and async."""
    args = () if isinstance(fn, functools.partial) else (1,)
    if isinstance(fn, functools.partial) and not fn.args:
        args = (1,)
    assert await manager.run(fn, *args, b=2) == 3


class EndlessPartial:
    """An object with the attributes of an endlessly nested `functools.partial`."""

    depth = 0

    @property
    def func(self) -> EndlessPartial:
        self.depth += 1
        assert self.depth < 100
        return self

    async def __call__(self) -> int:
        return await add_async(1, 2)


async def test_object_with_arbitrary_attributes(manager: Manager) -> None:
    """Objects with arbitrary attributes, such as mocks, can be run."""
    handle = manager.run(EndlessPartial())
    assert handle.name == "EndlessPartial"
    assert await handle == 3
    assert await manager.run(AsyncMock(return_value=3)) == 3
    assert await manager.run(Mock(return_value=3)) == 3


async def test_class_with_async_call(manager: Manager) -> None:
    """Running a class returns an instance and does not call it."""
    assert isinstance(await manager.run(AsyncAdder), AsyncAdder)


async def test_sync_function_returns_handle(manager: Manager) -> None:
    """A handle returned by a sync function is awaited."""
    assert await manager.run(lambda: manager.run(add_async, 1, 2)) == 3


async def test_async_function_returns_coroutine(manager: Manager) -> None:
    """A coroutine returned by an async function is its result and is not awaited."""

    async def work() -> Coroutine[Any, Any, int]:
        return add_async(1, 2)

    coroutine = await manager.run(work)
    assert await coroutine == 3


async def test_loop_of_lambda(manager: Manager) -> None:
    """A loop runs a lambda that returns a coroutine."""
    loop = manager.loop(lambda: add_async(1, 2))
    await wait_until(lambda: loop.iteration > 3)
    assert loop.error is None


async def test_error_of_returned_coroutine(manager: Manager) -> None:
    """The error of a coroutine that a lambda returns is the task's error."""

    async def fail() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await manager.run(lambda: fail())


# Worker threads


async def test_thread_limit(gate: Gate) -> None:
    """A manager uses at most `threads` threads, and none of anyio's default limiter."""
    async with Manager(threads=2) as manager:
        handles = [manager.run(gate, number) for number in range(5)]
        for _ in range(2):
            await call_in_worker(lambda: gate.entered.acquire(timeout=TIMEOUT))
        assert manager.health().threads == 2
        assert manager.health().running == 5
        default = anyio.to_thread.current_default_thread_limiter()
        assert default.borrowed_tokens == 0
        assert gate.running == 2
        gate.open.set()
        assert [await handle for handle in handles] == list(range(5))
    assert gate.peak == 2


async def test_async_function_needs_no_thread(gate: Gate) -> None:
    """An async function runs while all threads are busy."""
    async with Manager(threads=1) as manager:
        handle = manager.run(gate)
        await call_in_worker(lambda: gate.entered.acquire(timeout=TIMEOUT))
        assert await manager.run(add_async, 1, 2) == 3
        gate.open.set()
        await handle


async def test_separate_threads_per_manager(gate: Gate) -> None:
    """Managers do not share their threads."""
    async with Manager(threads=1) as first, Manager(threads=1) as second:
        handle = first.run(gate)
        await call_in_worker(lambda: gate.entered.acquire(timeout=TIMEOUT))
        assert await second.run(add, 1, 2) == 3
        gate.open.set()
        await handle


async def test_cancel_while_waiting_for_thread(gate: Gate, recorder: RecordingObserver) -> None:
    """A task that waits for a thread can be cancelled and can time out."""
    async with Manager(threads=1, observers=[recorder]) as manager:
        busy = manager.run(gate)
        await call_in_worker(lambda: gate.entered.acquire(timeout=TIMEOUT))
        waiting = manager.run_task(Task(gate, id="w"))
        await wait_until(lambda: waiting.status is TaskStatus.RUNNING)
        waiting.cancel()
        assert await waiting.wait() is TaskStatus.CANCELLED
        timed_out = manager.run_task(Task(gate, timeout=0.001))
        with pytest.raises(TimeoutError):
            await timed_out
        assert busy.status is TaskStatus.RUNNING
        gate.open.set()
        await busy
    assert gate.peak == 1


# Cancellation and timeouts


async def test_cancel_running_function(
    manager: Manager, recorder: RecordingObserver, gate: Gate
) -> None:
    """A cancelled sync function keeps running; its task is cancelled when it returns."""
    handle = manager.run(gate, "unwanted")
    await call_in_worker(lambda: gate.entered.acquire(timeout=TIMEOUT))
    assert handle.cancel("enough")
    for _ in range(10):
        await checkpoint()
    assert handle.status is TaskStatus.RUNNING
    assert gate.running == 1
    gate.open.set()
    with pytest.raises(TaskCancelledError, match="enough"):
        await handle
    assert recorder.names() == ["added", "started", "cancelled"]


async def test_error_after_cancellation(
    manager: Manager, recorder: RecordingObserver, gate: Gate
) -> None:
    """A cancelled sync function that raises fails its task without a retry."""
    error = ValueError("clean-up")
    handle = manager.run_task(Task(gate, args=(error,), retry=3))
    await call_in_worker(lambda: gate.entered.acquire(timeout=TIMEOUT))
    handle.cancel()
    gate.open.set()
    assert await handle.wait() is TaskStatus.FAILED
    assert handle.error is error
    assert recorder.names() == ["added", "started", "failed"]


def ignore_cancellation() -> str:
    """Wait until the task is cancelled, and return normally."""
    deadline = time.monotonic() + TIMEOUT
    with contextlib.suppress(BaseException):
        while time.monotonic() < deadline:
            anyio.from_thread.check_cancelled()
    return "unwanted"


async def test_timeout_of_sync_function(manager: Manager) -> None:
    """A sync function that returns after its timeout has timed out."""
    handle = manager.run_task(Task(ignore_cancellation, timeout=0.01))
    with pytest.raises(TimeoutError):
        await handle


async def test_expiry_of_sync_function(manager: Manager) -> None:
    """A sync function that returns after its lifespan has expired."""
    handle = manager.run_task(Task(ignore_cancellation, lifespan=0.01))
    assert await handle.wait() is TaskStatus.EXPIRED


async def test_check_cancelled(manager: Manager) -> None:
    """`check_cancelled()` raises in the thread of a cancelled task."""
    entered = threading.Event()

    def work() -> None:
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            entered.set()
            anyio.from_thread.check_cancelled()

    handle = manager.run_task(Task(work, retry=3))
    await call_in_worker(lambda: entered.wait(TIMEOUT))
    handle.cancel("enough")
    with pytest.raises(TaskCancelledError, match="enough"):
        await handle
    assert handle.attempt == 1


async def test_check_cancelled_after_timeout(manager: Manager) -> None:
    """`check_cancelled()` raises in the thread after a timeout or the end of the lifespan."""

    def work() -> None:
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            anyio.from_thread.check_cancelled()

    policy = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_none())
    timed_out = manager.run_task(Task(work, timeout=0.01, retry=policy))
    with pytest.raises(TimeoutError):
        await timed_out
    assert timed_out.attempt == 2
    expired = manager.run_task(Task(work, lifespan=0.01))
    assert await expired.wait() is TaskStatus.EXPIRED


async def test_call_event_loop_from_function(manager: Manager) -> None:
    """A sync function can call async functions with `anyio.from_thread`."""

    def work() -> int:
        return anyio.from_thread.run(add_async, 1, 2)

    assert await manager.run(work) == 3


async def test_returned_coroutine_after_cancellation(manager: Manager, gate: Gate) -> None:
    """A coroutine returned by a cancelled sync function is closed without a warning."""

    def make_awaitable() -> Awaitable[int]:
        gate()
        return add_async(1, 2)

    handle = manager.run(make_awaitable)
    await call_in_worker(lambda: gate.entered.acquire(timeout=TIMEOUT))
    handle.cancel()
    gate.open.set()
    assert await handle.wait() is TaskStatus.CANCELLED
    gc.collect()


async def test_cancel_returned_coroutine(manager: Manager) -> None:
    """A coroutine returned by a sync function can be cancelled."""
    entered = anyio.Event()

    async def work() -> None:
        entered.set()
        await anyio.sleep_forever()

    handle = manager.run(lambda: work())
    await entered.wait()
    handle.cancel()
    assert await handle.wait() is TaskStatus.CANCELLED


# Stacks


async def test_stack_of_sync_function(manager: Manager, gate: Gate) -> None:
    """The stack of a sync function is that of its thread, without frames of the library."""

    def outer() -> None:
        inner()

    def inner() -> None:
        gate()

    handle = manager.run(outer)
    assert handle.stack() == []
    await call_in_worker(lambda: gate.entered.acquire(timeout=TIMEOUT))
    names = [frame.name for frame in handle.stack()]
    assert names[:3] == ["outer", "inner", "__call__"]
    assert not any("background" in frame.filename.split("/")[-2] for frame in handle.stack())
    gate.open.set()
    await handle
    assert handle.stack() == []


async def test_stack_of_returned_coroutine(manager: Manager) -> None:
    """The stack of a returned coroutine starts with the coroutine."""
    entered = anyio.Event()

    async def work() -> None:
        entered.set()
        await anyio.sleep_forever()

    handle = manager.run(lambda: work())
    await entered.wait()
    assert handle.stack()[0].name == "work"
    handle.cancel()


async def test_stack_of_submitting_function(recorder: RecordingObserver) -> None:
    """The stack of a submitting function excludes frames of the library only."""
    stacks: list[list[str]] = []

    class StackObserver(Observer):
        def on_task_added(self, event: TaskEvent) -> None:
            if event.name == "child":
                (parent,) = (task for task in manager.tasks() if task.name == "parent")
                stacks.append([frame.name for frame in parent.stack()])

    def submit_child() -> None:
        manager.run_task(Task(add_async, args=(1,), name="child"))

    async with Manager(observers=[StackObserver()]) as manager:
        await manager.run_task(Task(submit_child, name="parent"))
    assert stacks[0][0] == "submit_child"


# Calls from other threads


async def test_submit_from_thread(manager: Manager) -> None:
    """Tasks can be submitted from another thread."""

    def submit() -> list[TaskHandle[Any]]:
        return [
            manager.run(add_async, 1, b=2),
            manager.run(add, 1, b=2),
            manager.after(0.001, add_async, 1, 2),
            manager.run_task(Task(add_async, args=(1, 2), id="one")),
        ]

    handles = await call_in_worker(submit)
    assert [await handle for handle in handles] == [3] * 4


async def test_submit_loops_from_thread(manager: Manager) -> None:
    """Loops can be submitted from another thread."""

    def submit() -> list[TaskHandle[None]]:
        return [
            manager.loop(anyio.sleep, 0.001),
            manager.every(0.001, checkpoint),
            manager.cron("* * * * * *", checkpoint),
            manager.run_task(Task(checkpoint, kind=TaskKind.LOOP, schedule=every(0.001))),
        ]

    loops = await call_in_worker(submit)
    await wait_until(lambda: all(loop.iteration > 1 for loop in [*loops[:2], loops[3]]))
    assert manager.tasks(TaskKind.LOOP) == loops


async def test_added_event_before_return(manager: Manager, recorder: RecordingObserver) -> None:
    """The added event is delivered before the submission from a thread returns."""

    def submit() -> list[str]:
        return recorder.names(manager.after(3600, checkpoint).id)

    assert await call_in_worker(submit) == ["added"]


async def test_rejected_submission_from_thread() -> None:
    """A submission rejected in another thread raises there and leaves no trace."""
    async with Manager(capacity=1) as manager:
        blocker = manager.run_task(Task(anyio.sleep_forever, id="same"))
        with pytest.raises(DuplicateTaskError, match="same"):
            await call_in_worker(lambda: manager.run_task(Task(checkpoint, id="same")))
        with pytest.raises(ManagerFullError):
            await call_in_worker(lambda: manager.run(checkpoint))
        with pytest.raises(InvalidTaskError, match=r"^delay "):
            await call_in_worker(lambda: manager.after(-1, checkpoint))
        with pytest.raises(InvalidTaskError, match=r"^fn "):
            await call_in_worker(lambda: manager.run(add_async(1, 2)))  # type: ignore[arg-type]
        await manager.stop_loops()
        with pytest.raises(LoopsStoppedError):
            await call_in_worker(lambda: manager.loop(checkpoint))
        assert manager.tasks() == [blocker]
        blocker.cancel()
    with pytest.raises(ManagerNotRunningError):
        await call_in_worker(lambda: Manager().run(checkpoint))


@pytest.mark.parametrize("via", ["handle", "manager"])
async def test_cancel_from_thread(manager: Manager, via: str) -> None:
    """Tasks can be cancelled from another thread."""

    def cancel(handle: TaskHandle[Any]) -> bool:
        if via == "handle":
            return handle.cancel("from a thread")
        return manager.cancel(handle.id, reason="from a thread")

    running = manager.run(anyio.sleep_forever)
    delayed = manager.after(3600, checkpoint)
    loop = manager.every(3600, checkpoint)
    await wait_until(lambda: running.status is TaskStatus.RUNNING and loop.iteration == 1)
    for handle in (running, delayed, loop):
        assert await call_in_worker(lambda handle=handle: cancel(handle)) is True
        with pytest.raises(TaskCancelledError, match="from a thread"):
            await handle
        assert await call_in_worker(lambda handle=handle: cancel(handle)) is False


async def test_request_shutdown_from_thread() -> None:
    """A shutdown can be requested from another thread."""
    async with open_manager() as manager:
        handle = manager.run(anyio.sleep_forever)
        loop = manager.every(3600, checkpoint)
        await wait_until(lambda: handle.status is TaskStatus.RUNNING)
        await call_in_worker(manager.request_shutdown)
        assert manager.state == "stopping"
        assert await loop.wait() is TaskStatus.CANCELLED
        await manager.shutdown_requested()
        await call_in_worker(manager.request_shutdown)
        assert await handle.wait() is TaskStatus.CANCELLED
    assert await call_in_worker(manager.request_shutdown) is None


class AsyncObserver(Observer):
    """An observer with async hooks, which need a background service of the manager."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def on_task_added(self, event: TaskEvent) -> None:
        await checkpoint()
        self.names.append(event.name)

    on_task_cancelled = on_task_added


async def test_async_hooks_for_calls_from_threads() -> None:
    """Async hooks get the events of calls from other threads."""
    observer = AsyncObserver()
    async with open_manager(observers=[observer]) as manager:
        handle = await call_in_worker(lambda: manager.run(add_async, 1, 2))
        assert await handle == 3
        delayed = await call_in_worker(lambda: manager.after(3600, checkpoint))
        await wait_until(lambda: observer.names == ["add_async", "checkpoint"])
        await call_in_worker(delayed.cancel)
        await wait_until(lambda: observer.names == ["add_async", "checkpoint", "checkpoint"])


def test_calls_from_event_loop_callback() -> None:
    """A manager can be called from a callback of the event loop, outside any task.

    An asyncio protocol makes such calls.
    """
    observer = AsyncObserver()
    outcomes: list[Any] = []

    async def call_soon(fn: Callable[[], Any]) -> Any:
        called = asyncio.get_running_loop().create_future()

        def call() -> None:
            try:
                called.set_result((fn(), None))
            except Exception as error:
                called.set_result((None, error))

        asyncio.get_running_loop().call_soon(call)
        result, error = await called
        if error is not None:
            raise error
        return result

    async def main() -> None:
        async with open_manager(observers=[observer]) as manager:
            handle = await call_soon(lambda: manager.run(add_async, 1, 2))
            outcomes.append(await handle)
            delayed = await call_soon(lambda: manager.after(3600, checkpoint))
            outcomes.append(await call_soon(delayed.cancel))
            await call_soon(manager.request_shutdown)
            outcomes.append(manager.state)
            await call_soon(manager.request_shutdown)
            outcomes.append(manager.state)

    asyncio.run(main())
    assert outcomes[:3] == [3, True, "stopping"]
    assert outcomes[3] in ("closing", "closed")
    assert observer.names == ["add_async", "checkpoint", "checkpoint"]


async def test_queries_from_thread(manager: Manager) -> None:
    """A manager can be queried from another thread while tasks start and end."""
    ended = threading.Event()

    def query_manager() -> int:
        queries = 0
        while not (queries and ended.is_set()):
            assert manager.count() >= 0
            assert len(manager.tasks()) >= 0
            assert manager.health().ok
            assert manager.get("none") is None
            queries += 1
        return queries

    async def run_tasks() -> None:
        try:
            for _ in range(25):
                manager.run(checkpoint)
                await checkpoint()
            await manager.wait()
        finally:
            ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(run_tasks)
        assert await call_in_worker(query_manager) > 0


async def test_submit_from_sync_task(manager: Manager) -> None:
    """A sync function can submit tasks, which can submit tasks themselves."""

    def parent(depth: int) -> Any:
        return manager.run(parent, depth - 1) if depth else "done"

    assert await manager.run(parent, 5) == "done"


async def test_concurrent_submissions_from_threads(manager: Manager) -> None:
    """Concurrent submissions from several threads all succeed with unique ids."""
    handles: list[TaskHandle[int]] = []

    def submit(thread: int) -> None:
        handles.extend(manager.run(add_async, thread, number) for number in range(100))

    async with anyio.create_task_group() as group:
        for thread in range(8):
            group.start_soon(call_in_worker, functools.partial(submit, 1000 * thread))
    results = sorted([await handle for handle in handles])
    assert results == sorted(1000 * thread + number for thread in range(8) for number in range(100))
    assert len({handle.id for handle in handles}) == 800


# Closing


async def test_submit_from_thread_during_closing() -> None:
    """A closing manager rejects submissions from other threads, but cancels tasks."""
    async with Manager() as manager:
        handle = manager.run(anyio.sleep_forever)
        async with anyio.create_task_group() as group:
            group.start_soon(manager.close)
            await wait_until(lambda: manager.state == "closing")
            for submit in (manager.run, manager.loop):
                with pytest.raises(ManagerClosedError):
                    await call_in_worker(functools.partial(submit, checkpoint))
            assert await call_in_worker(handle.cancel)
    assert handle.status is TaskStatus.CANCELLED


async def test_submit_from_thread_after_closing() -> None:
    """A closed manager rejects submissions from other threads."""
    async with Manager() as manager:
        handle = manager.run(checkpoint)
    for submit in (manager.run, manager.loop):
        with pytest.raises(ManagerClosedError):
            await call_in_worker(functools.partial(submit, checkpoint))
    assert await call_in_worker(handle.cancel) is False
    assert await call_in_worker(lambda: manager.cancel("none")) is False
    assert await call_in_worker(lambda: manager.count()) == 0


async def test_cancel_stuck_task_from_thread() -> None:
    """Cancelling a stuck task of a closed manager from another thread changes nothing."""
    release = anyio.Event()

    async def work() -> None:
        with anyio.CancelScope(shield=True):
            await release.wait()

    async with Manager(cancel_timeout=0) as manager:
        handle = manager.run(work)
        await wait_until(lambda: handle.status is TaskStatus.RUNNING)
        await manager.close(timeout=0)
    try:
        assert await call_in_worker(handle.cancel) is True
        assert await call_in_worker(lambda: manager.cancel(handle.id)) is True
    finally:
        release.set()
    await handle.wait()
    assert await call_in_worker(handle.cancel) is False


@pytest.mark.parametrize("round", range(5))
async def test_submit_from_threads_until_closing(round: int) -> None:
    """Every submission during closing is either rejected or its task runs to completion."""
    handles: list[TaskHandle[int]] = []
    refused = threading.Semaphore(0)

    def submit() -> None:
        try:
            while True:
                handles.append(manager.run(add_async, 1))
        except ManagerClosedError:
            refused.release()

    async with Manager() as manager:
        threads = [threading.Thread(target=submit, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        await wait_until(lambda: len(handles) > 20)
    for thread in threads:
        await call_in_worker(functools.partial(thread.join, TIMEOUT))
    for _ in threads:
        assert refused.acquire(timeout=TIMEOUT)
    assert {handle.status for handle in handles} == {TaskStatus.SUCCEEDED}


def test_submit_after_event_loop_ended(anyio_backend: Any) -> None:
    """A manager that was not closed rejects calls after its event loop has ended."""
    manager = Manager()

    async def enter() -> TaskHandle[None]:
        await manager.__aenter__()
        return manager.after(3600, checkpoint)

    backend, options = anyio_backend
    handle = anyio.run(enter, backend=backend, backend_options=options)
    for call in (
        functools.partial(manager.run, checkpoint),
        functools.partial(manager.after, 10, checkpoint),
        functools.partial(manager.loop, checkpoint),
    ):
        assert isinstance(call_in_new_thread(call), ManagerClosedError)
        with pytest.raises(ManagerClosedError):
            call()
    assert isinstance(call_in_new_thread(handle.cancel), ManagerClosedError)


def test_submit_after_thread_ended(anyio_backend: Any) -> None:
    """A manager rejects calls after the thread of its event loop has ended.

    A new thread may get the identifier of the ended one.
    """
    manager = Manager()
    backend, options = anyio_backend

    async def run() -> None:
        async with manager:
            await manager.run(checkpoint)

    def run_in_thread() -> None:
        anyio.run(run, backend=backend, backend_options=options)

    assert call_in_new_thread(run_in_thread) is None
    for _ in range(3):
        assert isinstance(call_in_new_thread(lambda: manager.run(checkpoint)), ManagerClosedError)
    with pytest.raises(ManagerClosedError):
        manager.run(checkpoint)


def test_manager_in_another_thread(anyio_backend: Any) -> None:
    """A manager in another thread runs tasks submitted from the main thread."""
    manager = Manager()
    backend, options = anyio_backend
    entered, done = threading.Event(), threading.Event()

    async def work() -> None:
        done.set()

    async def run() -> None:
        async with manager:
            entered.set()
            await manager.shutdown_requested()

    thread = threading.Thread(
        target=lambda: anyio.run(run, backend=backend, backend_options=options)
    )
    thread.start()
    try:
        assert entered.wait(TIMEOUT)
        handle = manager.run(work)
        assert done.wait(TIMEOUT)
    finally:
        manager.request_shutdown()
        thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert handle.status is TaskStatus.SUCCEEDED
    with pytest.raises(ManagerClosedError):
        manager.run(work)


# The portal alone, for races within one step of an event loop


class ManualBackend:
    """A backend that runs calls when the test requests it."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.called = threading.Event()

    def call_soon(self, fn: Callable[[], object], *context: Context) -> None:
        self.calls.append(fn)
        self.called.set()


@contextlib.contextmanager
def calling_portal(
    portal: Portal, fn: Callable[[], object]
) -> Iterator[list[BaseException | None]]:
    """Call the portal in another thread, and wait for its end when the block ends."""
    raised: list[BaseException | None] = []
    thread = threading.Thread(target=lambda: raised.append(call_portal(portal, fn)), daemon=True)
    thread.start()
    yield raised
    thread.join(TIMEOUT)
    assert raised, "the call hangs"


def call_portal(portal: Portal, fn: Callable[[], object]) -> BaseException | None:
    try:
        portal.call(fn)
    except BaseException as error:
        return error
    return None


def test_portal_closed_before_call() -> None:
    """A portal that closes before a pending call runs rejects the call."""
    backend = ManualBackend()
    portal = Portal(backend)
    calls: list[int] = []
    with calling_portal(portal, lambda: calls.append(1)) as raised:
        assert backend.called.wait(TIMEOUT)
        portal.close()
    backend.calls[0]()
    assert isinstance(raised[0], ManagerClosedError)
    assert calls == []


def test_closed_portal() -> None:
    """A closed portal rejects calls."""
    backend = ManualBackend()
    portal = Portal(backend)
    portal.close()
    with calling_portal(portal, lambda: None) as raised:
        pass
    assert isinstance(raised[0], ManagerClosedError)
    assert backend.calls == []


def test_portal_closed_after_call() -> None:
    """A call returns its result if the portal closes right after it has run."""

    class ClosingBackend(ManualBackend):
        def call_soon(self, fn: Callable[[], object], *context: Context) -> None:
            fn()
            portal.close()

    portal = Portal(ClosingBackend())
    calls: list[int] = []
    with calling_portal(portal, lambda: calls.append(1)) as raised:
        pass
    assert raised == [None]
    assert calls == [1]


def test_portal_runtime_error() -> None:
    """A portal raises a `RuntimeError` of the call unchanged."""

    class ImmediateBackend(ManualBackend):
        def call_soon(self, fn: Callable[[], object], *context: Context) -> None:
            fn()

    def fail() -> None:
        raise RuntimeError("wrong")

    with calling_portal(Portal(ImmediateBackend()), fail) as raised:
        pass
    assert type(raised[0]) is RuntimeError


def test_submit_after_asyncio_loop_closed() -> None:
    """A manager rejects submissions after its asyncio event loop is closed."""
    loop = asyncio.new_event_loop()
    manager = Manager()

    async def enter_and_leave() -> None:
        async with manager:
            pass

    loop.run_until_complete(enter_and_leave())
    loop.close()
    assert isinstance(call_in_new_thread(lambda: manager.run(checkpoint)), ManagerClosedError)
