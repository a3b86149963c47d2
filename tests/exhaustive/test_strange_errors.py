"""Unusual errors, results and functions.

Besides the tests of isolation, these use errors whose methods raise, and loggers that fail.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import anyio
import pytest
from anyio.lowlevel import checkpoint
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tenacity import AsyncRetrying, retry_if_exception, retry_if_result, stop_after_attempt
from tenacity.wait import wait_none

from background import (
    CloseReport,
    Manager,
    ManagerState,
    Observer,
    Task,
    TaskFailed,
    TaskKind,
    TaskStatus,
    TaskSucceeded,
)
from background.observers import LoggingObserver, StallObserver
from background.observers.otel import OpenTelemetryObserver
from background.testing import RecordingObserver


class Oops(Exception):
    pass


class Odd(BaseException):
    """A BaseException that does not end a program."""


def failing(*names: str, base: type[BaseException] = Oops) -> type[BaseException]:
    """Make a class of errors whose methods with these names raise."""

    def fail(self: object, *args: object) -> NoReturn:
        raise ZeroDivisionError

    return type("Failing", (base,), dict.fromkeys(names, fail))


class Falsy(Oops):
    def __len__(self) -> int:
        return 0


class Demanding(Oops):
    """An error that can't be copied or pickled."""

    def __init__(self, first: int, *, second: int) -> None:
        super().__init__()


@dataclasses.dataclass(frozen=True)
class Frozen(Oops):
    code: int


@dataclasses.dataclass
class Unhashable(Oops):
    code: int


class Copying(Oops):
    def with_traceback(self, tb: object) -> Copying:
        return Copying("a copy")


class OddGroup(BaseExceptionGroup[BaseException]):
    def derive(self, errors: object) -> NoReturn:
        raise ZeroDivisionError

    def subgroup(self, condition: object) -> NoReturn:
        raise ZeroDivisionError

    split = subgroup


def caused_by_itself() -> Oops:
    first, second = Oops("first"), Oops("second")
    first.__cause__, second.__cause__ = second, first
    first.__context__, second.__context__ = second, first
    return first


def nested(depth: int) -> BaseException:
    error: Exception = ValueError("at the bottom")
    for _ in range(depth):
        error = ExceptionGroup("nested", [error])
    return error


def chained(length: int) -> BaseException:
    error: BaseException = ValueError("the first")
    for _ in range(length):
        following = ValueError("the next")
        following.__cause__ = error
        error = following
    return error


ERRORS: dict[str, Callable[[], BaseException]] = {
    "group": lambda: ExceptionGroup("several", [ValueError(1), TypeError(2)]),
    "BaseException": lambda: Odd("odd"),
    "group of BaseExceptions": lambda: BaseExceptionGroup("odd", [Odd(), ValueError()]),
    "group with methods that raise": lambda: OddGroup("odd", [Odd(), ValueError()]),
    "nested group": lambda: nested(5000),
    "long chain": lambda: chained(200),
    "endless chain": caused_by_itself,
    "StopAsyncIteration": StopAsyncIteration,
    "GeneratorExit": GeneratorExit,
    "no str": failing("__str__"),
    "no repr": failing("__repr__", "__str__"),
    "no str, and a BaseException": failing("__str__", "__repr__", base=Odd),
    "no eq and no hash": failing("__eq__", "__ne__", "__hash__"),
    "no bool": failing("__bool__"),
    "no len": failing("__len__"),
    "no with_traceback": failing("with_traceback"),
    "no reduce": failing("__reduce__", "__reduce_ex__", "__copy__", "__deepcopy__"),
    "no setattr": failing("__setattr__"),
    "falsy": Falsy,
    "copying": Copying,
    "demanding": lambda: Demanding(1, second=2),
    "frozen": lambda: Frozen(1),
    "unhashable": lambda: Unhashable(1),
}


def recurse() -> int:
    return 1 + recurse()


def takes_all_memory() -> bytearray:
    return bytearray(1 << 60)


REAL = {"RecursionError": recurse, "MemoryError": takes_all_memory}

TWICE = AsyncRetrying(
    stop=stop_after_attempt(2), retry=retry_if_exception(lambda error: True), wait=wait_none()
)
RERAISED = TWICE.copy(reraise=True)
ONCE = AsyncRetrying(stop=stop_after_attempt(1))

HOW: dict[str, dict[str, Any]] = {
    "a one-off": {},
    "a loop": {"kind": TaskKind.LOOP, "max_failures": 1},
    "a policy of one attempt": {"retry": ONCE},
    "a policy": {"retry": TWICE},
    "a policy that reraises": {"retry": RERAISED},
    "a timeout": {"timeout": 1000},
}


