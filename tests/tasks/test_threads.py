"""Rule 8: sync functions in threads, and calls from other threads."""

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
PATIENCE = 10  # seconds until a test that hangs fails


async def elsewhere(fn: Callable[[], T]) -> T:
    """Call a function in another thread, and let it hang there if it does."""
    with anyio.fail_after(PATIENCE):
        return await anyio.to_thread.run_sync(fn, abandon_on_cancel=True)


def in_new_thread(fn: Callable[[], object]) -> BaseException | None:
    """As `elsewhere`, without an event loop; return what the function raises."""
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
    thread.join(PATIENCE)
    assert raised, "the call hangs"
    return raised[0]


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():
            await checkpoint()


@contextlib.asynccontextmanager
async def closing(**options: Any) -> AsyncIterator[Manager]:
    """A manager that waits for nothing where a test fails."""
    async with Manager(**options) as manager:
        try:
            yield manager
        except BaseException:
            with anyio.CancelScope(shield=True):
                await manager.close(timeout=0)
            raise


class Gate:
    """A sync function that waits to be let through."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, value: Any = None) -> Any:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.entered.release()
        try:
            assert self.open.wait(PATIENCE)
        finally:
            with self._lock:
                self.inside -= 1
        if isinstance(value, Exception):
            raise value
        return value


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


# What can be run


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
    """A class is a callable too, and this one makes awaitables."""

    def __init__(self, a: int, b: int = 0) -> None:
        self._numbers = a, b

    def __await__(self) -> Generator[Any, Any, int]:
        return add_async(*self._numbers).__await__()


def wrapped(fn: Callable[..., Any]) -> Callable[..., Any]:
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
        wrapped(add),
        wrapped(add_async),
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
async def test_whatever_can_be_called_can_be_run(manager: Manager, fn: Callable[..., Any]) -> None:
    args = () if isinstance(fn, functools.partial) else (1,)
    if isinstance(fn, functools.partial) and not fn.args:
        args = (1,)
    assert await manager.run(fn, *args, b=2) == 3


class Endless:
    """Looks like a partial of a partial, without end."""

    depth = 0

    @property
    def func(self) -> Endless:
        self.depth += 1
        assert self.depth < 100
        return self

    async def __call__(self) -> int:
        return await add_async(1, 2)


async def test_object_with_attributes_of_all_kinds(manager: Manager) -> None:
    """As the mocks have with which people test their own code."""
    handle = manager.run(Endless())
    assert handle.name == "Endless"
    assert await handle == 3
    assert await manager.run(AsyncMock(return_value=3)) == 3
    assert await manager.run(Mock(return_value=3)) == 3


async def test_class_whose_objects_are_called_later(manager: Manager) -> None:
    """Calling the class makes an object; what calling that would do is no matter here."""
    assert isinstance(await manager.run(AsyncAdder), AsyncAdder)


async def test_handle_that_a_sync_function_returns_is_awaited(manager: Manager) -> None:
    assert await manager.run(lambda: manager.run(add_async, 1, 2)) == 3


async def test_coroutine_that_an_async_function_returns_is_its_result(manager: Manager) -> None:
    async def work() -> Coroutine[Any, Any, int]:
        return add_async(1, 2)

    coroutine = await manager.run(work)
    assert await coroutine == 3


async def test_loop_around_a_lambda(manager: Manager) -> None:
    loop = manager.loop(lambda: add_async(1, 2))
    await until(lambda: loop.iteration > 3)
    assert loop.error is None


async def test_error_of_a_coroutine_that_a_lambda_returns(manager: Manager) -> None:
    async def fail() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await manager.run(lambda: fail())


# The manager's own threads


async def test_no_more_threads_than_the_manager_was_given(gate: Gate) -> None:
    async with Manager(threads=2) as manager:
        handles = [manager.run(gate, number) for number in range(5)]
        for _ in range(2):
            await elsewhere(lambda: gate.entered.acquire(timeout=PATIENCE))
        assert manager.health().threads == 2
        assert manager.health().running == 5
        default = anyio.to_thread.current_default_thread_limiter()
        assert default.borrowed_tokens == 0
        assert gate.inside == 2
        gate.open.set()
        assert [await handle for handle in handles] == list(range(5))
    assert gate.most == 2


async def test_async_functions_need_no_thread(gate: Gate) -> None:
    async with Manager(threads=1) as manager:
        handle = manager.run(gate)
        await elsewhere(lambda: gate.entered.acquire(timeout=PATIENCE))
        assert await manager.run(add_async, 1, 2) == 3
        gate.open.set()
        await handle


async def test_two_managers_do_not_share_their_threads(gate: Gate) -> None:
    async with Manager(threads=1) as first, Manager(threads=1) as second:
        handle = first.run(gate)
        await elsewhere(lambda: gate.entered.acquire(timeout=PATIENCE))
        assert await second.run(add, 1, 2) == 3
        gate.open.set()
        await handle


async def test_cancelled_while_it_waits_for_a_thread(
    gate: Gate, recorder: RecordingObserver
) -> None:
    async with Manager(threads=1, observers=[recorder]) as manager:
        busy = manager.run(gate)
        await elsewhere(lambda: gate.entered.acquire(timeout=PATIENCE))
        waiting = manager.run_task(Task(gate, id="w"))
        await until(lambda: waiting.status is TaskStatus.RUNNING)
        waiting.cancel()
        assert await waiting.wait() is TaskStatus.CANCELLED
        timed_out = manager.run_task(Task(gate, timeout=0.001))
        with pytest.raises(TimeoutError):
            await timed_out
        assert busy.status is TaskStatus.RUNNING
        gate.open.set()
        await busy
    assert gate.most == 1


# Ending what runs in a thread


async def test_cancelled_function_ends_when_it_returns(
    manager: Manager, recorder: RecordingObserver, gate: Gate
) -> None:
    handle = manager.run(gate, "unwanted")
    await elsewhere(lambda: gate.entered.acquire(timeout=PATIENCE))
    assert handle.cancel("enough")
    for _ in range(10):
        await checkpoint()
    assert handle.status is TaskStatus.RUNNING
    assert gate.inside == 1
    gate.open.set()
    with pytest.raises(TaskCancelledError, match="enough"):
        await handle
    assert recorder.names() == ["added", "started", "cancelled"]


async def test_error_of_a_cancelled_function_is_not_lost(
    manager: Manager, recorder: RecordingObserver, gate: Gate
) -> None:
    error = ValueError("clean-up")
    handle = manager.run_task(Task(gate, args=(error,), retry=3))
    await elsewhere(lambda: gate.entered.acquire(timeout=PATIENCE))
    handle.cancel()
    gate.open.set()
    assert await handle.wait() is TaskStatus.FAILED
    assert handle.error is error
    assert recorder.names() == ["added", "started", "failed"]


def deaf() -> str:
    """Return as if nothing had been when it is told to stop."""
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(BaseException):
        while time.monotonic() < deadline:
            anyio.from_thread.check_cancelled()
    return "unwanted"


async def test_function_that_returns_too_late_has_timed_out(manager: Manager) -> None:
    handle = manager.run_task(Task(deaf, timeout=0.01))
    with pytest.raises(TimeoutError):
        await handle


async def test_function_that_returns_after_its_lifespan_has_expired(manager: Manager) -> None:
    handle = manager.run_task(Task(deaf, lifespan=0.01))
    assert await handle.wait() is TaskStatus.EXPIRED


async def test_function_may_ask_whether_it_was_cancelled(manager: Manager) -> None:
    entered = threading.Event()

    def work() -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            entered.set()
            anyio.from_thread.check_cancelled()

    handle = manager.run_task(Task(work, retry=3))
    await elsewhere(lambda: entered.wait(PATIENCE))
    handle.cancel("enough")
    with pytest.raises(TaskCancelledError, match="enough"):
        await handle
    assert handle.attempt == 1


async def test_function_may_ask_whether_its_time_is_up(manager: Manager) -> None:
    def work() -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            anyio.from_thread.check_cancelled()

    policy = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_none())
    timed_out = manager.run_task(Task(work, timeout=0.01, retry=policy))
    with pytest.raises(TimeoutError):
        await timed_out
    assert timed_out.attempt == 2
    expired = manager.run_task(Task(work, lifespan=0.01))
    assert await expired.wait() is TaskStatus.EXPIRED


async def test_function_may_call_into_the_event_loop(manager: Manager) -> None:
    def work() -> int:
        return anyio.from_thread.run(add_async, 1, 2)

    assert await manager.run(work) == 3


async def test_coroutine_of_a_function_that_was_cancelled_meanwhile(
    manager: Manager, gate: Gate
) -> None:
    """It is not awaited any more, and nobody is warned of that."""

    def make() -> Awaitable[int]:
        gate()
        return add_async(1, 2)

    handle = manager.run(make)
    await elsewhere(lambda: gate.entered.acquire(timeout=PATIENCE))
    handle.cancel()
    gate.open.set()
    assert await handle.wait() is TaskStatus.CANCELLED
    gc.collect()


async def test_coroutine_of_a_function_is_cancelled_like_any_other(manager: Manager) -> None:
    entered = anyio.Event()

    async def work() -> None:
        entered.set()
        await anyio.sleep_forever()

    handle = manager.run(lambda: work())
    await entered.wait()
    handle.cancel()
    assert await handle.wait() is TaskStatus.CANCELLED


# Where it stands


async def test_stack_of_a_function_in_a_thread(manager: Manager, gate: Gate) -> None:
    def outer() -> None:
        inner()

    def inner() -> None:
        gate()

    handle = manager.run(outer)
    assert handle.stack() == []
    await elsewhere(lambda: gate.entered.acquire(timeout=PATIENCE))
    names = [frame.name for frame in handle.stack()]
    assert names[:3] == ["outer", "inner", "__call__"]
    assert not any("background" in frame.filename.split("/")[-2] for frame in handle.stack())
    gate.open.set()
    await handle
    assert handle.stack() == []


async def test_stack_of_a_coroutine_that_a_function_returned(manager: Manager) -> None:
    entered = anyio.Event()

    async def work() -> None:
        entered.set()
        await anyio.sleep_forever()

    handle = manager.run(lambda: work())
    await entered.wait()
    assert handle.stack()[0].name == "work"
    handle.cancel()


async def test_stack_of_a_function_that_is_submitting(recorder: RecordingObserver) -> None:
    """This library's own frames are left out, not what is beyond them."""
    stacks: list[list[str]] = []

    class Look(Observer):
        def on_task_added(self, event: TaskEvent) -> None:
            if event.name == "child":
                (parent,) = (each for each in manager.tasks() if each.name == "parent")
                stacks.append([frame.name for frame in parent.stack()])

    def submitting() -> None:
        manager.run_task(Task(add_async, args=(1,), name="child"))

    async with Manager(observers=[Look()]) as manager:
        await manager.run_task(Task(submitting, name="parent"))
    assert stacks[0][0] == "submitting"


