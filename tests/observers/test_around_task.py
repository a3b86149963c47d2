"""`around_task`: a context manager entered inside the task, around each run or iteration."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from support.outcomes import FATES, LOOP, TWICE, Fate, Flaky, broken, fine, meet, nap

from background import (
    Manager,
    Observer,
    Task,
    TaskCancelledError,
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
    """Keeps when it was entered and left, and with which error."""

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


async def test_context_variables_are_seen_by_the_function() -> None:
    async with Manager(observers=[Span()]) as manager:
        assert await manager.run_task(Task(get_span, id="one")) == "span of one"
    assert span.get() == "none"


@pytest.mark.realtime
async def test_context_variables_are_seen_by_a_sync_function() -> None:
    async with Manager(observers=[Span()]) as manager:
        assert await manager.run_task(Task(span.get, id="one")) == "span of one"
        assert await manager.run_task(Task(lambda: get_span(), id="two")) == "span of two"


async def test_it_is_entered_and_left_in_the_task_itself() -> None:
    tasks: list[object] = []

    class Here(Observer):
        def around_task(self, event: object) -> AbstractContextManager[object]:
            tasks.append(anyio.get_current_task())
            return self.entered()

        @contextmanager
        def entered(self) -> Generator[None]:
            tasks.append(anyio.get_current_task())
            yield
            tasks.append(anyio.get_current_task())

    async def work() -> None:
        tasks.append(anyio.get_current_task())

    async with Manager(observers=[Here()]) as manager:
        await manager.run(work)
    assert tasks == [tasks[0]] * 4
    assert tasks[0] != anyio.get_current_task()


@pytest.mark.parametrize("fate", FATES.values(), ids=FATES)
async def test_it_is_around_every_run_of_every_fate(fate: Fate) -> None:
    """It is entered as often as a run starts, once for all attempts, and as often left."""
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
    handle = await meet(fate, recorder)
    runs = recorder.names(handle.id).count("started")
    assert [each for id, each in entered if id == handle.id] == [True, False] * runs


async def test_order_of_hooks_and_contexts() -> None:
    """`started` is told outside of the contexts, and what a run came to inside."""
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


async def test_several_nest_in_the_order_of_the_observers() -> None:
    log: list[str] = []
    own = Span("own", log)
    async with Manager(observers=[Span("outer", log), Span("inner", log)]) as manager:
        task = Task(get_span, id="one", observers=(own,))
        assert await manager.run_task(task) == "own of one"
    assert log == [
        *("enter outer", "enter inner", "enter own"),
        *("leave own", "leave inner", "leave outer"),
    ]


async def test_each_iteration_has_its_own_and_starts_afresh() -> None:
    """What an iteration's context leaves set is not seen by the next."""
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


async def test_one_for_all_attempts() -> None:
    observer = Span()
    async with Manager(observers=[observer]) as manager:
        await manager.run_task(Task(Flaky(1), retry=TWICE))
    assert observer.log == ["enter span", "leave span"]
    assert observer.errors == [None]


async def test_exit_gets_the_error_of_a_failed_run() -> None:
    observer = Span()
    async with Manager(observers=[observer]) as manager:
        handle = manager.run(broken)
        assert await handle.wait() is TaskStatus.FAILED
    assert observer.errors == [handle.error]


async def test_exit_gets_the_error_of_each_failed_iteration() -> None:
    observer, recorder = Span(), RecordingObserver()
    async with Manager(observers=[observer, recorder]) as manager:
        manager.run_task(Task(Flaky(1), kind=LOOP, schedule=every(10)))
        await anyio.sleep(15)
    (failed,) = recorder.of(TaskFailed)
    assert observer.errors == [failed.error, None]


async def test_exit_gets_the_cancellation_as_an_error() -> None:
    observer = Span()
    async with Manager(observers=[observer]) as manager:
        handle = manager.run_task(Task(nap, name="sleepy"))
        await anyio.sleep(1)
        handle.cancel("enough")
        await handle.wait()
    (error,) = observer.errors
    assert isinstance(error, TaskCancelledError)
    assert (error.name, error.id, error.reason) == ("sleepy", handle.id, "enough")


async def test_exit_gets_the_end_of_the_lifespan_as_an_error() -> None:
    observer = Span()
    async with Manager(observers=[observer]) as manager:
        handle = manager.run_task(Task(nap, name="sleepy", lifespan=2))
        await handle.wait()
    (error,) = observer.errors
    assert isinstance(error, TaskExpiredError)
    assert (error.name, error.id, error.lifespan) == ("sleepy", handle.id, 2)


class Raw(Observer):
    """A context manager as a class, which keeps what its exit gets and answers as it is told."""

    def __init__(self, answer: object = None, reraise: bool = False) -> None:
        self.answer = answer
        self.reraise = reraise
        self.got: list[tuple[Any, Any, Any]] = []

    def around_task(self, event: TaskStarted) -> Any:
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> object:
        self.got.append((kind, error, traceback))
        if self.reraise and error is not None:
            raise error
        return self.answer


@pytest.mark.parametrize("fn", [fine, broken])
async def test_arguments_of_exit(fn: Any) -> None:
    observer = Raw()
    async with Manager(observers=[observer]) as manager:
        handle = manager.run(fn)
        await handle.wait()
    ((kind, error, traceback),) = observer.got
    assert error is handle.error
    assert kind is (type(error) if error else None)
    assert traceback is (error.__traceback__ if error else None)


async def test_exit_cannot_suppress_an_error(recorder: RecordingObserver) -> None:
    async with Manager(observers=[Raw(answer=True), recorder]) as manager:
        handle = manager.run(broken)
        with pytest.raises(ValueError, match="broken"):
            await handle
        assert handle.status is TaskStatus.FAILED
        await manager.run(fine)
    assert recorder.names(handle.id) == ["added", "started", "failed"]
    assert manager.health().hook_errors == 0


async def test_exit_that_raises_the_same_error_again_is_fine() -> None:
    """As a plain `with` statement would, a context manager may pass on what it got."""
    observers = [Raw(reraise=True), Raw(), Raw(reraise=True)]
    async with Manager(observers=observers) as manager:
        handle = manager.run(broken)
        with pytest.raises(ValueError, match="broken"):
            await handle
    assert [error for observer in observers for _, error, _ in observer.got] == [handle.error] * 3
    assert manager.health().hook_errors == 0


async def test_around_task_that_nobody_overrides_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[object] = []
    monkeypatch.setattr(Observer, "around_task", lambda self, event: called.append(event))
    async with Manager(observers=[Observer()]) as manager:
        await manager.run(fine)
    assert called == []


async def test_around_task_may_leave_the_rest_to_its_base() -> None:
    """The base class's context manager does nothing."""

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


async def test_around_task_set_on_an_instance() -> None:
    """A context manager around some tasks only, given as an attribute of the object."""
    observer = Observer()
    helper = Span()
    observer.around_task = helper.around_task  # type: ignore[method-assign]
    async with Manager(observers=[observer]) as manager:
        await manager.run(fine)
    assert helper.log == ["enter span", "leave span"]