class Log(logging.Handler):
    """Stores the errors of log records without formatting them."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[BaseException | None] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(record.exc_info[1] if record.exc_info else None)


@contextmanager
def logged(filter: logging.Filter | None = None) -> Iterator[list[BaseException | None]]:
    """Yield the errors that this package logs, and stop their propagation."""
    logger, log = logging.getLogger("background"), Log()
    logger.addHandler(log)
    logger.propagate = False
    if filter is not None:
        logger.addFilter(filter)
    try:
        yield log.errors
    finally:
        logger.removeHandler(log)
        logger.propagate = True
        if filter is not None:
            logger.removeFilter(filter)


class FailureRecorder(Observer):
    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def on_task_failed(self, event: TaskFailed) -> None:
        self.errors.append(event.error)


async def fine() -> str:
    await anyio.sleep(0.5)
    return "fine"


async def run_failing(manager: Manager, task: Task[Any]) -> BaseException:
    """Run a failing task among other tasks, check them, and return the error."""
    loop, one_off, delayed = manager.every(1, fine), manager.run(fine), manager.after(2, fine)
    with anyio.fail_after(1000):
        handle = manager.run_task(task)
        caught: list[BaseException] = []

        async def wait() -> None:
            try:
                await handle
            except BaseException as error:
                caught.append(error)

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(wait)
        assert caught[0] is caught[1] is handle.error
        assert await one_off == await delayed == "fine"
        assert await manager.run(fine) == "fine"
    assert handle.status is TaskStatus.FAILED
    assert loop.status in (TaskStatus.WAITING, TaskStatus.RUNNING)
    assert handle.error is not None
    return handle.error


async def run_unawaited(task: Task[Any], *observers: Observer) -> tuple[BaseException, CloseReport]:
    """Run a failing task that nothing awaits, and return its error and the report."""
    with anyio.fail_after(1000):
        async with Manager(observers=observers, cancel_timeout=1) as manager:
            handle = manager.run_task(task)
            one_off = manager.run(fine)
            await anyio.sleep(2)
            report = await manager.close()
    assert handle.status is TaskStatus.FAILED
    assert one_off.status is TaskStatus.SUCCEEDED
    assert manager.state is ManagerState.CLOSED
    assert handle.error is not None
    return handle.error, report


def thrower(make: Callable[[], BaseException]) -> tuple[Callable[[], Any], list[BaseException]]:
    thrown: list[BaseException] = []

    async def throw() -> NoReturn:
        await checkpoint()
        thrown.append(make())
        raise thrown[-1]

    return throw, thrown


@pytest.mark.parametrize("name", ERRORS)
async def test_error_reported_once(name: str) -> None:
    """An error goes unchanged to the observer and the waiters, or else once to the log."""
    for how, options in HOW.items():
        recorder = FailureRecorder()
        throw, thrown = thrower(ERRORS[name])
        with logged() as log:
            async with Manager(observers=[recorder], cancel_timeout=1) as manager:
                error = await run_failing(manager, Task(throw, **options))
            assert error is thrown[-1], how
            assert recorder.errors == [] or [*map(id, recorder.errors)] == [id(error)], how
            assert len(recorder.errors) == 1, how
            assert log == [], how
            error, _ = await run_unawaited(Task(throw, **options))
            assert error is thrown[-1], how
            assert [*map(id, log)] == [id(error)], how


@pytest.mark.parametrize("make", REAL.values(), ids=REAL)
@pytest.mark.parametrize("name", ["task", "policy", "hook", "context", "watch", "backoff"])
async def test_recursion_and_memory_errors(make: Callable[[], Any], name: str) -> None:
    """Real recursion and memory errors in any place harm no other task."""

    async def throw(*args: object) -> None:
        await checkpoint()
        make()

    class Bad(Observer):
        if name == "hook":

            def on_task_succeeded(self, event: TaskSucceeded) -> None:
                make()

            on_task_started = throw  # type: ignore[assignment]

        elif name == "context":

            def around_task(self, event: object) -> Any:
                make()

        elif name == "watch":
            watch = throw  # type: ignore[assignment]

    async with Manager(
        observers=[Bad()],
        loop_backoff=lambda state: make(),
        cancel_timeout=1,  # type: ignore[arg-type]
    ) as manager:
        loop = manager.every(1, fine)
        if name == "policy":
            policy = AsyncRetrying(wait=lambda state: make())  # type: ignore[arg-type]
            handle = manager.run_task(Task(throw, retry=policy))
        elif name == "backoff":
            handle = manager.run_task(Task(throw, kind=TaskKind.LOOP))
        else:
            handle = manager.run(throw if name == "task" else fine)
        status = await handle.wait()
        failed = name in ("task", "policy", "backoff")
        assert status is (TaskStatus.FAILED if failed else TaskStatus.SUCCEEDED)
        if failed:
            assert isinstance(handle.error, (RecursionError, MemoryError))
        assert (manager.health().hook_errors > 0) is (not failed)
        assert await manager.run(fine) == "fine"
        assert loop.status in (TaskStatus.WAITING, TaskStatus.RUNNING)


@pytest.mark.realtime
async def test_errors_of_threads() -> None:
    """Errors of sync functions are passed from their threads unchanged."""
    recorder, errors = FailureRecorder(), list[BaseException]()

    def throw(make: Callable[[], BaseException]) -> NoReturn:
        errors.append(make())
        raise errors[-1]

    async with Manager(observers=[recorder]) as manager:
        for name, make in ERRORS.items():
            for options in HOW.values():
                handle = manager.run_task(Task(throw, args=(make,), **options))
                with anyio.fail_after(10):
                    assert await handle.wait() is TaskStatus.FAILED, name
                assert handle.error is errors[-1], name
                assert recorder.errors[-1] is errors[-1], name
        for fn in REAL.values():
            assert await manager.run(fn).wait() is TaskStatus.FAILED
    assert len(recorder.errors) == len(ERRORS) * len(HOW) + len(REAL)


async def test_library_observers() -> None:
    """An unusual error makes one log record, one ended span and one event."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    meters = MeterProvider(shutdown_on_exit=False)
    for name, make in ERRORS.items():
        exporter.clear()
        throw, thrown = thrower(make)
        recorder = RecordingObserver()
        observers = [
            recorder,
            LoggingObserver(succeeded=logging.DEBUG, closing=logging.DEBUG, closed=logging.DEBUG),
            StallObserver(after=100),
            OpenTelemetryObserver(provider, meters),
        ]
        with logged() as log:
            error, report = await run_unawaited(Task(throw, name="failing"), *observers)
        assert error is thrown[0], name
        (failed,) = recorder.of(TaskFailed)
        assert failed.error is error, name
        assert sum(logged_error is error for logged_error in log) == 1, name
        (span,) = [span for span in exporter.get_finished_spans() if span.name == "failing"]
        assert span.end_time is not None, name
        assert report.failed == (), name
        str(report)


