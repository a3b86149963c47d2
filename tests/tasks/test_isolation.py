"""Rule 1: what a task raises stays with the task, but for what is to end the program."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import anyio
import pytest
from anyio.lowlevel import checkpoint
from tenacity import AsyncRetrying, retry_if_exception, wait_none

from background import (
    DuplicateTaskError,
    Manager,
    Task,
    TaskCancelledError,
    TaskFailed,
    TaskKind,
    TaskStatus,
    every,
)
from background.testing import RecordingObserver

pytestmark = pytest.mark.realtime  # nothing here waits for time to pass

ALWAYS = AsyncRetrying(retry=retry_if_exception(lambda error: True), wait=wait_none())


class Odd(BaseException):
    """Neither an Exception nor one of those that end a program."""


def thrower(error: BaseException, *, sync: bool) -> Callable[[], Any]:
    def throw() -> NoReturn:
        raise error

    async def throw_async() -> NoReturn:
        await checkpoint()
        raise error

    return throw if sync else throw_async


def endless_recursion() -> int:
    return 1 + endless_recursion()


async def endless_async_recursion() -> int:
    return 1 + await endless_async_recursion()


async def cancellation() -> BaseException:
    """Return a real cancellation of the running backend, caught."""
    caught: BaseException | None = None
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await checkpoint()
        except anyio.get_cancelled_exc_class() as error:
            caught = error
            raise
    assert caught is not None
    return caught


async def set_event(event: anyio.Event) -> None:
    event.set()


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks have their turns until the condition holds."""
    with anyio.fail_after(10):
        while not condition():
            await checkpoint()