# Calls from other threads


async def test_tasks_from_another_thread(manager: Manager) -> None:
    def submit() -> list[TaskHandle[Any]]:
        return [
            manager.run(add_async, 1, b=2),
            manager.run(add, 1, b=2),
            manager.after(0.001, add_async, 1, 2),
            manager.run_task(Task(add_async, args=(1, 2), id="own")),
        ]

    handles = await elsewhere(submit)
    assert [await handle for handle in handles] == [3] * 4


async def test_loops_from_another_thread(manager: Manager) -> None:
    def submit() -> list[TaskHandle[None]]:
        return [
            manager.loop(anyio.sleep, 0.001),
            manager.every(0.001, checkpoint),
            manager.cron("* * * * * *", checkpoint),
            manager.run_task(Task(checkpoint, kind=TaskKind.LOOP, schedule=every(0.001))),
        ]

    loops = await elsewhere(submit)
    await until(lambda: all(loop.iteration > 1 for loop in [*loops[:2], loops[3]]))
    assert manager.tasks(TaskKind.LOOP) == loops


async def test_added_is_told_before_the_submission_returns(
    manager: Manager, recorder: RecordingObserver
) -> None:
    def submit() -> list[str]:
        return recorder.names(manager.after(3600, checkpoint).id)

    assert await elsewhere(submit) == ["added"]


