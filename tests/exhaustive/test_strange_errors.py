"""Errors, results and functions that behave strangely: isolated, reported once, seen by all.

What is new here over the tests of isolation: errors whose own methods raise, and logs that break.
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
    """Neither an Exception nor one of those that end a program."""


def failing(*names: str, base: type[BaseException] = Oops) -> type[BaseException]:
    """Make a class of errors of which these methods raise."""

    def fail(self: object, *args: object) -> NoReturn:
        raise ZeroDivisionError

    return type("Failing", (base,), dict.fromkeys(names, fail))


class Falsy(Oops):
    def __len__(self) -> int:
        return 0


class Demanding(Oops):
    """Can be neither copied nor pickled."""

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
    "chain without end": caused_by_itself,
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
    "no attributes to be set": failing("__setattr__"),
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
    "a policy that raises again": {"retry": RERAISED},
    "a timeout": {"timeout": 1000},
}


class Log(logging.Handler):
    """Keeps the errors of records, and formats none."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[BaseException | None] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(record.exc_info[1] if record.exc_info else None)


@contextmanager
def logged(filter: logging.Filter | None = None) -> Iterator[list[BaseException | None]]:
    """Yield the errors that this package logs, to nobody else."""
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


class Told(Observer):
    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def on_task_failed(self, event: TaskFailed) -> None:
        self.errors.append(event.error)


async def fine() -> str:
    await anyio.sleep(0.5)
    return "fine"


async def survives(manager: Manager, task: Task[Any]) -> BaseException:
    """Run a task that fails beside others, and return its error."""
    loop, bystander, delayed = manager.every(1, fine), manager.run(fine), manager.after(2, fine)
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
        assert await bystander == await delayed == "fine"
        assert await manager.run(fine) == "fine"
    assert handle.status is TaskStatus.FAILED
    assert loop.status in (TaskStatus.WAITING, TaskStatus.RUNNING)
    assert handle.error is not None
    return handle.error


async def silently(task: Task[Any], *observers: Observer) -> tuple[BaseException, CloseReport]:
    """Run a task that nobody waits for, beside others, and close."""
    with anyio.fail_after(1000):
        async with Manager(observers=observers, cancel_timeout=1) as manager:
            handle = manager.run_task(task)
            other = manager.run(fine)
            await anyio.sleep(2)
            report = await manager.close()
    assert handle.status is TaskStatus.FAILED
    assert other.status is TaskStatus.SUCCEEDED
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
async def test_error_is_the_tasks_own_and_told_once(name: str) -> None:
    """To whom it may concern: an observer, those who wait, or the log, and nobody twice."""
    for how, options in HOW.items():
        told = Told()
        throw, thrown = thrower(ERRORS[name])
        with logged() as log:
            async with Manager(observers=[told], cancel_timeout=1) as manager:
                error = await survives(manager, Task(throw, **options))
            assert error is thrown[-1], how
            assert told.errors == [] or [id(each) for each in told.errors] == [id(error)], how
            assert len(told.errors) == 1, how
            assert log == [], how
            error, _ = await silently(Task(throw, **options))
            assert error is thrown[-1], how
            assert [id(each) for each in log] == [id(error)], how


@pytest.mark.parametrize("make", REAL.values(), ids=REAL)
@pytest.mark.parametrize("name", ["task", "policy", "hook", "context", "watch", "backoff"])
async def test_real_recursion_and_lack_of_memory(make: Callable[[], Any], name: str) -> None:
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
        bystander = manager.every(1, fine)
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
        assert bystander.status in (TaskStatus.WAITING, TaskStatus.RUNNING)


@pytest.mark.realtime
async def test_errors_of_threads() -> None:
    """In a worker thread they are carried over as they are."""
    told, errors = Told(), list[BaseException]()

    def throw(make: Callable[[], BaseException]) -> NoReturn:
        errors.append(make())
        raise errors[-1]

    async with Manager(observers=[told]) as manager:
        for name, make in ERRORS.items():
            for options in HOW.values():
                handle = manager.run_task(Task(throw, args=(make,), **options))
                with anyio.fail_after(10):
                    assert await handle.wait() is TaskStatus.FAILED, name
                assert handle.error is errors[-1], name
                assert told.errors[-1] is errors[-1], name
        for real in REAL.values():
            assert await manager.run(real).wait() is TaskStatus.FAILED
    assert len(told.errors) == len(ERRORS) * len(HOW) + len(REAL)


