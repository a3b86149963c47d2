"""The caller's end of a task: its result, its state, its cancellation, and where it stands."""

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


def lines(stack: list[FrameSummary]) -> list[str]:
    """The source lines of a stack that are in this file."""
    return [frame.line or "" for frame in stack if frame.filename == __file__]


def functions(stack: list[FrameSummary]) -> list[str]:
    return [frame.name for frame in stack]


async def returns(value: Any) -> Any:
    return value


async def fails() -> None:
    raise ValueError("no luck")


# Results


async def test_awaiting_a_handle_is_its_result(manager: Manager) -> None:
    handle = manager.run(returns, 5)
    assert await handle == 5
    assert await handle.result() == 5
    assert await handle.wait() is TaskStatus.SUCCEEDED


async def test_any_number_of_waiters_get_the_result(manager: Manager) -> None:
    release = anyio.Event()
    answers: list[object] = []

    async def work() -> object:
        await release.wait()
        return release

    handle = manager.run(work)

    async def ask() -> None:
        answers.append(await handle)

    async with anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert answers == []
        release.set()
    assert answers == [release] * 100


async def test_a_cancelled_waiter_touches_neither_the_task_nor_other_waiters(
    manager: Manager,
) -> None:
    release = anyio.Event()
    handle = manager.run(release.wait)
    answers: list[object] = []

    async def ask() -> None:
        answers.append(await handle.wait())

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        with anyio.move_on_after(1) as scope:
            await handle
        assert scope.cancelled_caught
        assert handle.status is TaskStatus.RUNNING
        release.set()
    assert answers == [TaskStatus.SUCCEEDED]


@pytest.mark.parametrize("ended", [True, False])
async def test_waiting_is_a_cancellation_point(manager: Manager, ended: bool) -> None:
    """Also where there is nothing to wait for."""
    handle = manager.run(returns, 1) if ended else manager.after(10, returns, 1)
    if ended:
        await handle
    with anyio.CancelScope() as scope:
        scope.cancel()
        await handle.wait()
    assert scope.cancelled_caught
    assert await handle == 1


async def test_waiting_for_what_has_ended_lets_others_run(manager: Manager) -> None:
    handle = manager.run(returns, 1)
    await handle
    others: list[str] = []

    async def other() -> None:
        others.append("ran")

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        while not others:
            await handle


async def test_a_failure_is_raised_to_every_waiter(manager: Manager) -> None:
    handle = manager.run(fails)
    errors: list[BaseException] = []
    for _ in range(3):
        with pytest.raises(ValueError, match="no luck") as caught:
            await handle
        errors.append(caught.value)
    assert await handle.wait() is TaskStatus.FAILED
    assert errors == [handle.error] * 3


async def test_the_traceback_does_not_grow_with_each_waiter(manager: Manager) -> None:
    handle = manager.run(fails)
    depths: set[int] = set()
    for _ in range(20):
        with pytest.raises(ValueError, match="no luck") as caught:
            await handle
        seen = functions(list(extract_tb(caught.value.__traceback__)))
        assert seen[-1] == "fails"
        depths.add(len(seen))
    assert len(depths) == 1


async def test_a_waiter_sees_where_it_waited_and_where_the_task_failed(manager: Manager) -> None:
    handle = manager.run(fails)
    with pytest.raises(ValueError, match="no luck") as caught:
        await handle
    assert handle.error is caught.value
    names = functions(list(extract_tb(caught.value.__traceback__)))
    assert names[0] == "test_a_waiter_sees_where_it_waited_and_where_the_task_failed"
    assert names[-1] == "fails"


async def test_a_cancelled_tasks_result_raises(manager: Manager) -> None:
    handle = manager.run(ages)
    await anyio.wait_all_tasks_blocked()
    assert handle.cancel("not wanted")
    with pytest.raises(TaskCancelledError, match="was cancelled: not wanted") as caught:
        await handle
    error = caught.value
    assert (error.name, error.id, error.reason) == (handle.name, handle.id, "not wanted")
    assert handle.error is None
    assert await handle.wait() is TaskStatus.CANCELLED