async def test_submission_that_fails_in_another_thread() -> None:
    async with Manager(capacity=1) as manager:
        blocker = manager.run_task(Task(anyio.sleep_forever, id="same"))
        with pytest.raises(DuplicateTaskError, match="same"):
            await elsewhere(lambda: manager.run_task(Task(checkpoint, id="same")))
        with pytest.raises(ManagerFullError):
            await elsewhere(lambda: manager.run(checkpoint))
        with pytest.raises(InvalidTaskError, match=r"^delay "):
            await elsewhere(lambda: manager.after(-1, checkpoint))
        with pytest.raises(InvalidTaskError, match=r"^fn "):
            await elsewhere(lambda: manager.run(add_async(1, 2)))  # type: ignore[arg-type]
        await manager.stop_loops()
        with pytest.raises(LoopsStoppedError):
            await elsewhere(lambda: manager.loop(checkpoint))
        assert manager.tasks() == [blocker]
        blocker.cancel()
    with pytest.raises(ManagerNotRunningError):
        await elsewhere(lambda: Manager().run(checkpoint))


@pytest.mark.parametrize("how", ["handle", "manager"])
async def test_cancel_from_another_thread(manager: Manager, how: str) -> None:
    def cancel(handle: TaskHandle[Any]) -> bool:
        if how == "handle":
            return handle.cancel("from afar")
        return manager.cancel(handle.id, reason="from afar")

    running = manager.run(anyio.sleep_forever)
    delayed = manager.after(3600, checkpoint)
    loop = manager.every(3600, checkpoint)
    await until(lambda: running.status is TaskStatus.RUNNING and loop.iteration == 1)
    for handle in (running, delayed, loop):
        assert await elsewhere(lambda handle=handle: cancel(handle)) is True
        with pytest.raises(TaskCancelledError, match="from afar"):
            await handle
        assert await elsewhere(lambda handle=handle: cancel(handle)) is False