# Failing loggers


class Broken(logging.Filter):
    def filter(self, record: logging.LogRecord) -> NoReturn:
        raise ZeroDivisionError


@pytest.mark.parametrize("kind", ["filter", "handler"])
async def test_failing_logger(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Records that a filter or handler fails to log are printed on stderr, as logging does."""

    class BadHook(Observer):
        def on_task_succeeded(self, event: TaskSucceeded) -> None:
            raise ValueError("hook")

        async def on_task_started(self, event: object) -> None:
            raise ValueError("hook")

    handler = logging.Handler()
    handler.emit = partial(Broken().filter)  # type: ignore[method-assign, assignment]
    logger = logging.getLogger("background")
    if kind == "handler":
        logger.addHandler(handler)
    throw, thrown = thrower(lambda: Oops("expected"))
    try:
        with logged(Broken() if kind == "filter" else None):
            for own in ((), (BadHook(),)):
                error, _ = await run_unawaited(Task(throw, name="the name", observers=own), *own)
                assert error is thrown[-1]
                async with Manager(observers=[BadHook()], cancel_timeout=1) as manager:
                    loop = manager.run_task(Task(throw, kind=TaskKind.LOOP, name="the loop"))
                    delayed = manager.after(1, fine)
                    with anyio.fail_after(100):
                        await manager.wait()
                    assert delayed.status is TaskStatus.SUCCEEDED
                    assert loop.iteration > 1
    finally:
        logger.removeHandler(handler)
    shown = capsys.readouterr().err
    assert "the name" in shown
    assert "the loop" in shown
    assert "ZeroDivisionError" in shown


# Errors of the body, and errors that end the program


@pytest.mark.parametrize("name", ERRORS)
async def test_error_of_body(name: str) -> None:
    """An error of the body is raised unchanged, or grouped with that of a critical task."""
    for critical in (False, True):
        await leave_by_error(name, critical)


async def leave_by_error(name: str, critical: bool) -> None:
    body_error = ERRORS[name]()
    if critical and not isinstance(body_error, Exception):
        body_error = Oops()
    throw, thrown = thrower(ERRORS[name])
    raised: BaseException | None = None
    try:
        async with Manager() as manager:
            if critical:
                manager.run_task(Task(throw, critical=True))
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(1)
            raise body_error
    except BaseException as error:
        raised = error
    if critical:
        assert isinstance(raised, BaseExceptionGroup)
        assert [*map(id, raised.exceptions)] == [id(thrown[0]), id(body_error)]
    else:
        assert raised is body_error
    assert manager.state is ManagerState.CLOSED


async def test_interrupt_in_unusual_group() -> None:
    """A KeyboardInterrupt in a broken or deeply nested group ends the block."""
    deep: BaseException = KeyboardInterrupt()
    for _ in range(3000):
        deep = BaseExceptionGroup("nested", [deep])
    for error in (OddGroup("odd", [KeyboardInterrupt(), ValueError()]), deep):
        throw, _ = thrower(partial(lambda error: error, error))
        raised: BaseException | None = None
        try:
            async with Manager() as manager:
                manager.run(throw)
                await anyio.sleep_forever()
        except BaseException as caught:
            raised = caught
        assert raised is error
        assert manager.state is ManagerState.CLOSED


# Policies, results and functions


STRATEGIES = ("retry", "stop", "wait", "before", "after", "before_sleep", "sleep")


@pytest.mark.parametrize("later", [False, True], ids=["def", "async def"])
@pytest.mark.parametrize("strategy", [*STRATEGIES, "retry_error_callback", "retry_error_cls"])
async def test_failing_retry_strategy(strategy: str, later: bool) -> None:
    """An error of a retry strategy fails the task or the iteration, and is logged once."""
    for name, make in ERRORS.items():
        throw, thrown = thrower(make)

        def now(*args: object) -> NoReturn:
            thrown.append(make())  # noqa: B023
            raise thrown[-1]  # noqa: B023

        async def soon(*args: object) -> None:
            await throw()  # noqa: B023

        async def fails() -> NoReturn:
            raise Oops("in the attempt")

        asynchronous = later and strategy != "retry_error_cls"
        policy = AsyncRetrying(
            **{
                "stop": stop_after_attempt(2),
                "wait": wait_none(),
                strategy: soon if asynchronous else now,
            }
        )
        for options in ({}, {"kind": TaskKind.LOOP, "max_failures": 1}):
            with logged() as log:
                error, _ = await run_unawaited(Task(fails, retry=policy, **options))
            assert error is thrown[-1], name
            assert [*map(id, log)] == [id(error)], name


@pytest.mark.parametrize("name", ERRORS)
async def test_failing_loop_backoff(name: str) -> None:
    """An error of the loop backoff ends the loop, after the error of the iteration."""
    throw, thrown = thrower(ERRORS[name])
    raised: list[BaseException] = []

    def backoff(state: object) -> float:
        raised.append(ERRORS[name]())
        raise raised[-1]

    recorder = FailureRecorder()
    options: Any = {"loop_backoff": backoff, "observers": [recorder]}
    async with Manager(**options) as manager:
        loop = manager.loop(throw)
        with anyio.fail_after(100):
            assert await loop.wait() is TaskStatus.FAILED
        assert await manager.run(fine) == "fine"
    assert loop.error is raised[0]
    assert [*map(id, recorder.errors)] == [id(thrown[0]), id(raised[0])]


async def test_unusual_results() -> None:
    """A result with failing methods is only checked for being awaitable, and by the policy."""
    never = ("__eq__", "__bool__", "__len__", "__hash__", "__repr__", "__str__", "__getattr__")

    def fail(self: object, *args: object) -> NoReturn:
        raise ZeroDivisionError

    result = type("Result", (), dict.fromkeys(never, fail))()

    async def give(*args: object) -> object:
        await anyio.sleep(0.1)
        return result

    comparing = AsyncRetrying(retry=retry_if_result(lambda value: value == 3))
    recorder = RecordingObserver()
    observers = [recorder, LoggingObserver(), OpenTelemetryObserver(), StallObserver(after=10)]
    async with Manager(observers=observers) as manager:
        for options in ({}, {"retry": TWICE}, {"args": (result,)}, {"meta": {"strange": result}}):
            assert (await manager.run_task(Task(give, **options))) is result
        assert await manager.run_task(Task(give, kind=TaskKind.LOOP, lifespan=1)).wait()
        refused = manager.run_task(Task(give, retry=comparing))
        assert await refused.wait() is TaskStatus.FAILED
        assert isinstance(refused.error, ZeroDivisionError)
        assert manager.health().hook_errors == 0
    str(recorder.names())


class Callable0:
    async def __call__(self, *args: object) -> str:
        return "called"


class Unprintable(Callable0):
    def __repr__(self) -> str:
        raise ZeroDivisionError

    __str__ = __repr__


async def test_unusual_functions() -> None:
    """Functions and arguments that can't be printed run, and their tasks have a name."""
    recorder = RecordingObserver()
    observers = [recorder, LoggingObserver(added=logging.INFO), OpenTelemetryObserver()]
    named = Callable0()
    named.__qualname__ = 42  # type: ignore[assignment]
    functions = [named, Callable0(), Unprintable(), partial(named), partial(Unprintable())]
    async with Manager(observers=observers) as manager:
        for fn in functions:
            handle = manager.run(fn, Unprintable())
            assert await handle == "called"
            assert isinstance(handle.name, str)
            repr(handle)
        assert manager.health().hook_errors == 0
    assert recorder.names().count("succeeded") == len(functions)
