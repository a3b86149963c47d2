"""Exceptions in hooks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from support.outcomes import HOOKS, TWICE, broken, call_every_hook, fine, nap, run_dying_job

from background import Manager, ManagerState, Observer, Task, TaskHandle, TaskStatus, TaskSucceeded
from background.testing import RecordingObserver


class Oops(BaseException):
    """A base exception that neither is an `Exception` nor ends the program."""


class CustomGroup(BaseExceptionGroup[BaseException]):
    pass


HARMLESS = {
    "ValueError": lambda: ValueError("broken hook"),
    "BaseException": lambda: Oops("broken hook"),
    "CancelledError": lambda: asyncio.CancelledError("broken hook"),
    "GeneratorExit": GeneratorExit,
    "group": lambda: CustomGroup("broken hook", [Oops()]),
}
FATAL = {
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
    "group": lambda: CustomGroup("broken hook", [ValueError(), KeyboardInterrupt()]),
}


def make_raising(hook: str, error: Callable[[], BaseException], *, is_async: bool) -> Observer:
    """Return an observer with one hook, which always raises."""

    def plain(self: Observer, event: Any) -> None:
        raise error()

    async def coroutine(self: Observer, event: Any) -> None:
        raise error()

    return type("Raising", (Observer,), {hook: coroutine if is_async else plain})()


def find_records(caplog: pytest.LogCaptureFixture, text: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if text in record.getMessage()]


@pytest.mark.parametrize("error", HARMLESS.values(), ids=HARMLESS)
@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
@pytest.mark.parametrize("hook", HOOKS)
async def test_raising_hook(
    hook: str, is_async: bool, error: Callable[[], BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """A raising hook does not affect other observers, and its exceptions are counted."""
    expected, recorder = RecordingObserver(), RecordingObserver()
    await call_every_hook(expected)
    manager = await call_every_hook(make_raising(hook, error, is_async=is_async), recorder)
    assert recorder.names() == expected.names()
    assert manager.state is ManagerState.CLOSED
    assert manager.count() == 0
    calls = sum(hook.endswith(f"_{name}") for name in recorder.names())
    assert manager.health().hook_errors == calls
    first, *rest = find_records(caplog, f"Raising.{hook} raised")
    assert first.levelname == "ERROR"
    assert first.exc_info is not None
    assert type(first.exc_info[1]) is type(error())
    assert [record.getMessage() for record in rest] == (
        [f"Observer hook Raising.{hook} raised {calls} exceptions in all."] if calls > 1 else []
    )


@pytest.mark.parametrize("error", FATAL.values(), ids=FATAL)
@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
@pytest.mark.parametrize("hook", HOOKS)
async def test_interrupting_hook(
    hook: str, is_async: bool, error: Callable[[], BaseException]
) -> None:
    """A hook's `KeyboardInterrupt` or `SystemExit` is raised when all tasks have ended."""
    recorder = RecordingObserver()
    observer = make_raising(hook, error, is_async=is_async)
    manager = Manager(observers=[observer, recorder], cancel_timeout=1)
    handles: list[TaskHandle[Any]] = []

    async def use() -> None:
        async with manager:
            handles.extend([manager.run(nap, 3), manager.every(5, nap, 1)])
            handles.append(manager.run_task(Task(broken, retry=TWICE)))
            handles.append(manager.run_task(Task(nap, lifespan=1)))
            await anyio.sleep(0.5)
            manager.report_stall(handles[0].id, elapsed=1)
            manager.run(nap).cancel()
            await run_dying_job(manager)
            await manager.wait()

    with pytest.raises(type(error())):
        await use()
    assert manager.state is ManagerState.CLOSED
    assert manager.count() == 0
    for handle in handles:
        assert recorder.names(handle.id)[-1] == handle.status
    assert recorder.names()[-1] == "closed"


async def test_errors_logged_once_per_hook(caplog: pytest.LogCaptureFixture) -> None:
    """Only the first exception of a hook is logged, and their number at the end."""

    class Raising(Observer):
        def on_task_started(self, event: object) -> None:
            raise ValueError("first")

        async def on_task_succeeded(self, event: object) -> None:
            raise ValueError("second")

    async with Manager(observers=[Raising()]) as manager:
        for _ in range(5):
            await manager.run(fine)
        await anyio.sleep(1)
        assert len(caplog.records) == 2
        assert manager.health().hook_errors == 10
    messages = [record.getMessage() for record in caplog.records]
    assert [
        message.partition("<locals>.Raising.")[2].partition(".")[0] for message in messages
    ] == [
        "on_task_started raised an exception",
        "on_task_succeeded raised an exception",
        "on_task_started raised 5 exceptions in all",
        "on_task_succeeded raised 5 exceptions in all",
    ]
    assert {record.name for record in caplog.records} == {"background"}