async def test_request_shutdown_from_another_thread() -> None:
    async with closing() as manager:
        handle = manager.run(anyio.sleep_forever)
        loop = manager.every(3600, checkpoint)
        await until(lambda: handle.status is TaskStatus.RUNNING)
        await elsewhere(manager.request_shutdown)
        assert manager.state == "stopping"
        assert await loop.wait() is TaskStatus.CANCELLED
        await manager.shutdown_requested()
        await elsewhere(manager.request_shutdown)
        assert await handle.wait() is TaskStatus.CANCELLED
    assert await elsewhere(manager.request_shutdown) is None


class Slow(Observer):
    """Told by coroutines, for which the manager needs a service of its own."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def on_task_added(self, event: TaskEvent) -> None:
        await checkpoint()
        self.names.append(event.name)

    on_task_cancelled = on_task_added


async def test_async_hooks_are_told_of_what_other_threads_do() -> None:
    slow = Slow()
    async with closing(observers=[slow]) as manager:
        handle = await elsewhere(lambda: manager.run(add_async, 1, 2))
        assert await handle == 3
        delayed = await elsewhere(lambda: manager.after(3600, checkpoint))
        await until(lambda: slow.names == ["add_async", "checkpoint"])
        await elsewhere(delayed.cancel)
        await until(lambda: slow.names == ["add_async", "checkpoint", "checkpoint"])


def test_calls_from_a_callback_of_the_event_loop() -> None:
    """As from an asyncio protocol, where no task is the current one."""
    slow = Slow()
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
        async with closing(observers=[slow]) as manager:
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
    assert slow.names == ["add_async", "checkpoint", "checkpoint"]


async def test_looking_from_another_thread(manager: Manager) -> None:
    """While tasks come and go, nobody stumbles over them."""
    over = threading.Event()

    def look() -> int:
        looks = 0
        while not (looks and over.is_set()):
            assert manager.count() >= 0
            assert len(manager.tasks()) >= 0
            assert manager.health().ok
            assert manager.get("none") is None
            looks += 1
        return looks

    async def come_and_go() -> None:
        try:
            for _ in range(25):
                manager.run(checkpoint)
                await checkpoint()
            await manager.wait()
        finally:
            over.set()

    async with anyio.create_task_group() as group:
        group.start_soon(come_and_go)
        assert await elsewhere(look) > 0


async def test_tasks_submit_tasks_from_their_threads(manager: Manager) -> None:
    def parent(depth: int) -> Any:
        return manager.run(parent, depth - 1) if depth else "done"

    assert await manager.run(parent, 5) == "done"


async def test_many_threads_submit_at_once(manager: Manager) -> None:
    handles: list[TaskHandle[int]] = []

    def submit(thread: int) -> None:
        handles.extend(manager.run(add_async, thread, number) for number in range(100))

    async with anyio.create_task_group() as group:
        for thread in range(8):
            group.start_soon(elsewhere, functools.partial(submit, 1000 * thread))
    results = sorted([await handle for handle in handles])
    assert results == sorted(1000 * thread + number for thread in range(8) for number in range(100))
    assert len({handle.id for handle in handles}) == 800


# Closing, and after it


async def test_closing_manager_takes_nothing_from_other_threads() -> None:
    async with Manager() as manager:
        handle = manager.run(anyio.sleep_forever)
        async with anyio.create_task_group() as group:
            group.start_soon(manager.close)
            await until(lambda: manager.state == "closing")
            for submit in (manager.run, manager.loop):
                with pytest.raises(ManagerClosedError):
                    await elsewhere(functools.partial(submit, checkpoint))
            assert await elsewhere(handle.cancel)
    assert handle.status is TaskStatus.CANCELLED


async def test_closed_manager_takes_nothing_from_other_threads() -> None:
    async with Manager() as manager:
        handle = manager.run(checkpoint)
    for submit in (manager.run, manager.loop):
        with pytest.raises(ManagerClosedError):
            await elsewhere(functools.partial(submit, checkpoint))
    assert await elsewhere(handle.cancel) is False
    assert await elsewhere(lambda: manager.cancel("none")) is False
    assert await elsewhere(lambda: manager.count()) == 0


@pytest.mark.parametrize("round", range(5))
async def test_threads_that_submit_until_the_manager_closes(round: int) -> None:
    """Each submission is either refused, or its task is seen to its end; none hangs."""
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
        await until(lambda: len(handles) > 20)
    for thread in threads:
        await elsewhere(functools.partial(thread.join, PATIENCE))
    for _ in threads:
        assert refused.acquire(timeout=PATIENCE)
    assert {handle.status for handle in handles} == {TaskStatus.SUCCEEDED}


def test_event_loop_that_has_ended(anyio_backend: Any) -> None:
    """A manager that nobody left takes nothing more; neither there nor elsewhere is it a hang."""
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
        assert isinstance(in_new_thread(call), ManagerClosedError)
        with pytest.raises(ManagerClosedError):
            call()
    assert isinstance(in_new_thread(handle.cancel), ManagerClosedError)


def test_event_loop_of_another_thread_that_has_ended(anyio_backend: Any) -> None:
    """The next thread may well get the number of the one that is gone."""
    manager = Manager()
    backend, options = anyio_backend

    async def run() -> None:
        async with manager:
            await manager.run(checkpoint)

    def run_in_thread() -> None:
        anyio.run(run, backend=backend, backend_options=options)

    assert in_new_thread(run_in_thread) is None
    for _ in range(3):
        assert isinstance(in_new_thread(lambda: manager.run(checkpoint)), ManagerClosedError)
    with pytest.raises(ManagerClosedError):
        manager.run(checkpoint)


def test_manager_in_another_thread_serves_the_main_thread(anyio_backend: Any) -> None:
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
        assert entered.wait(PATIENCE)
        handle = manager.run(work)
        assert done.wait(PATIENCE)
    finally:
        manager.request_shutdown()
        thread.join(PATIENCE)
    assert not thread.is_alive()
    assert handle.status is TaskStatus.SUCCEEDED
    with pytest.raises(ManagerClosedError):
        manager.run(work)


# The portal by itself, for what happens within one step of an event loop


class OneStep:
    """Stands for an event loop in which a call has its turn when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.called = threading.Event()

    def call_soon(self, fn: Callable[[], object], *context: Context) -> None:
        self.calls.append(fn)
        self.called.set()


