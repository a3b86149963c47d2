"""Isolation of errors: ordinary errors, program exits, critical tasks, and cancellations."""

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


class CustomBaseException(BaseException):
    """A base exception that is neither an `Exception` nor a program exit."""


def make_raiser(error: BaseException, *, sync: bool) -> Callable[[], Any]:
    def raise_error() -> NoReturn:
        raise error

    async def raise_error_async() -> NoReturn:
        await checkpoint()
        raise error

    return raise_error if sync else raise_error_async


def endless_recursion() -> int:
    return 1 + endless_recursion()


async def endless_async_recursion() -> int:
    return 1 + await endless_async_recursion()


async def catch_cancellation() -> BaseException:
    """Return a cancellation exception of the running backend."""
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


async def wait_until(condition: Callable[[], object]) -> None:
    """Yield to other tasks until the condition holds."""
    with anyio.fail_after(10):
        while not condition():
            await checkpoint()


# Ordinary errors


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong"),
        MemoryError("none left"),
        StopAsyncIteration("ended"),
        TimeoutError("raised by the task"),
        CustomBaseException("custom"),
        ExceptionGroup("several", [ValueError("one"), TypeError("two")]),
        BaseExceptionGroup("custom ones", [CustomBaseException("one"), ValueError("two")]),
        DuplicateTaskError("an error of this library"),
        TaskCancelledError("another task", "id", None),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_error_isolation(
    error: BaseException, sync: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An error fails its task only; it affects neither other tasks nor the log."""
    async with Manager() as manager:
        resume = anyio.Event()
        unrelated = manager.run(resume.wait)
        loop = manager.loop(checkpoint)
        failed = manager.run(make_raiser(error, sync=sync))
        with pytest.raises(type(error)) as info:
            await failed
        assert info.value is error
        assert failed.status is TaskStatus.FAILED
        assert failed.error is error
        later = manager.run(checkpoint)
        resume.set()
        assert await unrelated.wait() is TaskStatus.SUCCEEDED
        assert await later.wait() is TaskStatus.SUCCEEDED
        assert loop.status not in (TaskStatus.FAILED, TaskStatus.CANCELLED)
    assert not [record for record in caplog.records if record.name == "background"]


@pytest.mark.parametrize("fn", [endless_recursion, endless_async_recursion])
async def test_endless_recursion(fn: Callable[[], Any]) -> None:
    """A task with endless recursion fails, and the manager continues."""
    async with Manager() as manager:
        with pytest.raises(RecursionError):
            await manager.run(fn)
        await manager.run(checkpoint)


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_stop_iteration(sync: bool) -> None:
    """`StopIteration` raised by a function becomes a `RuntimeError`.

    A coroutine cannot raise it, and a future cannot carry it.
    """
    async with Manager() as manager:
        with pytest.raises(RuntimeError) as info:
            await manager.run(make_raiser(StopIteration("ended"), sync=sync))
        assert isinstance(info.value.__cause__, StopIteration)


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_generator_exit(sync: bool) -> None:
    """`GeneratorExit` raised by a function fails its task.

    Only the interpreter's own, raised when a coroutine is closed, must pass.
    """
    error = GeneratorExit("custom")
    async with Manager(cancel_timeout=0) as manager:
        handle = manager.run(make_raiser(error, sync=sync))
        with anyio.move_on_after(1):
            await handle.wait()
        await manager.close(timeout=0)
    assert handle.status is TaskStatus.FAILED
    assert handle.error is error


async def test_body_undisturbed() -> None:
    """A failure does not cancel the body of the manager's block."""
    async with Manager() as manager:
        handle = manager.run(make_raiser(ValueError("wrong"), sync=False))
        await handle.wait()
        await checkpoint()
        assert anyio.current_effective_deadline() == float("inf")


async def test_failing_loop_isolation() -> None:
    """A failing loop does not affect other loops."""
    iterations = 0

    async def count_iteration() -> None:
        nonlocal iterations
        iterations += 1

    async with Manager(loop_backoff=None) as manager:
        failing = manager.loop(make_raiser(ValueError("wrong"), sync=False))
        healthy = manager.loop(count_iteration)
        await wait_until(lambda: failing.iteration > 3 and iterations > 3)
        assert healthy.error is None
        assert isinstance(failing.error, ValueError)


async def test_unclosed_cancel_scope() -> None:
    """A cancel scope that a function leaves open fails its own task only."""

    async def leave_scope_open() -> None:
        anyio.CancelScope().__enter__()

    async with Manager() as manager:
        unrelated = manager.run(checkpoint)
        with pytest.raises(RuntimeError):
            await manager.run(leave_scope_open)
        assert await unrelated.wait() is TaskStatus.SUCCEEDED
        await manager.run(checkpoint)


@pytest.mark.parametrize("strategy", [make_raiser(LookupError("no wait"), sync=True), wait_none])
async def test_loop_backoff_raises(strategy: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A loop backoff that raises ends its loop only, and the error is logged.

    A strategy class that was not instantiated raises, too.
    """

    def backoff(state: object) -> float:
        return float(strategy() if strategy is not wait_none else strategy(state))

    async with Manager(loop_backoff=backoff) as manager:  # type: ignore[arg-type]
        loop = manager.loop(make_raiser(ValueError("wrong"), sync=False))
        await wait_until(lambda: loop.error is not None)
        await manager.run(checkpoint)
        for _ in range(10):
            await checkpoint()
        await manager.close(timeout=0)
    errors = [r.exc_info[1] for r in caplog.records if r.name == "background" and r.exc_info]
    assert {type(error) for error in errors} & {LookupError, TypeError}


# Program exits


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
async def test_program_exit(error: BaseException, sync: bool) -> None:
    """A program exit is raised from the manager's block and cancels the body and all tasks."""
    body_ended = False
    with pytest.raises(type(error)) as info:
        async with Manager() as manager:
            unrelated = manager.run(anyio.sleep_forever)
            await wait_until(lambda: unrelated.status is TaskStatus.RUNNING)
            delayed = manager.after(3600, checkpoint)
            failed = manager.run_task(Task(make_raiser(error, sync=sync), retry=ALWAYS))
            try:
                await anyio.sleep_forever()
            finally:
                body_ended = True
    assert info.value is error
    assert body_ended
    assert failed.status is TaskStatus.FAILED
    assert failed.attempt == 1
    assert unrelated.status is TaskStatus.CANCELLED
    assert delayed.status is TaskStatus.CANCELLED


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_program_exit_in_loop(sync: bool) -> None:
    """A program exit in an iteration ends the loop and is raised from the block."""
    error = KeyboardInterrupt("now")
    with pytest.raises(KeyboardInterrupt) as info:
        async with Manager() as manager:
            loop = manager.loop(make_raiser(error, sync=sync))
            await anyio.sleep_forever()
    assert info.value is error
    assert loop.iteration == 1
    assert loop.error is error
    assert loop.status is TaskStatus.CANCELLED


async def test_program_exit_during_closing() -> None:
    """A program exit during closing is raised from the block and cancels the other tasks."""
    error = KeyboardInterrupt("now")
    resume = anyio.Event()

    async def interrupt() -> None:
        await resume.wait()
        raise error

    with pytest.raises(KeyboardInterrupt) as info:
        async with Manager() as manager:
            unrelated = manager.run(anyio.sleep_forever)
            manager.run(interrupt)
            manager.run(set_event, resume)
    assert info.value is error
    assert unrelated.status is TaskStatus.CANCELLED


async def test_program_exit_over_critical_failure() -> None:
    """A program exit takes precedence over a critical failure."""
    error = SystemExit(3)

    async def exit_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise error

    with pytest.raises(SystemExit) as info:
        async with Manager() as manager:
            exiting = manager.run(exit_when_cancelled)
            await wait_until(lambda: exiting.status is TaskStatus.RUNNING)
            manager.run_task(Task(make_raiser(ValueError("wrong"), sync=False), critical=True))
            await anyio.sleep_forever()
    assert info.value is error


async def test_program_exit_in_retry_policy() -> None:
    """A program exit raised by a retry policy is raised from the block."""
    error = KeyboardInterrupt("now")
    policy = AsyncRetrying(retry=retry_if_exception(lambda raised: make_raiser(error, sync=True)()))
    with pytest.raises(KeyboardInterrupt) as info:
        async with Manager(retry=policy) as manager:
            manager.run(make_raiser(ValueError("wrong"), sync=False))
            await anyio.sleep_forever()
    assert info.value is error


# Critical tasks


async def test_critical_failure() -> None:
    """A critical failure cancels all tasks and is raised from the block in a group."""
    error = ValueError("wrong")
    recorder = RecordingObserver()
    with pytest.raises(ExceptionGroup) as info:
        async with Manager(name="mail", observers=[recorder]) as manager:
            unrelated = manager.run(anyio.sleep_forever)
            loop = manager.every(3600, anyio.sleep_forever)
            await wait_until(lambda: loop.status is TaskStatus.RUNNING)
            delayed = manager.after(3600, checkpoint)
            manager.run_task(Task(make_raiser(error, sync=False), critical=True, id="c"))
            await anyio.sleep_forever()
    assert info.value.exceptions == (error,)
    assert "mail" in info.value.message
    assert {unrelated.status, loop.status, delayed.status} == {TaskStatus.CANCELLED}
    assert recorder.names("c") == ["added", "started", "failed"]


async def test_critical_base_exception() -> None:
    """A custom base exception of a critical task is raised in a base exception group."""
    error = CustomBaseException("custom")
    with pytest.raises(BaseExceptionGroup) as info:
        async with Manager() as manager:
            manager.run_task(Task(make_raiser(error, sync=False), critical=True))
            await anyio.sleep_forever()
    assert info.value.exceptions == (error,)


async def test_critical_failure_during_closing() -> None:
    """A critical failure during closing cancels all tasks and is raised from the block."""
    error = ValueError("wrong")
    resume = anyio.Event()

    async def fail() -> None:
        await resume.wait()
        raise error

    with pytest.raises(ExceptionGroup) as info:
        async with Manager() as manager:
            unrelated = manager.run(anyio.sleep_forever)
            manager.run_task(Task(fail, critical=True))
            manager.run(set_event, resume)
    assert info.value.exceptions == (error,)
    assert unrelated.status is TaskStatus.CANCELLED


async def test_critical_failure_and_body_error() -> None:
    """A critical failure and an error of the body are raised in one group."""
    error, body_error = ValueError("wrong"), LookupError("in the body")
    with pytest.raises(ExceptionGroup) as info:
        async with Manager() as manager:
            critical = manager.run_task(Task(make_raiser(error, sync=False), critical=True))
            try:
                await critical.wait()
                await anyio.sleep_forever()
            finally:
                raise body_error
    assert info.value.exceptions == (error, body_error)


async def test_two_critical_failures() -> None:
    """Several critical failures are raised in one group."""
    first, second = ValueError("first"), TypeError("in the clean-up")

    async def fail_in_cleanup() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise second

    with pytest.raises(ExceptionGroup) as info:
        async with Manager() as manager:
            failing = manager.run_task(Task(fail_in_cleanup, critical=True))
            await wait_until(lambda: failing.status is TaskStatus.RUNNING)
            manager.run_task(Task(make_raiser(first, sync=False), critical=True))
            await anyio.sleep_forever()
    assert info.value.exceptions == (first, second)


async def test_critical_failure_after_retries() -> None:
    """A critical task fails the manager only after its last attempt."""
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


async def test_critical_loop_max_failures() -> None:
    """A critical loop fails the manager when it reaches its maximum of failures."""
    with pytest.raises(ExceptionGroup):
        async with Manager(loop_backoff=None) as manager:
            failing = make_raiser(ValueError("wrong"), sync=False)
            loop = manager.run_task(
                Task(failing, kind=TaskKind.LOOP, critical=True, max_failures=3)
            )
            await anyio.sleep_forever()
    assert loop.iteration == 3
    assert loop.status is TaskStatus.FAILED


async def test_critical_loop_continues() -> None:
    """A failed iteration that does not end a critical loop does not fail the manager."""
    async with Manager(loop_backoff=None) as manager:
        failing = make_raiser(ValueError("wrong"), sync=False)
        loop = manager.run_task(Task(failing, kind=TaskKind.LOOP, critical=True))
        await wait_until(lambda: loop.iteration > 3)
        assert manager.state == "running"


async def test_cancelled_critical_task() -> None:
    """Cancelling a critical task does not fail the manager."""
    async with Manager() as manager:
        handle = manager.run_task(Task(anyio.sleep_forever, critical=True))
        await wait_until(lambda: handle.status is TaskStatus.RUNNING)
        handle.cancel()
        assert await handle.wait() is TaskStatus.CANCELLED
        await manager.run(checkpoint)


async def test_no_start_after_critical_failure() -> None:
    """Queued tasks do not start after a critical failure, although it frees a slot."""
    recorder = RecordingObserver()
    with pytest.raises(ExceptionGroup):
        async with Manager(limit=1, observers=[recorder]) as manager:
            manager.run_task(Task(make_raiser(ValueError("wrong"), sync=False), critical=True))
            queued = [manager.run(checkpoint) for _ in range(3)]
            await anyio.sleep_forever()
    assert {handle.status for handle in queued} == {TaskStatus.CANCELLED}
    assert recorder.names().count("started") == 1


# Cancellation exceptions raised by tasks


async def test_group_with_foreign_cancellation() -> None:
    """A group that contains another task's cancellation fails its task without a retry."""
    group = BaseExceptionGroup("mixed", [ValueError("wrong"), await catch_cancellation()])
    async with Manager(retry=ALWAYS) as manager:
        failed = manager.run(make_raiser(group, sync=False))
        with pytest.raises(BaseExceptionGroup) as info:
            await failed
        assert info.value is group
        assert failed.attempt == 1
        await manager.run(checkpoint)


async def test_group_with_own_cancellation() -> None:
    """A cancelled task fails with the errors that its group contains besides the cancellation."""
    error = ValueError("clean-up")

    async def fail_in_cleanup() -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as cancelled:
            raise BaseExceptionGroup("mixed", [cancelled, error]) from None

    async with Manager(retry=ALWAYS) as manager:
        handle = manager.run(fail_in_cleanup)
        await wait_until(lambda: handle.status is TaskStatus.RUNNING)
        handle.cancel()
        assert await handle.wait() is TaskStatus.FAILED
        assert isinstance(handle.error, ExceptionGroup)
        assert handle.error.exceptions == (error,)
        assert handle.attempt == 1


async def test_group_of_cancellation_only() -> None:
    """A group that contains only the task's cancellation cancels the task."""

    async def wrap() -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as cancelled:
            raise BaseExceptionGroup("wrapped", [cancelled]) from None

    async with Manager() as manager:
        handle = manager.run(wrap)
        await wait_until(lambda: handle.status is TaskStatus.RUNNING)
        handle.cancel("enough")
        with pytest.raises(TaskCancelledError, match="enough"):
            await handle


@pytest.mark.parametrize("schedule", [None, every(0.001)], ids=["at once", "every"])
@pytest.mark.parametrize("clean_up", ["raises", "swallows"])
async def test_cancelled_loop_cleanup(clean_up: str, schedule: Any) -> None:
    """A cancelled loop ends even if its clean-up raises or swallows the cancellation."""

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            if clean_up == "raises":
                raise ValueError("clean-up") from None

    recorder = RecordingObserver()
    async with Manager(loop_backoff=None, cancel_timeout=0.1, observers=[recorder]) as manager:
        loop = manager.run_task(Task(work, kind=TaskKind.LOOP, schedule=schedule))
        await wait_until(lambda: loop.status is TaskStatus.RUNNING)
        loop.cancel("enough")
        await wait_until(lambda: loop.iteration > 1 or manager.get(loop.id) is None)
        ended = manager.get(loop.id) is None
        await manager.close(timeout=0)
    assert ended
    assert loop.iteration == 1
    assert bool(recorder.of(TaskFailed)) is (clean_up == "raises")


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_asyncio_cancelled_error(sync: bool, anyio_backend_name: str) -> None:
    """`asyncio.CancelledError` raised by a function cancels its task; on trio the task fails."""
    async with Manager(retry=ALWAYS) as manager:
        handle = manager.run(make_raiser(asyncio.CancelledError("custom"), sync=sync))
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
def test_await_cancelled_future(uvloop: bool) -> None:
    """A task that awaits a cancelled future is cancelled without a retry."""

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
def test_native_cancellation(kind: TaskKind, uvloop: bool) -> None:
    """A running task cancelled by asyncio ends as cancelled without a retry."""
    native: asyncio.Task[Any] | None = None

    async def work() -> None:
        nonlocal native
        native = asyncio.current_task()
        await anyio.sleep_forever()

    async def main() -> None:
        async with Manager(retry=ALWAYS) as manager:
            handle = manager.run_task(Task(work, kind=kind))
            await wait_until(lambda: native is not None)
            assert native is not None
            native.cancel()
            with pytest.raises(TaskCancelledError, match="from outside the manager"):
                await handle
            assert manager.count() == 0
            await manager.run(checkpoint)

    run_on_asyncio(main, uvloop)


@both_loops
def test_native_cancellation_during_backoff(uvloop: bool) -> None:
    """A task cancelled by asyncio during backoff ends as cancelled."""
    native: asyncio.Task[Any] | None = None

    async def fail() -> None:
        nonlocal native
        native = asyncio.current_task()
        raise ValueError("wrong")

    async def main() -> None:
        async with Manager(retry=AsyncRetrying(wait=lambda state: 3600)) as manager:
            handle = manager.run(fail)
            await wait_until(lambda: handle.status is TaskStatus.RETRYING)
            assert native is not None
            native.cancel()
            assert await handle.wait() is TaskStatus.CANCELLED

    run_on_asyncio(main, uvloop)


@both_loops
@pytest.mark.parametrize("kind", TaskKind)
def test_native_cancellation_before_first_step(kind: TaskKind, uvloop: bool) -> None:
    """A task cancelled by asyncio before its first step ends as cancelled.

    Its coroutine never runs and cannot end the task by itself.
    """
    recorder = RecordingObserver()

    async def main() -> None:
        async with Manager(limit=1, observers=[recorder]) as manager:
            handle = manager.run_task(Task(anyio.sleep_forever, kind=kind, name="early"))
            (native,) = (task for task in asyncio.all_tasks() if task.get_name() == "early")
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


async def test_no_native_errors(caplog: pytest.LogCaptureFixture) -> None:
    """Native tasks end without an unretrieved error when the function raises."""
    async with Manager() as manager:
        for error in (ValueError("wrong"), CustomBaseException("custom"), asyncio.CancelledError()):
            await manager.run(make_raiser(error, sync=False)).wait()
    gc.collect()
    assert not [
        record for record in caplog.records if record.name != "background" and record.exc_info
    ]