async def test_errors_logged_once_per_class(caplog: pytest.LogCaptureFixture) -> None:
    """Exceptions in the same hook of several observers of a class are logged once."""
    observers = [
        make_raising("on_task_succeeded", lambda: ValueError("a"), is_async=False),
        make_raising("on_task_succeeded", lambda: ValueError("b"), is_async=False),
    ]
    async with Manager(observers=observers) as manager:
        await manager.run(fine)
        assert manager.health().hook_errors == 2
    first, second = caplog.records
    assert first.exc_info is not None
    assert str(first.exc_info[1]) == "a"
    assert (
        second.getMessage() == "Observer hook Raising.on_task_succeeded raised 2 exceptions in all."
    )


async def test_raising_hook_called_again() -> None:
    """A hook that raised an exception is called for the next event."""
    calls: list[object] = []

    class Unsteady(Observer):
        def on_task_succeeded(self, event: TaskSucceeded) -> None:
            calls.append(event)
            raise ValueError("broken hook")

    async with Manager(observers=[Unsteady()]) as manager:
        await manager.run(fine)
        await manager.run(fine)
    assert len(calls) == 2


async def test_unreported_failure(caplog: pytest.LogCaptureFixture) -> None:
    """A failure is logged if the only hook for it raises."""
    observer = make_raising("on_task_failed", lambda: ValueError("broken hook"), is_async=False)
    async with Manager(observers=[observer]) as manager:
        manager.run_task(Task(broken, name="unlucky"))
    (record,) = find_records(caplog, "task 'unlucky'")
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "broken"


async def test_reported_failure(caplog: pytest.LogCaptureFixture) -> None:
    """A failure is not logged if a hook of another observer receives it, in any order."""
    observer = make_raising("on_task_failed", lambda: ValueError("broken hook"), is_async=False)
    for observers in ([observer, RecordingObserver()], [RecordingObserver(), observer]):
        caplog.clear()
        async with Manager(observers=observers) as manager:
            manager.run_task(Task(broken, name="unlucky"))
        assert find_records(caplog, "task 'unlucky'") == []
        assert len(find_records(caplog, "on_task_failed raised")) == 1


class RaisingContext:
    def __init__(self, where: str, error: Callable[[], BaseException]) -> None:
        self.where = where
        self.error = error

    def __enter__(self) -> None:
        if self.where == "enter":
            raise self.error()

    def __exit__(self, *exc_info: object) -> None:
        if self.where == "exit":
            raise self.error()


def make_raising_around(where: str, error: Callable[[], BaseException]) -> Observer:
    class RaisingAround(Observer):
        def around_task(self, event: object) -> Any:
            if where == "call":
                raise error()
            return "not a context manager" if where == "type" else RaisingContext(where, error)

    return RaisingAround()


@pytest.mark.parametrize("error", HARMLESS.values(), ids=HARMLESS)
@pytest.mark.parametrize("where", ["call", "type", "enter", "exit"])
async def test_raising_around_task(
    where: str, error: Callable[[], BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """A raising `around_task` does not affect tasks, and its exceptions are counted."""
    expected, recorder = RecordingObserver(), RecordingObserver()
    await call_every_hook(expected)
    manager = await call_every_hook(make_raising_around(where, error), recorder)
    assert recorder.names() == expected.names()
    assert manager.count() == 0
    runs = recorder.names().count("started")
    assert manager.health().hook_errors == runs
    first, second = find_records(caplog, "RaisingAround.around_task raised")
    assert first.exc_info
    assert second.getMessage().endswith(f"raised {runs} exceptions in all.")


@pytest.mark.parametrize("error", FATAL.values(), ids=FATAL)
@pytest.mark.parametrize("where", ["call", "enter", "exit"])
async def test_interrupting_around_task(
    where: str, error: Callable[[], BaseException], recorder: RecordingObserver
) -> None:
    """A `KeyboardInterrupt` or `SystemExit` in `around_task` is raised after all tasks end."""
    manager = Manager(observers=[make_raising_around(where, error), recorder])
    handles: list[TaskHandle[Any]] = []

    async def use() -> None:
        async with manager:
            handles.extend([manager.run(nap, 1), manager.run(nap, 1000), manager.every(100, fine)])
            await manager.wait()

    with pytest.raises(type(error())):
        await use()
    assert manager.state is ManagerState.CLOSED
    assert manager.count() == 0
    for handle in handles:
        assert recorder.names(handle.id)[-1] == handle.status


@pytest.mark.parametrize("where", ["call", "enter", "exit"])
async def test_outcome_after_raising_around_task(where: str) -> None:
    """A task keeps its outcome if `around_task` raises."""
    observer = make_raising_around(where, lambda: ValueError("broken hook"))
    async with Manager(observers=[observer]) as manager:
        assert await manager.run(fine) == "fine"
        assert await manager.run(broken).wait() is TaskStatus.FAILED


async def test_around_task_of_other_observers() -> None:
    """An `around_task` that raises does not affect those of other observers."""
    entered: list[str] = []

    class Tracking(Observer):
        @contextmanager
        def around_task(self, event: object) -> Iterator[None]:
            entered.append("entered")
            yield
            entered.append("left")

    failing = make_raising_around("enter", lambda: Oops())
    async with Manager(observers=[Tracking(), failing, Tracking()]) as manager:
        await manager.run(fine)
    assert entered == ["entered", "entered", "left", "left"]
