"""The `around_task` hook: a context manager around a run or an iteration."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from support.outcomes import LOOP, SCENARIOS, TWICE, Flaky, Scenario, broken, fine, nap, play
from support.time import SOON

from background import (
    Manager,
    Observer,
    Task,
    TaskExpiredError,
    TaskFailed,
    TaskStarted,
    TaskStatus,
    TaskSucceeded,
    every,
)
from background.testing import RecordingObserver

span = ContextVar("span", default="none")


class Span(Observer):
    """Records when it is entered and left, and with which error."""

    def __init__(self, name: str = "span", log: list[Any] | None = None) -> None:
        self.name = name
        self.log: list[Any] = [] if log is None else log
        self.errors: list[BaseException | None] = []

    @contextmanager
    def around_task(self, event: TaskStarted) -> Generator[None]:
        token = span.set(f"{self.name} of {event.id}")
        self.log.append(f"enter {self.name}")
        try:
            yield
        except BaseException as error:
            self.errors.append(error)
            raise
        else:
            self.errors.append(None)
        finally:
            self.log.append(f"leave {self.name}")
            span.reset(token)


async def get_span() -> str:
    return span.get()


async def test_context_variables() -> None:
    """A function can read the context variables that `around_task` sets."""
    async with Manager(observers=[Span()]) as manager:
        assert await manager.run_task(Task(get_span, id="one")) == "span of one"
    assert span.get() == "none"


@pytest.mark.realtime
async def test_context_variables_in_thread() -> None:
    """A sync function can read the context variables that `around_task` sets."""
    async with Manager(observers=[Span()]) as manager:
        assert await manager.run_task(Task(span.get, id="one")) == "span of one"
        assert await manager.run_task(Task(lambda: get_span(), id="two")) == "span of two"


async def test_called_in_task() -> None:
    """`around_task` is called, entered and left in the task itself."""
    tasks: list[object] = []

    class TaskRecorder(Observer):
        def around_task(self, event: object) -> AbstractContextManager[object]:
            tasks.append(anyio.get_current_task())
            return self.record_tasks()

        @contextmanager
        def record_tasks(self) -> Generator[None]:
            tasks.append(anyio.get_current_task())
            yield
            tasks.append(anyio.get_current_task())

    async def work() -> None:
        tasks.append(anyio.get_current_task())

    async with Manager(observers=[TaskRecorder()]) as manager:
        await manager.run(work)
    assert tasks == [tasks[0]] * 4
    assert tasks[0] != anyio.get_current_task()


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
async def test_every_outcome(scenario: Scenario) -> None:
    """The context manager is entered and left once for every run, whatever the outcome."""
    entered: list[tuple[str, bool]] = []

    class Recorder(RecordingObserver):
        @contextmanager
        def around_task(self, event: TaskStarted) -> Generator[None]:
            entered.append((event.id, True))
            try:
                yield
            finally:
                entered.append((event.id, False))

    recorder = Recorder()
    handle = await play(scenario, recorder)
    runs = recorder.names(handle.id).count("started")
    assert [is_entry for id, is_entry in entered if id == handle.id] == [True, False] * runs


async def test_order_with_hooks() -> None:
    """`on_task_started` is called outside of the context manager, and the outcome's hook inside."""
    log: list[str] = []

    class Logging(Span):
        def on_task_started(self, event: TaskStarted) -> None:
            log.append(f"started in {span.get()}")

        def on_task_succeeded(self, event: TaskSucceeded) -> None:
            log.append(f"succeeded in {span.get()}")

        def on_task_failed(self, event: TaskFailed) -> None:
            log.append(f"failed in {span.get()}")

    async with Manager(observers=[Logging(log=log)]) as manager:
        await manager.run_task(Task(fine, id="one"))
        await manager.run_task(Task(broken, id="two")).wait()
    assert log == [
        "started in none",
        "enter span",
        "succeeded in span of one",
        "leave span",
        "started in none",
        "enter span",
        "failed in span of two",
        "leave span",
    ]


async def test_nesting_order() -> None:
    """Context managers nest in the order of the observers, with the task's own innermost."""
    log: list[str] = []
    own = Span("own", log)
    async with Manager(observers=[Span("outer", log), Span("inner", log)]) as manager:
        task = Task(get_span, id="one", observers=(own,))
        assert await manager.run_task(task) == "own of one"
    assert log == [
        *("enter outer", "enter inner", "enter own"),
        *("leave own", "leave inner", "leave outer"),
    ]


