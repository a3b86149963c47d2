"""Task handles: results, states, cancellation, and stacks."""

from __future__ import annotations

import linecache
import threading
from collections.abc import AsyncIterator, Generator
from datetime import UTC, datetime
from traceback import FrameSummary, extract_tb
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.time import SOON, ages

from background import (
    Manager,
    Task,
    TaskCancelledError,
    TaskExpiredError,
    TaskHandle,
    TaskKind,
    TaskStatus,
    every,
)
from background._support.stacks import of_coroutine, of_thread
from background.testing import RecordingObserver, virtual_wall_clock

DAY_ONE = datetime(2025, 1, 1, tzinfo=UTC)
EPOCH = DAY_ONE.timestamp()


def list_lines(stack: list[FrameSummary]) -> list[str]:
    """Return the source lines of the frames that are in this file."""
    return [frame.line or "" for frame in stack if frame.filename == __file__]


def list_functions(stack: list[FrameSummary]) -> list[str]:
    return [frame.name for frame in stack]


async def return_value(value: Any) -> Any:
    return value


async def fail() -> None:
    raise ValueError("no luck")


# Results


async def test_await_handle(manager: Manager) -> None:
    """Awaiting a handle returns the task's result, as `result()` does."""
    handle = manager.run(return_value, 5)
    assert await handle == 5
    assert await handle.result() == 5
    assert await handle.wait() is TaskStatus.SUCCEEDED


async def test_many_waiters(manager: Manager) -> None:
    """All waiters of a task get its result."""
    release = anyio.Event()
    results: list[object] = []

    async def work() -> object:
        await release.wait()
        return release

    handle = manager.run(work)

    async def wait_for_result() -> None:
        results.append(await handle)

    async with anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(wait_for_result)
        await anyio.wait_all_tasks_blocked()
        assert results == []
        release.set()
    assert results == [release] * 100


async def test_cancelled_waiter(
    manager: Manager,
) -> None:
    """Cancelling a waiter affects neither the task nor its other waiters."""
    release = anyio.Event()
    handle = manager.run(release.wait)
    statuses: list[object] = []

    async def wait_for_status() -> None:
        statuses.append(await handle.wait())

    async with anyio.create_task_group() as group:
        group.start_soon(wait_for_status)
        with anyio.move_on_after(1) as scope:
            await handle
        assert scope.cancelled_caught
        assert handle.status is TaskStatus.RUNNING
        release.set()
    assert statuses == [TaskStatus.SUCCEEDED]


@pytest.mark.parametrize("ended", [True, False])
async def test_wait_is_cancellation_point(manager: Manager, ended: bool) -> None:
    """`wait()` is a cancellation point, even if the task has ended."""
    handle = manager.run(return_value, 1) if ended else manager.after(10, return_value, 1)
    if ended:
        await handle
    with anyio.CancelScope() as scope:
        scope.cancel()
        await handle.wait()
    assert scope.cancelled_caught
    assert await handle == 1


async def test_wait_is_checkpoint(manager: Manager) -> None:
    """Awaiting an ended task lets other tasks run."""
    handle = manager.run(return_value, 1)
    await handle
    ran: list[str] = []

    async def run_once() -> None:
        ran.append("ran")

    async with anyio.create_task_group() as group:
        group.start_soon(run_once)
        while not ran:
            await handle


async def test_failure_raised_to_all_waiters(manager: Manager) -> None:
    """Every waiter of a failed task gets its error."""
    handle = manager.run(fail)
    errors: list[BaseException] = []
    for _ in range(3):
        with pytest.raises(ValueError, match="no luck") as caught:
            await handle
        errors.append(caught.value)
    assert await handle.wait() is TaskStatus.FAILED
    assert errors == [handle.error] * 3


async def test_traceback_does_not_grow(manager: Manager) -> None:
    """The traceback of an error does not grow with the number of waiters."""
    handle = manager.run(fail)
    depths: set[int] = set()
    for _ in range(20):
        with pytest.raises(ValueError, match="no luck") as caught:
            await handle
        names = list_functions(list(extract_tb(caught.value.__traceback__)))
        assert names[-1] == "fail"
        depths.add(len(names))
    assert len(depths) == 1


