"""Logs of failures that neither a waiter nor an observer has handled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt, wait_fixed

from background import (
    Manager,
    Observer,
    Task,
    TaskCancelled,
    TaskEvent,
    TaskFailed,
    TaskKind,
    TaskStatus,
    every,
)


async def fail() -> None:
    await checkpoint()
    raise ValueError("wrong")


async def fail_after(seconds: float) -> None:
    await anyio.sleep(seconds)
    raise ValueError("wrong")


@pytest.fixture(autouse=True)
def log_all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def get_logged_failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the errors of the failures in the log."""
    found: list[str] = []
    for record in caplog.records:
        if record.name == "background" and record.msg.startswith("task "):
            assert record.levelno == logging.ERROR
            assert record.exc_info is not None
            found.append(str(record.exc_info[1]))
    return found


class FailureObserver(Observer):
    def __init__(self) -> None:
        self.errors: list[str] = []

    def on_task_failed(self, event: TaskFailed) -> None:
        self.errors.append(str(event.error))


class AsyncFailureObserver(FailureObserver):
    async def on_task_failed(self, event: TaskFailed) -> None:  # type: ignore[override]
        await anyio.sleep(1)
        self.errors.append(str(event.error))


class AwaitableFailureObserver(FailureObserver):
    def on_task_failed(self, event: TaskFailed) -> Awaitable[None]:  # type: ignore[override]
        async def record_error() -> None:
            await anyio.sleep(1)
            self.errors.append(str(event.error))

        return record_error()


class RaisingObserver(FailureObserver):
    def on_task_failed(self, event: TaskFailed) -> None:
        raise LookupError("hook")


class AsyncRaisingObserver(RaisingObserver):
    async def on_task_failed(self, event: TaskFailed) -> None:  # type: ignore[override]
        await anyio.sleep(1)
        raise LookupError("hook")


class OtherHooksObserver(Observer):
    """An observer of all events except failures."""

    def on_task_added(self, event: TaskEvent) -> None: ...

    on_task_started = on_task_retrying = on_task_succeeded = on_task_added
    on_task_cancelled = on_task_expired = on_task_stalled = on_task_added


class HangingObserver(FailureObserver):
    async def on_task_failed(self, event: TaskFailed) -> None:  # type: ignore[override]
        self.errors.append(str(event.error))
        await anyio.sleep_forever()


OBSERVERS = {
    "no observers": ([], False),
    "other hooks": ([OtherHooksObserver], False),
    "def": ([FailureObserver], True),
    "async def": ([AsyncFailureObserver], True),
    "def that returns an awaitable": ([AwaitableFailureObserver], True),
    "raising": ([RaisingObserver], False),
    "raising and def": ([RaisingObserver, FailureObserver], True),
    "def and raising": ([FailureObserver, RaisingObserver], True),
    "raising and other hooks": ([RaisingObserver, OtherHooksObserver], False),
    "async raising": ([AsyncRaisingObserver], False),
    "async raising and def": ([AsyncRaisingObserver, FailureObserver], True),
    "async raising and async": ([AsyncRaisingObserver, AsyncFailureObserver], True),
    "async and async raising": ([AsyncFailureObserver, AsyncRaisingObserver], True),
    "async raising and raising": ([AsyncRaisingObserver, RaisingObserver], False),
}