async def test_a_cancellation_without_a_reason(manager: Manager) -> None:
    handle = manager.after(10, returns, 1)
    handle.cancel()
    with pytest.raises(TaskCancelledError, match=r"was cancelled$") as caught:
        await handle
    assert caught.value.reason is None


async def test_an_expired_tasks_result_raises(manager: Manager) -> None:
    handle = manager.run_task(Task(ages, lifespan=2.5, name="nap"))
    with pytest.raises(
        TaskExpiredError, match=r"'nap' .* outlived its lifespan of 2\.5 s"
    ) as caught:
        await handle
    assert (caught.value.name, caught.value.id, caught.value.lifespan) == ("nap", handle.id, 2.5)
    assert await handle.wait() is TaskStatus.EXPIRED


async def test_a_stopped_loops_result_raises(manager: Manager) -> None:
    handle = manager.every(10, checkpoint)
    await manager.stop_loops()
    with pytest.raises(TaskCancelledError, match="stopped") as caught:
        await handle
    assert caught.value.reason == "stopped"


async def test_a_failed_loops_result_is_its_last_error(manager: Manager) -> None:
    handle = manager.run_task(Task(fails, kind=TaskKind.LOOP, max_failures=2))
    with pytest.raises(ValueError, match="no luck"):
        await handle


async def test_a_task_may_wait_for_another(manager: Manager) -> None:
    first = manager.after(10, returns, "first")

    async def second() -> str:
        return await first + " then second"

    assert await manager.run(second) == "first then second"


# State through the life of each kind


async def test_the_life_of_a_one_off(manager: Manager) -> None:
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


async def test_the_life_of_a_retried_one_off(manager: Manager) -> None:
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


async def test_the_life_of_a_loop(manager: Manager) -> None:
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


async def test_attempts_are_counted_anew_in_each_iteration(manager: Manager) -> None:
    seen: list[tuple[int, int]] = []

    async def work() -> None:
        seen.append((handle.iteration, handle.attempt))
        if handle.attempt == 1:
            raise ValueError

    handle = manager.run_task(Task(work, kind=TaskKind.LOOP, schedule=every(100), retry=2))
    await anyio.sleep(250)
    assert seen == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]


async def test_the_life_of_a_task_that_never_started(manager: Manager) -> None:
    with virtual_wall_clock(DAY_ONE):
        handle = manager.after(100, returns, 1)
        await anyio.sleep(7)
        handle.cancel()
    assert handle.status is TaskStatus.CANCELLED
    assert (handle.attempt, handle.iteration, handle.started_at) == (0, 0, None)
    assert handle.finished_at == pytest.approx(EPOCH + 7)


async def test_a_handle_tells_what_was_submitted(manager: Manager) -> None:
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
    handle = manager.run_task(Task(returns, args=(1,), id="7", name="say"))
    assert repr(handle) == "<TaskHandle 'say' 7 waiting>"
    await handle
    assert repr(handle) == "<TaskHandle 'say' 7 succeeded>"


# Cancelling


async def test_what_cancel_returns_and_which_reason_counts(manager: Manager) -> None:
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
async def test_what_has_not_started_is_cancelled_at_once(start: str) -> None:
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


async def test_cancelling_by_id(manager: Manager) -> None:
    handle = manager.run_task(Task(ages, id="one"))
    assert manager.cancel("other") is False
    assert manager.cancel("one", reason="why not") is True
    with pytest.raises(TaskCancelledError, match="why not"):
        await handle
    assert manager.cancel("one") is False


async def test_a_task_that_cancels_itself(manager: Manager) -> None:
    async def work() -> None:
        assert handle.cancel("myself")
        await checkpoint()
        raise AssertionError("not reached")

    handle = manager.run(work)
    with pytest.raises(TaskCancelledError, match="myself"):
        await handle