async def test_traceback_includes_waiter(manager: Manager) -> None:
    """The traceback of an error starts in the waiter and ends in the failed function."""
    handle = manager.run(fail)
    with pytest.raises(ValueError, match="no luck") as caught:
        await handle
    assert handle.error is caught.value
    names = list_functions(list(extract_tb(caught.value.__traceback__)))
    assert names[0] == "test_traceback_includes_waiter"
    assert names[-1] == "fail"


async def test_result_of_cancelled_task(manager: Manager) -> None:
    """The result of a cancelled task raises `TaskCancelledError` with the reason."""
    handle = manager.run(ages)
    await anyio.wait_all_tasks_blocked()
    assert handle.cancel("not wanted")
    with pytest.raises(TaskCancelledError, match="was cancelled: not wanted") as caught:
        await handle
    error = caught.value
    assert (error.name, error.id, error.reason) == (handle.name, handle.id, "not wanted")
    assert handle.error is None
    assert await handle.wait() is TaskStatus.CANCELLED


async def test_cancel_without_reason(manager: Manager) -> None:
    """`TaskCancelledError` has no reason if `cancel()` got none."""
    handle = manager.after(10, return_value, 1)
    handle.cancel()
    with pytest.raises(TaskCancelledError, match=r"was cancelled$") as caught:
        await handle
    assert caught.value.reason is None


async def test_result_of_expired_task(manager: Manager) -> None:
    """The result of an expired task raises `TaskExpiredError` with the lifespan."""
    handle = manager.run_task(Task(ages, lifespan=2.5, name="nap"))
    with pytest.raises(
        TaskExpiredError, match=r"'nap' .* outlived its lifespan of 2\.5 s"
    ) as caught:
        await handle
    assert (caught.value.name, caught.value.id, caught.value.lifespan) == ("nap", handle.id, 2.5)
    assert await handle.wait() is TaskStatus.EXPIRED


async def test_result_of_stopped_loop(manager: Manager) -> None:
    """The result of a stopped loop raises `TaskCancelledError` with the reason "stopped"."""
    handle = manager.every(10, checkpoint)
    await manager.stop_loops()
    with pytest.raises(TaskCancelledError, match="stopped") as caught:
        await handle
    assert caught.value.reason == "stopped"


async def test_result_of_failed_loop(manager: Manager) -> None:
    """The result of a failed loop raises the error of its last iteration."""
    handle = manager.run_task(Task(fail, kind=TaskKind.LOOP, max_failures=2))
    with pytest.raises(ValueError, match="no luck"):
        await handle


async def test_task_waits_for_task(manager: Manager) -> None:
    """A task can wait for the result of another task."""
    first = manager.after(10, return_value, "first")

    async def second() -> str:
        return await first + " then second"

    assert await manager.run(second) == "first then second"


# State transitions


async def test_one_off_states(manager: Manager) -> None:
    """A one-off task is waiting, running, then succeeded, and records the time of each."""
    seen: list[tuple[object, ...]] = []

    async def work() -> None:
        seen.append((handle.status, handle.attempt, handle.iteration, handle.error))
        await anyio.sleep(3)

    with virtual_wall_clock(DAY_ONE):
        handle = manager.after(5, work)
        assert (handle.status, handle.attempt, handle.iteration) == (TaskStatus.WAITING, 0, 0)
        assert (handle.submitted_at, handle.started_at, handle.finished_at) == (EPOCH, None, None)
        await handle
    assert seen == [(TaskStatus.RUNNING, 1, 0, None)]
    assert (handle.status, handle.attempt, handle.iteration) == (TaskStatus.SUCCEEDED, 1, 0)
    assert handle.submitted_at == EPOCH
    assert handle.started_at == pytest.approx(EPOCH + 5)
    assert handle.finished_at == pytest.approx(EPOCH + 8)