async def test_observers_of_the_library_cope() -> None:
    """Each failure is one record at ERROR, one span that has ended, and one event."""
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
            error, report = await silently(Task(throw, name="mine"), *observers)
        assert error is thrown[0], name
        (failed,) = recorder.of(TaskFailed)
        assert failed.error is error, name
        assert sum(each is error for each in log) == 1, name
        (span,) = [each for each in exporter.get_finished_spans() if each.name == "mine"]
        assert span.end_time is not None, name
        assert report.failed == (), name
        str(report)


# A log that breaks


class Broken(logging.Filter):
    def filter(self, record: logging.LogRecord) -> NoReturn:
        raise ZeroDivisionError


@pytest.mark.parametrize("kind", ["filter", "handler"])
async def test_log_that_raises_harms_nothing(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The record is shown the way logging does it for handlers that fail: on stderr."""

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
    throw, thrown = thrower(lambda: Oops("mine"))
    try:
        with logged(Broken() if kind == "filter" else None):
            for own in ((), (BadHook(),)):
                error, _ = await silently(Task(throw, name="the name", observers=own), *own)
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


# The body's errors, and those that end the program


@pytest.mark.parametrize("name", ERRORS)
async def test_error_of_the_body(name: str) -> None:
    """It leaves the block as it is, in a group with that of a critical task."""
    for critical in (False, True):
        await leave_by_error(name, critical)


async def leave_by_error(name: str, critical: bool) -> None:
    mine = ERRORS[name]()
    if critical and not isinstance(mine, Exception):
        mine = Oops()
    throw, thrown = thrower(ERRORS[name])
    raised: BaseException | None = None
    try:
        async with Manager() as manager:
            if critical:
                manager.run_task(Task(throw, critical=True))
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(1)
            raise mine
    except BaseException as error:
        raised = error
    if critical:
        assert isinstance(raised, BaseExceptionGroup)
        assert [id(each) for each in raised.exceptions] == [id(thrown[0]), id(mine)]
    else:
        assert raised is mine
    assert manager.state is ManagerState.CLOSED


async def test_end_of_the_program_in_groups_that_are_no_help() -> None:
    """In a group whose own methods raise, and in one that is nested deeply."""
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
async def test_strategy_that_raises(strategy: str, later: bool) -> None:
    """The error is the task's, once, or the iteration's."""
    for name, make in ERRORS.items():
        throw, thrown = thrower(make)

        def now(*args: object) -> NoReturn:
            thrown.append(make())  # noqa: B023
            raise thrown[-1]  # noqa: B023

        async def soon(*args: object) -> None:
            await throw()  # noqa: B023

        async def fails() -> NoReturn:
            raise Oops("the attempt's own")

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
                error, _ = await silently(Task(fails, retry=policy, **options))
            assert error is thrown[-1], name
            assert [id(each) for each in log] == [id(error)], name


@pytest.mark.parametrize("name", ERRORS)
async def test_loop_backoff_that_raises(name: str) -> None:
    """The loop ends with that error, after its iteration's."""
    throw, thrown = thrower(ERRORS[name])
    mine: list[BaseException] = []

    def backoff(state: object) -> float:
        mine.append(ERRORS[name]())
        raise mine[-1]

    told = Told()
    async with Manager(loop_backoff=backoff, observers=[told]) as manager:  # type: ignore[arg-type]
        loop = manager.loop(throw)
        with anyio.fail_after(100):
            assert await loop.wait() is TaskStatus.FAILED
        assert await manager.run(fine) == "fine"
    assert loop.error is mine[0]
    assert [id(each) for each in told.errors] == [id(thrown[0]), id(mine[0])]


async def test_strange_results() -> None:
    """Nobody asks a result anything but whether it can be awaited, and what a policy asks."""
    never = ("__eq__", "__bool__", "__len__", "__hash__", "__repr__", "__str__", "__getattr__")

    def fail(self: object, *args: object) -> NoReturn:
        raise ZeroDivisionError

    result = type("Result", (), dict.fromkeys(never, fail))()

    async def give(*args: object) -> object:
        await anyio.sleep(0.1)
        return result

    asked = AsyncRetrying(retry=retry_if_result(lambda value: value == 3))
    recorder = RecordingObserver()
    observers = [recorder, LoggingObserver(), OpenTelemetryObserver(), StallObserver(after=10)]
    async with Manager(observers=observers) as manager:
        for options in ({}, {"retry": TWICE}, {"args": (result,)}, {"meta": {"strange": result}}):
            assert (await manager.run_task(Task(give, **options))) is result
        assert await manager.run_task(Task(give, kind=TaskKind.LOOP, lifespan=1)).wait()
        refused = manager.run_task(Task(give, retry=asked))
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


async def test_strange_functions_and_arguments() -> None:
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