async def test_a_cancelled_task_may_finish_all_the_same(manager: Manager) -> None:
    async def work() -> str:
        try:
            await ages()
        except anyio.get_cancelled_exc_class():
            return "swallowed"

    handle = manager.run(work)
    await anyio.wait_all_tasks_blocked()
    handle.cancel()
    assert await handle == "swallowed"


async def test_a_cancelled_task_may_fail(manager: Manager) -> None:
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


async def test_cancelling_in_backoff(manager: Manager) -> None:
    handle = manager.run_task(Task(fails, retry=5))
    while handle.status is not TaskStatus.RETRYING:
        await checkpoint()
    assert handle.cancel("enough")
    with pytest.raises(TaskCancelledError, match="enough"):
        await handle
    assert handle.attempt == 1


@pytest.mark.realtime
async def test_a_thread_ends_as_cancelled_when_its_function_returns(manager: Manager) -> None:
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
async def test_a_thread_can_ask_whether_it_is_cancelled(manager: Manager) -> None:
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
async def test_cancelling_from_another_thread(manager: Manager) -> None:
    handle = manager.run(ages)
    await anyio.wait_all_tasks_blocked()
    assert await anyio.to_thread.run_sync(handle.cancel, "from afar") is True
    with pytest.raises(TaskCancelledError, match="from afar"):
        await handle
    assert await anyio.to_thread.run_sync(handle.cancel) is False


@pytest.mark.realtime
async def test_waiting_in_a_foreign_event_loop_is_explained(manager: Manager) -> None:
    """It would wait for ever: the manager's event loop can't wake it."""
    from background import ManagerMisuseError

    release = anyio.Event()
    handle = manager.run(release.wait)

    async def foreign() -> None:
        with anyio.fail_after(0.5):
            await handle.wait()

    with pytest.raises(ManagerMisuseError, match="event loop"):
        await anyio.to_thread.run_sync(anyio.run, foreign)
    release.set()
    await handle


# Where it stands


async def test_a_suspended_task_stands_at_its_await(manager: Manager) -> None:
    release = anyio.Event()

    async def inner() -> None:
        await release.wait()  # here

    async def outer() -> None:
        await inner()  # there

    handle = manager.run(outer)
    await anyio.wait_all_tasks_blocked()
    stack = handle.stack()
    assert lines(stack) == ["await inner()  # there", "await release.wait()  # here"]
    assert stack[0].name == "outer"
    assert "_runner.py" not in str(stack)
    for frame in stack:
        assert linecache.getline(frame.filename, frame.lineno or 0).strip() == frame.line
    release.set()
    await handle


async def test_a_task_can_see_where_it_stands_itself(manager: Manager) -> None:
    async def inner() -> list[FrameSummary]:
        await checkpoint()
        return helper()  # in inner

    async def outer() -> list[FrameSummary]:
        return await inner()  # in outer

    def helper() -> list[FrameSummary]:
        return handle.stack()  # in helper

    handle = manager.run(outer)
    stack = await handle
    assert lines(stack) == [
        "return await inner()  # in outer",
        "return helper()  # in inner",
        "return handle.stack()  # in helper",
    ]
    assert functions(stack) == ["outer", "inner", "helper"]


async def test_a_stack_goes_through_generators(manager: Manager) -> None:
    class Awaitable:
        def __await__(self) -> Generator[Any, Any, None]:
            yield from wait_in_coroutine().__await__()

    async def wait_in_coroutine() -> None:
        await anyio.sleep(10)  # in coroutine

    async def work() -> None:
        await Awaitable()  # in work

    handle = manager.run(work)
    await anyio.wait_all_tasks_blocked()
    found = lines(handle.stack())
    assert found == [
        "await Awaitable()  # in work",
        "yield from wait_in_coroutine().__await__()",
        "await anyio.sleep(10)  # in coroutine",
    ]