async def test_retried_task_states(manager: Manager) -> None:
    """A retried task counts its attempts and has no error until it fails for good."""
    seen: list[tuple[TaskStatus, int]] = []

    async def work() -> None:
        seen.append((handle.status, handle.attempt))
        if len(seen) < 3:
            raise ValueError

    handle = manager.run_task(Task(work, retry=3))
    while handle.status is not TaskStatus.RETRYING:
        await checkpoint()
    assert handle.attempt == 1
    assert handle.error is None
    assert handle.finished_at is None
    await handle
    assert seen == [(TaskStatus.RUNNING, n) for n in (1, 2, 3)]
    assert handle.attempt == 3
    assert handle.error is None


async def test_loop_states(manager: Manager) -> None:
    """A loop alternates between running and waiting, and keeps its last error."""
    seen: list[tuple[TaskStatus, int, int, BaseException | None]] = []
    error = ValueError("second")

    async def work() -> None:
        seen.append((handle.status, handle.iteration, handle.attempt, handle.error))
        await anyio.sleep(1)
        if handle.iteration == 2:
            raise error

    with virtual_wall_clock(DAY_ONE):
        handle = manager.every(10, work)
        assert (handle.status, handle.iteration, handle.attempt) == (TaskStatus.WAITING, 0, 0)
        await anyio.sleep(5)
        assert (handle.status, handle.iteration) == (TaskStatus.WAITING, 1)
        assert handle.started_at == EPOCH
        await anyio.sleep(20)
        assert handle.started_at == pytest.approx(EPOCH + 20)
        assert handle.finished_at is None
        await manager.stop_loops()
    assert seen == [
        (TaskStatus.RUNNING, 1, 1, None),
        (TaskStatus.RUNNING, 2, 1, None),
        (TaskStatus.RUNNING, 3, 1, error),
    ]
    assert handle.status is TaskStatus.CANCELLED
    assert handle.iteration == 3
    assert handle.error is error
    assert handle.finished_at == pytest.approx(EPOCH + 25)


async def test_attempts_restart_per_iteration(manager: Manager) -> None:
    """The attempt counter restarts with every iteration."""
    seen: list[tuple[int, int]] = []

    async def work() -> None:
        seen.append((handle.iteration, handle.attempt))
        if handle.attempt == 1:
            raise ValueError

    handle = manager.run_task(Task(work, kind=TaskKind.LOOP, schedule=every(100), retry=2))
    await anyio.sleep(250)
    assert seen == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]


async def test_states_without_start(manager: Manager) -> None:
    """A task cancelled before it started has a finish time, but no start time."""
    with virtual_wall_clock(DAY_ONE):
        handle = manager.after(100, return_value, 1)
        await anyio.sleep(7)
        handle.cancel()
    assert handle.status is TaskStatus.CANCELLED
    assert (handle.attempt, handle.iteration, handle.started_at) == (0, 0, None)
    assert handle.finished_at == pytest.approx(EPOCH + 7)


async def test_handle_attributes(manager: Manager) -> None:
    """A handle has the task and its id, name, kind and metadata."""
    task: Task[None] = Task(checkpoint, id="one", name="tick", meta={"a": 1}, kind=TaskKind.LOOP)
    handle = manager.run_task(task)
    assert handle.task is task
    assert (handle.id, handle.name, handle.kind, handle.meta) == (
        "one",
        "tick",
        TaskKind.LOOP,
        {"a": 1},
    )


async def test_repr(manager: Manager) -> None:
    """The representation of a handle contains its name, id and status."""
    handle = manager.run_task(Task(return_value, args=(1,), id="7", name="say"))
    assert repr(handle) == "<TaskHandle 'say' 7 waiting>"
    await handle
    assert repr(handle) == "<TaskHandle 'say' 7 succeeded>"


# Cancellation