@pytest.mark.parametrize("owner", ["manager", "task"])
@pytest.mark.parametrize("waited", [False, True], ids=["not waited for", "waited for"])
@pytest.mark.parametrize("kind", ["one-off", "last iteration", "iteration"])
@pytest.mark.parametrize(("classes", "handled"), OBSERVERS.values(), ids=OBSERVERS)
async def test_failure_without_observer(
    caplog: pytest.LogCaptureFixture,
    anyio_backend: object,
    classes: list[type[Observer]],
    handled: bool,
    kind: str,
    waited: bool,
    owner: str,
) -> None:
    """A failure is logged unless an observer or a waiter handles it.

    A waiter of a loop gets only the failure that ends the loop.
    """
    observers = tuple(observer_class() for observer_class in classes)
    options: dict[str, Any] = {"observers": observers if owner == "task" else ()}
    if kind != "one-off":
        options |= {"kind": TaskKind.LOOP, "schedule": every(100)}
    if kind == "last iteration":
        options |= {"max_failures": 1}
    async with Manager(observers=observers if owner == "manager" else ()) as manager:
        handle = manager.run_task(Task(fail, **options))
        async with anyio.create_task_group() as waiters:
            if waited:
                waiters.start_soon(expect_error, handle)
            await anyio.sleep(10)
            if kind == "iteration":
                handle.cancel()
    silent = handled or (waited and kind != "iteration")
    assert get_logged_failures(caplog) == ([] if silent else ["wrong"])
    for observer in observers:
        if isinstance(observer, FailureObserver) and not isinstance(observer, RaisingObserver):
            assert observer.errors == ["wrong"]


async def expect_error(handle: Any) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011
        await handle


async def test_log_record(caplog: pytest.LogCaptureFixture, manager: Manager) -> None:
    """The log record contains the task's name and id and the error with its traceback."""
    manager.run_task(Task(fail, name="send", id="42"))
    await manager.wait()
    assert get_logged_failures(caplog) == []  # the fixture's recorder handles it
    async with Manager() as unobserved:
        handle = unobserved.run_task(Task(fail, name="send", id="42"))
    (record,) = (record for record in caplog.records if record.name == "background")
    assert (record.name, record.levelname) == ("background", "ERROR")
    assert "send" in record.getMessage()
    assert "42" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is handle.error
    assert 'raise ValueError("wrong")' in caplog.text


# Waiters


async def test_cancelled_waiter(caplog: pytest.LogCaptureFixture) -> None:
    """A failure is logged if its only waiter was cancelled before."""
    async with Manager() as manager:
        handle = manager.run(fail_after, 10)
        with anyio.move_on_after(5):
            await handle
    assert get_logged_failures(caplog) == ["wrong"]


async def test_one_of_two_waiters(caplog: pytest.LogCaptureFixture) -> None:
    """A failure is not logged if one of several waiters gets it."""
    async with Manager() as manager:
        handle = manager.run(fail_after, 10)
        async with anyio.create_task_group() as waiters:
            waiters.start_soon(expect_error, handle)
            with anyio.move_on_after(5):
                await handle
    assert get_logged_failures(caplog) == []


async def test_late_waiter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A failure that was logged is still raised to a later waiter."""
    async with Manager() as manager:
        handle = manager.run(fail)
        await manager.wait()
        assert get_logged_failures(caplog) == ["wrong"]
        with pytest.raises(ValueError, match="wrong"):
            await handle
    assert get_logged_failures(caplog) == ["wrong"]


async def test_waiter_cancelled_with_failure(
    caplog: pytest.LogCaptureFixture, anyio_backend: object
) -> None:
    """A failure is logged or raised if its waiter is cancelled in the same step."""
    scope = anyio.CancelScope()
    received: list[str] = []

    async def fail_and_cancel() -> None:
        scope.cancel()
        raise ValueError("wrong")

    async with Manager() as manager:
        handle = manager.run(fail_and_cancel)
        with scope:
            try:
                await handle
            except ValueError as error:
                received.append(str(error))
    assert [*received, *get_logged_failures(caplog)] == ["wrong"]


async def test_waiter_timeout_with_failure(
    caplog: pytest.LogCaptureFixture, anyio_backend: object
) -> None:
    """A failure is logged or raised if its waiter times out at the same time."""
    received: list[str] = []
    async with Manager() as manager:
        handle = manager.run(fail_after, 10)
        with anyio.move_on_at(anyio.current_time() + 10):
            try:
                await handle
            except ValueError as error:
                received.append(str(error))
    assert [*received, *get_logged_failures(caplog)] == ["wrong"]


async def test_manager_wait(caplog: pytest.LogCaptureFixture) -> None:
    """`Manager.wait()` does not count as a waiter of a result."""
    async with Manager() as manager:
        manager.run(fail)
        await manager.wait()
        assert get_logged_failures(caplog) == ["wrong"]


# Attempts, iterations and other outcomes


async def test_retried_attempt(caplog: pytest.LogCaptureFixture) -> None:
    """Only the failure of the last attempt is logged."""
    policy = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(1))
    async with Manager(retry=policy) as manager:
        manager.run(fail)
    assert get_logged_failures(caplog) == ["wrong"]


async def test_rejected_result(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A result that the retry policy rejects is logged as a failure."""
    reject = AsyncRetrying(stop=stop_after_attempt(1), retry=retry_if_result(lambda value: True))
    async with Manager(retry=reject) as manager:
        handle = manager.run(checkpoint)
    assert handle.status is TaskStatus.FAILED
    assert get_logged_failures(caplog) == [str(handle.error)]