# An error is the task's own


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong"),
        MemoryError("none left"),
        StopAsyncIteration("over"),
        TimeoutError("its own"),
        Odd("odd"),
        ExceptionGroup("several", [ValueError("one"), TypeError("two")]),
        BaseExceptionGroup("odd ones", [Odd("one"), ValueError("two")]),
        DuplicateTaskError("an error of this library's own"),
        TaskCancelledError("another task", "id", None),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_error_reaches_nobody_else(
    error: BaseException, sync: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with Manager() as manager:
        go_on = anyio.Event()
        bystander = manager.run(go_on.wait)
        loop = manager.loop(checkpoint)
        failed = manager.run(thrower(error, sync=sync))
        with pytest.raises(type(error)) as info:
            await failed
        assert info.value is error
        assert failed.status is TaskStatus.FAILED
        assert failed.error is error
        later = manager.run(checkpoint)
        go_on.set()
        assert await bystander.wait() is TaskStatus.SUCCEEDED
        assert await later.wait() is TaskStatus.SUCCEEDED
        assert loop.status not in (TaskStatus.FAILED, TaskStatus.CANCELLED)
    assert not [record for record in caplog.records if record.name == "background"]


@pytest.mark.parametrize("fn", [endless_recursion, endless_async_recursion])
async def test_endless_recursion_is_a_failure_like_any_other(fn: Callable[[], Any]) -> None:
    async with Manager() as manager:
        with pytest.raises(RecursionError):
            await manager.run(fn)
        await manager.run(checkpoint)


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_stop_iteration_becomes_a_runtime_error(sync: bool) -> None:
    """A coroutine can't raise it; a thread's would confuse the future that carries it."""
    async with Manager() as manager:
        with pytest.raises(RuntimeError) as info:
            await manager.run(thrower(StopIteration("over"), sync=sync))
        assert isinstance(info.value.__cause__, StopIteration)


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_generator_exit_that_a_function_raises_is_its_failure(sync: bool) -> None:
    """Only the interpreter's own, for a coroutine that is thrown away, has to pass."""
    error = GeneratorExit("odd")
    async with Manager(cancel_timeout=0) as manager:
        handle = manager.run(thrower(error, sync=sync))
        with anyio.move_on_after(1):
            await handle.wait()
        await manager.close(timeout=0)
    assert handle.status is TaskStatus.FAILED
    assert handle.error is error


async def test_body_of_the_block_is_not_disturbed() -> None:
    async with Manager() as manager:
        handle = manager.run(thrower(ValueError("wrong"), sync=False))
        await handle.wait()
        await checkpoint()
        assert anyio.current_effective_deadline() == float("inf")


async def test_failing_iterations_of_one_loop_leave_the_other_alone() -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        turns += 1

    async with Manager(loop_backoff=None) as manager:
        failing = manager.loop(thrower(ValueError("wrong"), sync=False))
        fine = manager.loop(turn)
        await until(lambda: failing.iteration > 3 and turns > 3)
        assert fine.error is None
        assert isinstance(failing.error, ValueError)


async def test_scope_that_a_function_left_open_is_its_own_trouble() -> None:
    async def careless() -> None:
        anyio.CancelScope().__enter__()

    async with Manager() as manager:
        bystander = manager.run(checkpoint)
        with pytest.raises(RuntimeError):
            await manager.run(careless)
        assert await bystander.wait() is TaskStatus.SUCCEEDED
        await manager.run(checkpoint)


@pytest.mark.parametrize("strategy", [thrower(LookupError("no wait"), sync=True), wait_none])
async def test_loop_backoff_that_raises_ends_no_more_than_the_loop(
    strategy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A strategy class that was never instantiated raises too."""

    def backoff(state: object) -> float:
        return float(strategy() if strategy is not wait_none else strategy(state))

    async with Manager(loop_backoff=backoff) as manager:  # type: ignore[arg-type]
        loop = manager.loop(thrower(ValueError("wrong"), sync=False))
        await until(lambda: loop.error is not None)
        await manager.run(checkpoint)
        for _ in range(10):
            await checkpoint()
        await manager.close(timeout=0)
    errors = [r.exc_info[1] for r in caplog.records if r.name == "background" and r.exc_info]
    assert {type(error) for error in errors} & {LookupError, TypeError}


# What is to end the program does


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt("now"),
        SystemExit(3),
        BaseExceptionGroup("mixed", [ValueError("one"), KeyboardInterrupt("now")]),
        BaseExceptionGroup("deep", [BaseExceptionGroup("deeper", [SystemExit(3)])]),
    ],
    ids=["KeyboardInterrupt", "SystemExit", "group", "nested group"],
)
async def test_end_of_the_program_leaves_the_block(error: BaseException, sync: bool) -> None:
    body_ended = False
    with pytest.raises(type(error)) as info:
        async with Manager() as manager:
            bystander = manager.run(anyio.sleep_forever)
            await until(lambda: bystander.status is TaskStatus.RUNNING)
            delayed = manager.after(3600, checkpoint)
            failed = manager.run_task(Task(thrower(error, sync=sync), retry=ALWAYS))
            try:
                await anyio.sleep_forever()
            finally:
                body_ended = True
    assert info.value is error
    assert body_ended
    assert failed.status is TaskStatus.FAILED
    assert failed.attempt == 1
    assert bystander.status is TaskStatus.CANCELLED
    assert delayed.status is TaskStatus.CANCELLED


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_end_of_the_program_in_a_loop(sync: bool) -> None:
    error = KeyboardInterrupt("now")
    with pytest.raises(KeyboardInterrupt) as info:
        async with Manager() as manager:
            loop = manager.loop(thrower(error, sync=sync))
            await anyio.sleep_forever()
    assert info.value is error
    assert loop.iteration == 1
    assert loop.error is error
    assert loop.status is TaskStatus.CANCELLED


async def test_end_of_the_program_while_the_block_is_being_left() -> None:
    error = KeyboardInterrupt("now")
    go_on = anyio.Event()

    async def interrupt() -> None:
        await go_on.wait()
        raise error

    with pytest.raises(KeyboardInterrupt) as info:
        async with Manager() as manager:
            bystander = manager.run(anyio.sleep_forever)
            manager.run(interrupt)
            manager.run(set_event, go_on)
    assert info.value is error
    assert bystander.status is TaskStatus.CANCELLED


async def test_end_of_the_program_comes_before_a_critical_failure() -> None:
    error = SystemExit(3)

    async def exit_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise error

    with pytest.raises(SystemExit) as info:
        async with Manager() as manager:
            exiting = manager.run(exit_when_cancelled)
            await until(lambda: exiting.status is TaskStatus.RUNNING)
            manager.run_task(Task(thrower(ValueError("wrong"), sync=False), critical=True))
            await anyio.sleep_forever()
    assert info.value is error


async def test_end_of_the_program_from_a_policy() -> None:
    error = KeyboardInterrupt("now")
    policy = AsyncRetrying(retry=retry_if_exception(lambda raised: thrower(error, sync=True)()))
    with pytest.raises(KeyboardInterrupt) as info:
        async with Manager(retry=policy) as manager:
            manager.run(thrower(ValueError("wrong"), sync=False))
            await anyio.sleep_forever()
    assert info.value is error


# Critical tasks


async def test_critical_failure_cancels_everything_and_leaves_the_block() -> None:
    error = ValueError("wrong")
    recorder = RecordingObserver()
    with pytest.raises(ExceptionGroup) as info:
        async with Manager(name="mail", observers=[recorder]) as manager:
            bystander = manager.run(anyio.sleep_forever)
            loop = manager.every(3600, anyio.sleep_forever)
            await until(lambda: loop.status is TaskStatus.RUNNING)
            delayed = manager.after(3600, checkpoint)
            manager.run_task(Task(thrower(error, sync=False), critical=True, id="c"))
            await anyio.sleep_forever()
    assert info.value.exceptions == (error,)
    assert "mail" in info.value.message
    assert {bystander.status, loop.status, delayed.status} == {TaskStatus.CANCELLED}
    assert recorder.names("c") == ["added", "started", "failed"]


async def test_custom_base_exception_of_a_critical_task() -> None:
    error = Odd("odd")
    with pytest.raises(BaseExceptionGroup) as info:
        async with Manager() as manager:
            manager.run_task(Task(thrower(error, sync=False), critical=True))
            await anyio.sleep_forever()
    assert info.value.exceptions == (error,)


async def test_critical_failure_while_the_block_is_being_left() -> None:
    error = ValueError("wrong")
    go_on = anyio.Event()

    async def fail() -> None:
        await go_on.wait()
        raise error

    with pytest.raises(ExceptionGroup) as info:
        async with Manager() as manager:
            bystander = manager.run(anyio.sleep_forever)
            manager.run_task(Task(fail, critical=True))
            manager.run(set_event, go_on)
    assert info.value.exceptions == (error,)
    assert bystander.status is TaskStatus.CANCELLED


async def test_critical_failure_beside_an_error_of_the_body() -> None:
    error, own = ValueError("wrong"), LookupError("the body's own")
    with pytest.raises(ExceptionGroup) as info:
        async with Manager() as manager:
            critical = manager.run_task(Task(thrower(error, sync=False), critical=True))
            try:
                await critical.wait()
                await anyio.sleep_forever()
            finally:
                raise own
    assert info.value.exceptions == (error, own)


async def test_critical_failures_leave_the_block_together() -> None:
    first, second = ValueError("first"), TypeError("in the clean-up")

    async def clean_up_badly() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise second

    with pytest.raises(ExceptionGroup) as info:
        async with Manager() as manager:
            other = manager.run_task(Task(clean_up_badly, critical=True))
            await until(lambda: other.status is TaskStatus.RUNNING)
            manager.run_task(Task(thrower(first, sync=False), critical=True))
            await anyio.sleep_forever()
    assert info.value.exceptions == (first, second)


async def test_critical_failure_counts_once_the_policy_has_given_up() -> None:
    attempts = 0

    async def fail() -> None:
        nonlocal attempts
        attempts += 1
        assert manager.state == "running"
        raise ValueError(attempts)

    policy = AsyncRetrying(stop=lambda state: state.attempt_number == 3, wait=wait_none())
    with pytest.raises(ExceptionGroup) as info:
        async with Manager() as manager:
            manager.run_task(Task(fail, critical=True, retry=policy))
            await anyio.sleep_forever()
    assert attempts == 3
    assert [error.args for error in info.value.exceptions] == [(3,)]


async def test_critical_loop_fails_with_its_last_allowed_iteration() -> None:
    with pytest.raises(ExceptionGroup):
        async with Manager(loop_backoff=None) as manager:
            failing = thrower(ValueError("wrong"), sync=False)
            loop = manager.run_task(
                Task(failing, kind=TaskKind.LOOP, critical=True, max_failures=3)
            )
            await anyio.sleep_forever()
    assert loop.iteration == 3
    assert loop.status is TaskStatus.FAILED


async def test_critical_loop_goes_on_after_failures_that_do_not_end_it() -> None:
    async with Manager(loop_backoff=None) as manager:
        failing = thrower(ValueError("wrong"), sync=False)
        loop = manager.run_task(Task(failing, kind=TaskKind.LOOP, critical=True))
        await until(lambda: loop.iteration > 3)
        assert manager.state == "running"


async def test_critical_task_that_was_cancelled_has_not_failed() -> None:
    async with Manager() as manager:
        handle = manager.run_task(Task(anyio.sleep_forever, critical=True))
        await until(lambda: handle.status is TaskStatus.RUNNING)
        handle.cancel()
        assert await handle.wait() is TaskStatus.CANCELLED
        await manager.run(checkpoint)


async def test_nothing_starts_after_a_critical_failure() -> None:
    """The place that it leaves is not given to the next one in line."""
    recorder = RecordingObserver()
    with pytest.raises(ExceptionGroup):
        async with Manager(limit=1, observers=[recorder]) as manager:
            manager.run_task(Task(thrower(ValueError("wrong"), sync=False), critical=True))
            queued = [manager.run(checkpoint) for _ in range(3)]
            await anyio.sleep_forever()
    assert {handle.status for handle in queued} == {TaskStatus.CANCELLED}
    assert recorder.names().count("started") == 1


# Cancellations among what a task raises


async def test_group_with_a_cancellation_from_elsewhere_is_a_failure() -> None:
    """It is not this task's cancellation, and no reason to try again either."""
    group = BaseExceptionGroup("mixed", [ValueError("wrong"), await cancellation()])
    async with Manager(retry=ALWAYS) as manager:
        failed = manager.run(thrower(group, sync=False))
        with pytest.raises(BaseExceptionGroup) as info:
            await failed
        assert info.value is group
        assert failed.attempt == 1
        await manager.run(checkpoint)


async def test_error_beside_the_cancellation_is_what_a_cancelled_task_fails_with() -> None:
    error = ValueError("clean-up")

    async def clean_up_badly() -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as cancelled:
            raise BaseExceptionGroup("mixed", [cancelled, error]) from None

    async with Manager(retry=ALWAYS) as manager:
        handle = manager.run(clean_up_badly)
        await until(lambda: handle.status is TaskStatus.RUNNING)
        handle.cancel()
        assert await handle.wait() is TaskStatus.FAILED
        assert isinstance(handle.error, ExceptionGroup)
        assert handle.error.exceptions == (error,)
        assert handle.attempt == 1


async def test_group_of_nothing_but_the_cancellation_is_a_cancellation() -> None:
    async def wrap() -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as cancelled:
            raise BaseExceptionGroup("wrapped", [cancelled]) from None

    async with Manager() as manager:
        handle = manager.run(wrap)
        await until(lambda: handle.status is TaskStatus.RUNNING)
        handle.cancel("enough")
        with pytest.raises(TaskCancelledError, match="enough"):
            await handle


@pytest.mark.parametrize("schedule", [None, every(0.001)], ids=["at once", "every"])
@pytest.mark.parametrize("clean_up", ["raises", "swallows"])
async def test_cancelled_loop_is_over_whatever_its_clean_up_does(
    clean_up: str, schedule: Any
) -> None:
    async def work() -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            if clean_up == "raises":
                raise ValueError("clean-up") from None

    recorder = RecordingObserver()
    async with Manager(loop_backoff=None, cancel_timeout=0.1, observers=[recorder]) as manager:
        loop = manager.run_task(Task(work, kind=TaskKind.LOOP, schedule=schedule))
        await until(lambda: loop.status is TaskStatus.RUNNING)
        loop.cancel("enough")
        await until(lambda: loop.iteration > 1 or manager.get(loop.id) is None)
        over = manager.get(loop.id) is None
        await manager.close(timeout=0)
    assert over
    assert loop.iteration == 1
    assert bool(recorder.of(TaskFailed)) is (clean_up == "raises")


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_asyncio_cancellation_that_a_function_raises(
    sync: bool, anyio_backend_name: str
) -> None:
    """On asyncio it can't be told from a cancellation; on trio it is an error among others."""
    async with Manager(retry=ALWAYS) as manager:
        handle = manager.run(thrower(asyncio.CancelledError("odd"), sync=sync))
        expected = TaskStatus.FAILED if anyio_backend_name == "trio" else TaskStatus.CANCELLED
        assert await handle.wait() is expected
        assert handle.attempt == 1
        await manager.run(checkpoint)


def run_on_asyncio(main: Callable[[], Any], uvloop: bool) -> None:
    anyio.run(main, backend="asyncio", backend_options={"use_uvloop": uvloop})


both_loops = pytest.mark.parametrize(
    "uvloop", [False] if sys.platform == "win32" else [False, True]
)


@both_loops
def test_awaiting_a_cancelled_future(uvloop: bool) -> None:
    async def await_cancelled() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async def main() -> None:
        async with Manager(retry=ALWAYS) as manager:
            handle = manager.run(await_cancelled)
            with pytest.raises(TaskCancelledError, match="from outside the manager"):
                await handle
            assert handle.attempt == 1
            await manager.run(checkpoint)

    run_on_asyncio(main, uvloop)


@both_loops
@pytest.mark.parametrize("kind", TaskKind)
def test_native_cancellation_of_a_running_task(kind: TaskKind, uvloop: bool) -> None:
    native: asyncio.Task[Any] | None = None

    async def work() -> None:
        nonlocal native
        native = asyncio.current_task()
        await anyio.sleep_forever()

    async def main() -> None:
        async with Manager(retry=ALWAYS) as manager:
            handle = manager.run_task(Task(work, kind=kind))
            await until(lambda: native is not None)
            assert native is not None
            native.cancel()
            with pytest.raises(TaskCancelledError, match="from outside the manager"):
                await handle
            assert manager.count() == 0
            await manager.run(checkpoint)

    run_on_asyncio(main, uvloop)


@both_loops
def test_native_cancellation_in_backoff(uvloop: bool) -> None:
    native: asyncio.Task[Any] | None = None

    async def fail() -> None:
        nonlocal native
        native = asyncio.current_task()
        raise ValueError("wrong")

    async def main() -> None:
        async with Manager(retry=AsyncRetrying(wait=lambda state: 3600)) as manager:
            handle = manager.run(fail)
            await until(lambda: handle.status is TaskStatus.RETRYING)
            assert native is not None
            native.cancel()
            assert await handle.wait() is TaskStatus.CANCELLED

    run_on_asyncio(main, uvloop)


@both_loops
@pytest.mark.parametrize("kind", TaskKind)
def test_native_cancellation_before_the_first_step(kind: TaskKind, uvloop: bool) -> None:
    """The coroutine never runs, so it can't see to the end of its task itself."""
    recorder = RecordingObserver()

    async def main() -> None:
        async with Manager(limit=1, observers=[recorder]) as manager:
            handle = manager.run_task(Task(anyio.sleep_forever, kind=kind, name="early"))
            (native,) = (each for each in asyncio.all_tasks() if each.get_name() == "early")
            native.cancel()
            for _ in range(5):
                await checkpoint()
            status = handle.status
            handle.cancel()
            assert status is TaskStatus.CANCELLED
            assert recorder.names() == ["added", "cancelled"]
            with anyio.fail_after(5):
                await manager.run(checkpoint)

    run_on_asyncio(main, uvloop)


async def test_no_native_error_is_left_over(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a task raises, its native task ends without an error of its own."""
    async with Manager() as manager:
        for error in (ValueError("wrong"), Odd("odd"), asyncio.CancelledError()):
            await manager.run(thrower(error, sync=False)).wait()
    gc.collect()
    assert not [each for each in caplog.records if each.name != "background" and each.exc_info]