async def test_cancel_twice(manager: Manager) -> None:
    """`cancel()` returns whether the task was still active; the first reason counts."""

    async def clean_up() -> None:
        try:
            await ages()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)

    handle = manager.run(clean_up)
    await anyio.wait_all_tasks_blocked()
    assert handle.cancel("first") is True
    assert handle.cancel("second") is True
    assert handle.status is TaskStatus.RUNNING
    assert await handle.wait() is TaskStatus.CANCELLED
    assert handle.cancel("third") is False
    with pytest.raises(TaskCancelledError) as caught:
        await handle
    assert caught.value.reason == "first"


@pytest.mark.parametrize("start", ["delayed", "not stepped yet", "limit", "loop", "every"])
async def test_cancel_before_start(start: str) -> None:
    """A task that has not started is cancelled immediately and never runs."""
    ran: list[str] = []

    async def work() -> None:
        ran.append(start)

    recorder = RecordingObserver()
    async with Manager(limit=1, observers=[recorder]) as manager:
        match start:
            case "delayed":
                handle: TaskHandle[Any] = manager.after(10, work)
            case "not stepped yet":
                handle = manager.run(work)
            case "limit":
                manager.run(anyio.sleep, 1)
                handle = manager.run(work)
            case "loop":
                handle = manager.loop(work)
            case _:
                handle = manager.every(1, work)
        assert handle.cancel("no") is True
        assert handle.status is TaskStatus.CANCELLED
        assert handle.cancel("no") is False
        assert manager.get(handle.id) is None
    assert ran == []
    assert recorder.names(handle.id) == ["added", "cancelled"]


async def test_cancel_by_id(manager: Manager) -> None:
    """`Manager.cancel()` cancels an active task by its id."""
    handle = manager.run_task(Task(ages, id="one"))
    assert manager.cancel("unknown") is False
    assert manager.cancel("one", reason="why not") is True
    with pytest.raises(TaskCancelledError, match="why not"):
        await handle
    assert manager.cancel("one") is False


async def test_cancel_from_task_itself(manager: Manager) -> None:
    """A task can cancel itself."""

    async def work() -> None:
        assert handle.cancel("myself")
        await checkpoint()
        raise AssertionError("not reached")

    handle = manager.run(work)
    with pytest.raises(TaskCancelledError, match="myself"):
        await handle


async def test_cancellation_swallowed(manager: Manager) -> None:
    """A cancelled task that returns a value succeeds."""

    async def work() -> str:
        try:
            await ages()
        except anyio.get_cancelled_exc_class():
            return "swallowed"

    handle = manager.run(work)
    await anyio.wait_all_tasks_blocked()
    handle.cancel()
    assert await handle == "swallowed"


async def test_failure_during_cancellation(manager: Manager) -> None:
    """A cancelled task that raises in its clean-up fails without a retry."""

    async def work() -> None:
        try:
            await ages()
        finally:
            raise ValueError("in clean-up")

    handle = manager.run_task(Task(work, retry=5))
    await anyio.wait_all_tasks_blocked()
    handle.cancel()
    with pytest.raises(ValueError, match="in clean-up"):
        await handle
    assert handle.attempt == 1


async def test_cancel_during_backoff(manager: Manager) -> None:
    """A task cancelled during backoff starts no further attempt."""
    handle = manager.run_task(Task(fail, retry=5))
    while handle.status is not TaskStatus.RETRYING:
        await checkpoint()
    assert handle.cancel("enough")
    with pytest.raises(TaskCancelledError, match="enough"):
        await handle
    assert handle.attempt == 1


@pytest.mark.realtime
async def test_cancel_thread(manager: Manager) -> None:
    """A cancelled sync function keeps running; its task is cancelled when it returns."""
    entered, release = threading.Event(), threading.Event()

    def work() -> str:
        entered.set()
        release.wait(SOON)
        return "too late"

    handle = manager.run(work)
    assert await anyio.to_thread.run_sync(entered.wait, SOON)
    assert handle.cancel("no")
    for _ in range(10):
        await checkpoint()
    assert handle.status is TaskStatus.RUNNING
    release.set()
    assert await handle.wait() is TaskStatus.CANCELLED