async def test_failed_iterations(caplog: pytest.LogCaptureFixture) -> None:
    """Every failed iteration of a loop is logged."""
    async with Manager() as manager:
        manager.every(10, fail)
        await anyio.sleep(35)
    assert get_logged_failures(caplog) == ["wrong"] * 4


async def test_cancellation_and_expiry(caplog: pytest.LogCaptureFixture) -> None:
    """Cancelled and expired tasks are not logged."""
    async with Manager() as manager:
        cancelled = manager.run(anyio.sleep_forever)
        expired = manager.run_task(Task(anyio.sleep_forever, lifespan=5))
        manager.after(100, fail)
        await anyio.sleep(10)
        cancelled.cancel()
        await manager.close(timeout=0)
    assert expired.status is TaskStatus.EXPIRED
    assert not [record for record in caplog.records if record.name == "background"]


class CancellationObserver(Observer):
    def on_task_cancelled(self, event: TaskCancelled) -> None: ...


class AsyncRaisingCancellationObserver(Observer):
    async def on_task_cancelled(self, event: TaskCancelled) -> None:
        raise LookupError("hook")


@pytest.mark.parametrize(
    ("observer", "waited", "logged"),
    [
        (Observer, False, True),
        (Observer, True, False),
        (CancellationObserver, False, False),
        (AsyncRaisingCancellationObserver, False, True),
    ],
)
@pytest.mark.parametrize("kind", TaskKind)
@pytest.mark.parametrize("is_native", [False, True])
def test_cancellation_from_outside(
    caplog: pytest.LogCaptureFixture,
    observer: type[Observer],
    waited: bool,
    logged: bool,
    kind: TaskKind,
    is_native: bool,
) -> None:
    """A cancellation from outside the manager is logged unless an observer or a waiter gets it.

    On asyncio it is what a function raises that awaits a cancelled future, and it ends a loop, too.
    """

    async def work() -> None:
        if is_native:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await checkpoint()
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async def main() -> None:
        async with Manager(observers=[observer()]) as manager:
            handle = manager.run_task(Task(work, kind=kind, name="work", id="7"))
            if waited:
                await handle.wait()
            await manager.wait()
            await asyncio.sleep(0.01)
        assert handle.status is TaskStatus.CANCELLED

    asyncio.run(main())
    text = "task 'work' ('7') was cancelled from outside the manager"
    records = [record for record in caplog.records if record.getMessage() == text]
    assert [record.levelno for record in records] == [logging.WARNING] * logged


async def test_timeout(caplog: pytest.LogCaptureFixture) -> None:
    """A timeout is logged as a failure."""
    async with Manager() as manager:
        manager.run_task(Task(anyio.sleep_forever, timeout=5))
    assert len(get_logged_failures(caplog)) == 1
    assert "timeout of 5 s" in get_logged_failures(caplog)[0]