async def test_iterations_are_isolated() -> None:
    """A context variable that is set around one iteration is not set in the next."""
    seen: list[str] = []

    class Leaking(Observer):
        @contextmanager
        def around_task(self, event: TaskStarted) -> Generator[None]:
            seen.append(span.get())
            span.set(f"iteration {event.iteration}")
            yield

    async def work() -> None:
        seen.append(span.get())

    async with Manager(observers=[Leaking()]) as manager:
        manager.every(10, work)
        await anyio.sleep(15)
    assert seen == ["none", "iteration 1", "none", "iteration 2"]


async def test_all_attempts() -> None:
    """The context manager is entered once for all attempts of a run."""
    observer = Span()
    async with Manager(observers=[observer]) as manager:
        await manager.run_task(Task(Flaky(1), retry=TWICE))
    assert observer.log == ["enter span", "leave span"]
    assert observer.errors == [None]


async def test_exit_after_failure() -> None:
    """`__exit__` receives the error of a failed run."""
    observer = Span()
    async with Manager(observers=[observer]) as manager:
        handle = manager.run(broken)
        assert await handle.wait() is TaskStatus.FAILED
    assert observer.errors == [handle.error]


async def test_exit_after_failed_iteration() -> None:
    """`__exit__` receives the error of a failed iteration."""
    observer, recorder = Span(), RecordingObserver()
    async with Manager(observers=[observer, recorder]) as manager:
        manager.run_task(Task(Flaky(1), kind=LOOP, schedule=every(10)))
        await anyio.sleep(15)
    (failed,) = recorder.of(TaskFailed)
    assert observer.errors == [failed.error, None]


async def test_exit_after_cancellation() -> None:
    """`__exit__` receives a cancellation as the function does."""
    observer = Span()
    caught: list[BaseException] = []

    async def sleep() -> None:
        try:
            await nap()
        except BaseException as error:
            caught.append(error)
            raise

    async with Manager(observers=[observer]) as manager:
        handle = manager.run(sleep)
        await anyio.sleep(1)
        handle.cancel("enough")
        await handle.wait()
    (error,) = observer.errors
    assert isinstance(error, anyio.get_cancelled_exc_class())
    assert not isinstance(error, Exception)
    assert error is caught[0]


@pytest.mark.parametrize("task", [Task(nap, kind=LOOP), Task(nap, retry=TWICE, timeout=90)])
async def test_exit_after_shutdown(task: Task[None]) -> None:
    """`__exit__` receives a cancellation by the shutdown, of a loop, or in an attempt, alike."""
    observer = Span()
    async with Manager(observers=[observer]) as manager:
        manager.run_task(task)
        await anyio.sleep(1)
        await manager.close(timeout=0)
    (error,) = observer.errors
    assert isinstance(error, anyio.get_cancelled_exc_class())


async def test_exit_after_cancelled_group() -> None:
    """`__exit__` receives the cancellation of several tasks, which trio groups, as no error."""
    observer = Span()

    async def work() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(nap)
            group.start_soon(nap)

    async with Manager(observers=[observer]) as manager:
        handle = manager.run(work)
        await anyio.sleep(1)
        handle.cancel()
        assert await handle.wait() is TaskStatus.CANCELLED
    (error,) = observer.errors
    assert error is not None
    assert not isinstance(error, Exception)


async def test_exit_after_swallowed_cancellation() -> None:
    """`__exit__` receives no error if the function returns in spite of its cancellation."""
    observer = Span()

    async def swallow() -> None:
        with suppress(anyio.get_cancelled_exc_class()):
            await nap()

    async with Manager(observers=[observer]) as manager:
        handle = manager.run(swallow)
        await anyio.sleep(1)
        handle.cancel()
        assert await handle.wait() is TaskStatus.SUCCEEDED
    assert observer.errors == [None]


def test_exit_after_native_cancellation() -> None:
    """`__exit__` receives a native cancellation of asyncio."""
    observer = Span()

    async def cancel_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)

    async def main() -> None:
        async with Manager(observers=[observer]) as manager:
            await manager.run(cancel_itself).wait()

    asyncio.run(main())
    assert [type(error) for error in observer.errors] == [asyncio.CancelledError]