@pytest.mark.realtime
async def test_check_cancelled_in_thread(manager: Manager) -> None:
    """`check_cancelled()` raises in the thread of a cancelled sync function."""
    entered, cancelled = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        assert cancelled.wait(SOON)
        anyio.from_thread.check_cancelled()
        raise AssertionError("not reached")

    handle = manager.run(work)
    assert await anyio.to_thread.run_sync(entered.wait, SOON)
    handle.cancel("no")
    await checkpoint()
    cancelled.set()
    with pytest.raises(TaskCancelledError, match="no"):
        await handle


@pytest.mark.realtime
async def test_cancel_from_another_thread(manager: Manager) -> None:
    """A task can be cancelled from another thread."""
    handle = manager.run(ages)
    await anyio.wait_all_tasks_blocked()
    assert await anyio.to_thread.run_sync(handle.cancel, "from a thread") is True
    with pytest.raises(TaskCancelledError, match="from a thread"):
        await handle
    assert await anyio.to_thread.run_sync(handle.cancel) is False


@pytest.mark.realtime
async def test_wait_in_another_event_loop(manager: Manager) -> None:
    """Waiting in another event loop raises an error, since the manager cannot wake that loop."""
    from background import ManagerMisuseError

    release = anyio.Event()
    handle = manager.run(release.wait)

    async def wait_in_second_loop() -> None:
        with anyio.fail_after(0.5):
            await handle.wait()

    with pytest.raises(ManagerMisuseError, match="event loop"):
        await anyio.to_thread.run_sync(anyio.run, wait_in_second_loop)
    release.set()
    await handle


# Stacks


async def test_stack_of_suspended_task(manager: Manager) -> None:
    """The stack of a suspended task ends at its `await`."""
    release = anyio.Event()

    async def inner() -> None:
        await release.wait()  # here

    async def outer() -> None:
        await inner()  # there

    handle = manager.run(outer)
    await anyio.wait_all_tasks_blocked()
    stack = handle.stack()
    assert list_lines(stack) == ["await inner()  # there", "await release.wait()  # here"]
    assert stack[0].name == "outer"
    assert "_runner.py" not in str(stack)
    for frame in stack:
        assert linecache.getline(frame.filename, frame.lineno or 0).strip() == frame.line
    release.set()
    await handle


async def test_stack_from_task_itself(manager: Manager) -> None:
    """The stack of a task read by the task itself includes sync callees."""

    async def inner() -> list[FrameSummary]:
        await checkpoint()
        return helper()  # in inner

    async def outer() -> list[FrameSummary]:
        return await inner()  # in outer

    def helper() -> list[FrameSummary]:
        return handle.stack()  # in helper

    handle = manager.run(outer)
    stack = await handle
    assert list_lines(stack) == [
        "return await inner()  # in outer",
        "return helper()  # in inner",
        "return handle.stack()  # in helper",
    ]
    assert list_functions(stack) == ["outer", "inner", "helper"]


async def test_stack_through_generators(manager: Manager) -> None:
    """A stack includes the frames of generators behind `__await__()`."""

    class Awaitable:
        def __await__(self) -> Generator[Any, Any, None]:
            yield from wait_in_coroutine().__await__()

    async def wait_in_coroutine() -> None:
        await anyio.sleep(10)  # in coroutine

    async def work() -> None:
        await Awaitable()  # in work

    handle = manager.run(work)
    await anyio.wait_all_tasks_blocked()
    found = list_lines(handle.stack())
    assert found == [
        "await Awaitable()  # in work",
        "yield from wait_in_coroutine().__await__()",
        "await anyio.sleep(10)  # in coroutine",
    ]


async def test_stack_through_async_generators(manager: Manager) -> None:
    """A stack includes the frames that an async generator awaits."""

    async def numbers() -> AsyncIterator[int]:
        yield 1
        await pause()  # in generator
        yield 2

    async def pause() -> None:
        await anyio.sleep(10)  # in pause

    async def work() -> None:
        async for _ in numbers():  # in work
            pass

    handle = manager.run(work)
    await anyio.wait_all_tasks_blocked()
    assert list_lines(handle.stack()) == [
        "async for _ in numbers():  # in work",
        "await pause()  # in generator",
        "await anyio.sleep(10)  # in pause",
    ]
    await handle