async def test_failure_in_cleanup(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A cancelled task that fails in its clean-up is logged."""

    async def fail_in_cleanup() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("wrong")

    async with Manager() as manager:
        manager.run(fail_in_cleanup)
        await anyio.sleep(1)
        await manager.close(timeout=0)
    assert get_logged_failures(caplog) == ["wrong"]


async def test_critical_failure(caplog: pytest.LogCaptureFixture) -> None:
    """A critical failure is logged although it is raised from the manager's block."""
    with pytest.raises(ExceptionGroup):
        async with Manager() as manager:
            manager.run_task(Task(fail, critical=True))
            await anyio.sleep_forever()
    assert get_logged_failures(caplog) == ["wrong"]


@pytest.mark.parametrize("observed", [False, True], ids=["not observed", "observed"])
async def test_critical_failure_with_observer(
    caplog: pytest.LogCaptureFixture, anyio_backend: object, observed: bool
) -> None:
    """A critical failure is not logged if an observer handles it."""
    observer = FailureObserver()
    with pytest.raises(ExceptionGroup):
        async with Manager(observers=[observer] if observed else []) as manager:
            manager.run_task(Task(fail, critical=True))
            await anyio.sleep_forever()
    assert get_logged_failures(caplog) == ([] if observed else ["wrong"])
    assert observer.errors == (["wrong"] if observed else [])


async def test_failure_during_closing(caplog: pytest.LogCaptureFixture) -> None:
    """A failure during closing is logged."""
    async with Manager() as manager:
        handle = manager.run(fail_after, 10)
        report = await manager.close()
    assert report.failed == (handle,)
    assert get_logged_failures(caplog) == ["wrong"]


async def test_failure_after_closing(caplog: pytest.LogCaptureFixture) -> None:
    """A stuck task that fails after the manager has closed keeps its error."""

    async def sleep_shielded() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)
        raise ValueError("wrong")

    async with Manager(cancel_timeout=1) as manager:
        handle = manager.run(sleep_shielded)
        await anyio.sleep(1)
        report = await manager.close(timeout=0)
        assert report.stuck == (handle,)
    assert get_logged_failures(caplog) == []
    assert await handle.wait() is TaskStatus.FAILED
    assert str(handle.error) == "wrong"
    assert get_logged_failures(caplog) == []  # it has a waiter


# Failing hooks


async def test_raising_hook(caplog: pytest.LogCaptureFixture, anyio_backend: object) -> None:
    """A raising hook is logged once with a count; the failures are logged separately."""
    async with Manager(observers=[RaisingObserver()]) as manager:
        for _ in range(3):
            manager.run(fail)
            await manager.wait()
    assert get_logged_failures(caplog) == ["wrong"] * 3
    hooks = [r.exc_info[1] for r in caplog.records if "hook" in str(r.exc_info and r.exc_info[1])]
    assert len(hooks) == 1
    assert "raised 3 exceptions in all" in caplog.text


async def test_overflowing_hook(caplog: pytest.LogCaptureFixture, anyio_backend: object) -> None:
    """Failures dropped because the queue of an async hook is full are logged."""
    hanging = HangingObserver()
    async with Manager(observers=[hanging], cancel_timeout=1) as manager:
        for _ in range(1500):
            manager.run(fail)
        await manager.wait()
        dropped = manager.health().events_dropped
        assert 0 < dropped < 1500
        assert get_logged_failures(caplog) == ["wrong"] * dropped


async def test_hanging_hook(caplog: pytest.LogCaptureFixture, anyio_backend: object) -> None:
    """Failures that a hanging hook has not handled when the manager closes are logged.

    The failure in which the hook hangs may or may not be logged.
    """
    hanging = HangingObserver()
    async with Manager(observers=[hanging], cancel_timeout=1) as manager:
        for _ in range(5):
            manager.run(fail)
    assert len(hanging.errors) == 1
    assert get_logged_failures(caplog) in (["wrong"] * 4, ["wrong"] * 5)


async def test_overflowing_hook_with_second_observer(
    caplog: pytest.LogCaptureFixture, anyio_backend: object
) -> None:
    """A failure dropped by an async hook is not logged if another observer handles it."""
    fast, slow = FailureObserver(), AsyncFailureObserver()
    async with Manager(observers=[slow, fast], cancel_timeout=10_000) as manager:
        for _ in range(1500):
            manager.run(fail)
    assert 0 < len(slow.errors) < len(fast.errors) == 1500
    assert get_logged_failures(caplog) == []