@contextlib.contextmanager
def calling(portal: Portal, fn: Callable[[], object]) -> Iterator[list[BaseException | None]]:
    """Make the call in another thread, and see it end."""
    raised: list[BaseException | None] = []
    thread = threading.Thread(target=lambda: raised.append(in_this_thread(portal, fn)), daemon=True)
    thread.start()
    yield raised
    thread.join(PATIENCE)
    assert raised, "the call hangs"


def in_this_thread(portal: Portal, fn: Callable[[], object]) -> BaseException | None:
    try:
        portal.call(fn)
    except BaseException as error:
        return error
    return None


def test_portal_that_closes_before_a_call_has_its_turn() -> None:
    backend = OneStep()
    portal = Portal(backend)
    turns: list[int] = []
    with calling(portal, lambda: turns.append(1)) as raised:
        assert backend.called.wait(PATIENCE)
        portal.close()
    backend.calls[0]()
    assert isinstance(raised[0], ManagerClosedError)
    assert turns == []


def test_portal_that_has_closed() -> None:
    backend = OneStep()
    portal = Portal(backend)
    portal.close()
    with calling(portal, lambda: None) as raised:
        pass
    assert isinstance(raised[0], ManagerClosedError)
    assert backend.calls == []


def test_portal_that_closes_right_after_a_call() -> None:
    """The thread that called has its answer, but had no time yet to take it."""

    class Closing(OneStep):
        def call_soon(self, fn: Callable[[], object], *context: Context) -> None:
            fn()
            portal.close()

    portal = Portal(Closing())
    turns: list[int] = []
    with calling(portal, lambda: turns.append(1)) as raised:
        pass
    assert raised == [None]
    assert turns == [1]


def test_portal_passes_a_runtime_error_of_the_call_on() -> None:
    class Immediate(OneStep):
        def call_soon(self, fn: Callable[[], object], *context: Context) -> None:
            fn()

    def fail() -> None:
        raise RuntimeError("the call's own")

    with calling(Portal(Immediate()), fail) as raised:
        pass
    assert type(raised[0]) is RuntimeError


def test_asyncio_loop_that_is_closed_with_a_manager_in_it() -> None:
    loop = asyncio.new_event_loop()
    manager = Manager()

    async def enter_and_leave() -> None:
        async with manager:
            pass

    loop.run_until_complete(enter_and_leave())
    loop.close()
    assert isinstance(in_new_thread(lambda: manager.run(checkpoint)), ManagerClosedError)