async def test_stack_of_waiting_task(manager: Manager) -> None:
    """The stack of a task that waits for a handle has no frames of the library."""
    first = manager.run(anyio.sleep, 10)

    async def second() -> None:
        await first  # in second

    handle = manager.run(second)
    await anyio.wait_all_tasks_blocked()
    assert list_lines(handle.stack()) == ["await first  # in second"]
    await handle


async def test_stack_without_attempt(manager: Manager) -> None:
    """A task has a stack only during an attempt."""
    finished = manager.run(checkpoint)
    not_stepped = manager.run(checkpoint)
    assert not_stepped.stack() == []
    await finished
    delayed = manager.after(10, checkpoint)
    between_ticks = manager.every(10, checkpoint)
    retrying = manager.run_task(Task(fail, retry=2))
    while retrying.status is not TaskStatus.RETRYING:
        await checkpoint()
    while between_ticks.status is not TaskStatus.WAITING:
        await checkpoint()
    for handle in (finished, delayed, between_ticks, retrying):
        assert handle.stack() == [], handle
    await retrying.wait()
    assert retrying.stack() == []


def test_stack_without_frames() -> None:
    """The stack of an object without frames is empty."""
    assert of_coroutine(None) == []
    assert of_coroutine(object()) == []
    finished = return_value(1)
    finished.close()
    assert of_coroutine(finished) == []
    assert of_thread(-1) == []


@pytest.mark.realtime
async def test_stack_of_sync_function(manager: Manager) -> None:
    """The stack of a sync function is that of its thread."""
    entered, release = threading.Event(), threading.Event()

    def inner() -> None:
        entered.set()
        release.wait(SOON)  # in inner

    def work() -> None:
        inner()  # in work

    handle = manager.run(work)
    assert await anyio.to_thread.run_sync(entered.wait, SOON)
    stack = handle.stack()
    assert list_lines(stack) == ["inner()  # in work", "release.wait(SOON)  # in inner"] or (
        list_lines(stack) == ["inner()  # in work", "entered.set()"]
    )
    assert stack[0].name == "work"
    release.set()
    await handle
    assert handle.stack() == []


@pytest.mark.realtime
async def test_stack_from_sync_function_itself(manager: Manager) -> None:
    """A sync function can read its own stack."""

    def work() -> list[FrameSummary]:
        return handle.stack()  # in work

    handle = manager.run(work)
    assert list_lines(await handle) == ["return handle.stack()  # in work"]


@pytest.mark.realtime
async def test_stack_of_submitting_function(manager: Manager) -> None:
    """A sync function that waits for a submission has a stack that starts with the function."""
    stacks: list[list[FrameSummary]] = []

    class StackObserver(RecordingObserver):
        def on_task_added(self, event: Any) -> None:
            stacks.append(handle.stack())

    async def noop() -> None:
        pass

    async with Manager(observers=[StackObserver()]) as target:

        def submit_to_target() -> None:
            target.run(noop)  # in submit_to_target

        handle = manager.run(submit_to_target)
        await handle
        await target.wait()
    assert list_functions(stacks[0])[:1] == ["submit_to_target"]


@pytest.mark.realtime
async def test_stack_from_another_thread(manager: Manager) -> None:
    """The stack of a running task can be read from another thread.

    It may be out of date, so an empty stack is accepted, too.
    """
    running, captured = threading.Event(), threading.Event()
    stacks: list[list[FrameSummary]] = []

    def capture_stack() -> None:
        running.wait(SOON)
        stacks.append(handle.stack())
        captured.set()

    async def work() -> None:
        running.set()
        while not captured.is_set():
            pass

    thread = threading.Thread(target=capture_stack)
    handle = manager.run(work)
    thread.start()
    await handle
    thread.join(SOON)
    assert [list_functions(stack)[:1] for stack in stacks] in ([["work"]], [[]])