async def test_a_stack_goes_through_async_generators(manager: Manager) -> None:
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
    assert lines(handle.stack()) == [
        "async for _ in numbers():  # in work",
        "await pause()  # in generator",
        "await anyio.sleep(10)  # in pause",
    ]
    await handle


async def test_a_stack_goes_through_another_handle(manager: Manager) -> None:
    """The frames of waiting for a handle are the library's own, and do not show."""
    first = manager.run(anyio.sleep, 10)

    async def second() -> None:
        await first  # in second

    handle = manager.run(second)
    await anyio.wait_all_tasks_blocked()
    assert lines(handle.stack()) == ["await first  # in second"]
    await handle


async def test_only_an_attempt_under_way_has_a_stack(manager: Manager) -> None:
    finished = manager.run(checkpoint)
    not_stepped = manager.run(checkpoint)
    assert not_stepped.stack() == []
    await finished
    delayed = manager.after(10, checkpoint)
    between_ticks = manager.every(10, checkpoint)
    retrying = manager.run_task(Task(fails, retry=2))
    while retrying.status is not TaskStatus.RETRYING:
        await checkpoint()
    while between_ticks.status is not TaskStatus.WAITING:
        await checkpoint()
    for handle in (finished, delayed, between_ticks, retrying):
        assert handle.stack() == [], handle
    await retrying.wait()
    assert retrying.stack() == []


def test_what_has_no_frames_has_no_stack() -> None:
    assert of_coroutine(None) == []
    assert of_coroutine(object()) == []
    finished = returns(1)
    finished.close()
    assert of_coroutine(finished) == []
    assert of_thread(-1) == []


@pytest.mark.realtime
async def test_a_sync_function_stands_where_its_thread_does(manager: Manager) -> None:
    entered, release = threading.Event(), threading.Event()

    def inner() -> None:
        entered.set()
        release.wait(SOON)  # in inner

    def work() -> None:
        inner()  # in work

    handle = manager.run(work)
    assert await anyio.to_thread.run_sync(entered.wait, SOON)
    stack = handle.stack()
    assert lines(stack) == ["inner()  # in work", "release.wait(SOON)  # in inner"] or (
        lines(stack) == ["inner()  # in work", "entered.set()"]
    )
    assert stack[0].name == "work"
    release.set()
    await handle
    assert handle.stack() == []


@pytest.mark.realtime
async def test_a_sync_function_can_see_where_it_stands_itself(manager: Manager) -> None:
    def work() -> list[FrameSummary]:
        return handle.stack()  # in work

    handle = manager.run(work)
    assert lines(await handle) == ["return handle.stack()  # in work"]


@pytest.mark.realtime
async def test_a_sync_function_that_waits_for_the_manager_has_a_stack(manager: Manager) -> None:
    """Its thread stands in the library then, but was called by the function."""
    stacks: list[list[FrameSummary]] = []

    def work() -> None:
        manager.run(noop)  # in work

    class Looks(RecordingObserver):
        def on_task_added(self, event: Any) -> None:
            stacks.append(handle.stack())

    async def noop() -> None:
        pass

    async with Manager(observers=[Looks()]) as other:

        def submit_to_other() -> None:
            other.run(noop)  # in submit_to_other

        handle = manager.run(submit_to_other)
        await handle
        await other.wait()
    assert functions(stacks[0])[:1] == ["submit_to_other"]


@pytest.mark.realtime
async def test_the_stack_of_a_running_task_seen_from_another_thread(manager: Manager) -> None:
    """It can't be told apart from where it was, but asking is harmless."""
    looked, look = threading.Event(), threading.Event()
    stacks: list[list[FrameSummary]] = []

    def spy() -> None:
        look.wait(SOON)
        stacks.append(handle.stack())
        looked.set()

    async def work() -> None:
        look.set()
        while not looked.is_set():
            pass

    thread = threading.Thread(target=spy)
    handle = manager.run(work)
    thread.start()
    await handle
    thread.join(SOON)
    assert [functions(stack)[:1] for stack in stacks] in ([["work"]], [[]])