@pytest.mark.realtime
async def test_exit_after_cancellation_in_thread() -> None:
    """`__exit__` receives a cancellation that came while the function ran in a thread."""
    observer = Span()
    entered, release = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        release.wait(SOON)

    async with Manager(observers=[observer]) as manager:
        handle = manager.run(work)
        await anyio.to_thread.run_sync(entered.wait, SOON)
        handle.cancel()
        release.set()
        assert await handle.wait() is TaskStatus.CANCELLED
    (error,) = observer.errors
    assert isinstance(error, anyio.get_cancelled_exc_class())


async def test_exit_after_expiry() -> None:
    """`__exit__` receives the end of the lifespan as a `TaskExpiredError`."""
    observer = Span()
    async with Manager(observers=[observer]) as manager:
        handle = manager.run_task(Task(nap, name="sleepy", lifespan=2))
        await handle.wait()
    (error,) = observer.errors
    assert isinstance(error, TaskExpiredError)
    assert (error.name, error.id, error.lifespan) == ("sleepy", handle.id, 2)


class RecordingContext(Observer):
    """A context manager that records the arguments of `__exit__` and returns a given result."""

    def __init__(self, result: object = None, reraise: bool = False) -> None:
        self.result = result
        self.reraise = reraise
        self.exits: list[tuple[Any, Any, Any]] = []

    def around_task(self, event: TaskStarted) -> Any:
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> object:
        self.exits.append((kind, error, traceback))
        if self.reraise and error is not None:
            raise error
        return self.result


@pytest.mark.parametrize("fn", [fine, broken])
async def test_exit_arguments(fn: Any) -> None:
    """`__exit__` receives the error with its type and traceback, or `None` three times."""
    observer = RecordingContext()
    async with Manager(observers=[observer]) as manager:
        handle = manager.run(fn)
        await handle.wait()
    ((kind, error, traceback),) = observer.exits
    assert error is handle.error
    assert kind is (type(error) if error else None)
    assert traceback is (error.__traceback__ if error else None)


async def test_exit_cannot_suppress_error(recorder: RecordingObserver) -> None:
    """A true result of `__exit__` does not suppress the error."""
    async with Manager(observers=[RecordingContext(result=True), recorder]) as manager:
        handle = manager.run(broken)
        with pytest.raises(ValueError, match="broken"):
            await handle
        assert handle.status is TaskStatus.FAILED
        await manager.run(fine)
    assert recorder.names(handle.id) == ["added", "started", "failed"]
    assert manager.health().hook_errors == 0


async def test_exit_reraises_error() -> None:
    """`__exit__` may raise the error that it received, as in a plain `with` statement."""
    observers = [RecordingContext(reraise=True), RecordingContext(), RecordingContext(reraise=True)]
    async with Manager(observers=observers) as manager:
        handle = manager.run(broken)
        with pytest.raises(ValueError, match="broken"):
            await handle
    assert [error for observer in observers for _, error, _ in observer.exits] == [handle.error] * 3
    assert manager.health().hook_errors == 0


async def test_not_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    """`around_task` is not called if the observer does not override it."""
    called: list[object] = []
    monkeypatch.setattr(Observer, "around_task", lambda self, event: called.append(event))
    async with Manager(observers=[Observer()]) as manager:
        await manager.run(fine)
    assert called == []


async def test_base_implementation() -> None:
    """An override may return the context manager of the base class, which does nothing."""

    class Sometimes(Span):
        def around_task(self, event: TaskStarted) -> AbstractContextManager[object]:
            if event.id == "one":
                return super().around_task(event)
            return Observer.around_task(self, event)

    observer = Sometimes()
    async with Manager(observers=[observer]) as manager:
        for id in ("one", "two"):
            assert await manager.run_task(Task(fine, id=id)) == "fine"
    assert observer.log == ["enter span", "leave span"]


async def test_set_on_instance() -> None:
    """`around_task` may be an attribute of the observer instead of a method."""
    observer = Observer()
    helper = Span()
    observer.around_task = helper.around_task  # type: ignore[method-assign]
    async with Manager(observers=[observer]) as manager:
        await manager.run(fine)
    assert helper.log == ["enter span", "leave span"]
