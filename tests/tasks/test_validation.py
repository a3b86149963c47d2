"""Validation of arguments: options of tasks and managers, functions, and schedules."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import math
import signal
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from decimal import Decimal
from typing import Any

import pytest
import tenacity
from anyio.lowlevel import checkpoint
from support.labels import label

from background import (
    BackgroundError,
    InvalidTaskError,
    LoopsStoppedError,
    Manager,
    ManagerClosedError,
    ManagerNotRunningError,
    Observer,
    Task,
    TaskKind,
    cron,
    every,
    task,
)
from background.testing import RecordingObserver


async def work(*args: Any, **kwargs: Any) -> None:
    await checkpoint()


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


class GeneratorObject:
    def __call__(self) -> Iterator[int]:
        yield 1

    def method(self) -> Iterator[int]:
        yield 1


class AsyncGeneratorObject:
    async def __call__(self) -> AsyncIterator[int]:
        yield 1


class AwaitableObject:
    def __await__(self) -> Generator[Any, Any, None]:
        yield


class Watcher(Observer):
    async def watch(self, manager: Manager) -> None: ...


class SyncWatcher(Observer):
    def watch(self, manager: Manager) -> None: ...  # type: ignore[override]


class AsyncAround(Observer):
    async def around_task(self, event: Any) -> Any: ...  # type: ignore[override]


LOOP = {"kind": TaskKind.LOOP}
INVALID_SECONDS = [True, "1", None, math.nan, math.inf, -math.inf, Decimal(1), 10**400, 1j]
INVALID_DURATIONS = [0, 0.0, -1, -0.001, *(value for value in INVALID_SECONDS if value is not None)]
INVALID_COUNTS = [0, -1, True, 1.0, "1", math.inf]

INVALID_TASK_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *(("delay", {"delay": value}) for value in [-1, -0.001, False, *INVALID_SECONDS]),
    *(("timeout", {"timeout": value}) for value in INVALID_DURATIONS),
    *(("lifespan", {"lifespan": value}) for value in INVALID_DURATIONS),
    *(("stall_after", {"stall_after": value}) for value in INVALID_DURATIONS),
    ("lifespan", {"lifespan": 5, "delay": 5}),
    ("lifespan", {"lifespan": 5, "delay": 6}),
    *(("retry", {"retry": value}) for value in [*INVALID_COUNTS, tenacity.Retrying(), object()]),
    *(("id", {"id": value}) for value in ["", 1, b"id", object()]),
    *(("name", {"name": value}) for value in ["", 1, b"name", object()]),
    *(("meta", {"meta": value}) for value in [None, [("a", 1)], "meta", {1: "a"}]),
    *(("kwargs", {"kwargs": value}) for value in [None, [("a", 1)], {1: "a"}]),
    *(("args", {"args": value}) for value in [None, 1, "args", b"args"]),
    *(("kind", {"kind": value}) for value in ["loop", None, "one-off", TaskKind]),
    *(("critical", {"critical": value}) for value in [1, 0, None, "yes"]),
    *(("context", {"context": value}) for value in [{}, "context", object()]),
    ("schedule", {"schedule": every(60)}),
    ("schedule", {"schedule": cron("@daily"), "kind": TaskKind.ONE_OFF}),
    *(("schedule", {"schedule": value, **LOOP}) for value in [60, "0 3 * * *", every]),
    ("max_failures", {"max_failures": 3}),
    *(("max_failures", {"max_failures": value, **LOOP}) for value in INVALID_COUNTS),
    *(
        ("observers", {"observers": value})
        for value in [
            Observer,
            (Observer,),
            ("observer",),
            (Observer(), 1),
            "observer",
            (Watcher(),),
        ]
    ),
]


def format_id(value: object) -> str:
    text = value.__name__ if callable(value) and hasattr(value, "__name__") else label(value)
    return text if len(text) < 60 else text[:57] + "..."


@pytest.mark.parametrize(("argument", "options"), INVALID_TASK_OPTIONS, ids=format_id)
def test_invalid_task_option(argument: str, options: dict[str, Any]) -> None:
    """An invalid option of a task is rejected with an error that names the option."""
    with pytest.raises(InvalidTaskError, match=rf"^{argument} ") as info:
        Task(work, **options)
    assert isinstance(info.value, BackgroundError)
    assert isinstance(info.value, ValueError)


VALID_TASK_OPTIONS: list[dict[str, Any]] = [
    {"delay": 0},
    {"delay": 5, "lifespan": 5.001},
    {"timeout": 1e-9, "lifespan": 1, "stall_after": 10**6},
    {"args": [1, 2], "kwargs": {"a": 1}},
    {"args": iter([1, 2])},
    {"meta": {"anything": object()}},
    {"observers": [Observer()]},
    {"observers": Observer()},
    {"observers": (), "critical": True},
    {"schedule": every(1), "max_failures": 1, **LOOP},
]


@pytest.mark.parametrize("options", VALID_TASK_OPTIONS, ids=format_id)
def test_valid_task_options(options: dict[str, Any]) -> None:
    """Valid options of a task are accepted, and iterables become tuples."""
    described = Task(work, **options)
    assert isinstance(described.args, tuple)
    assert isinstance(described.observers, tuple)


def test_task_copies_arguments() -> None:
    """A task copies its arguments and cannot be changed."""
    args, kwargs, meta = [1], {"a": 1}, {"b": 2}
    described = Task(work, args=args, kwargs=kwargs, meta=meta)  # type: ignore[arg-type]
    args.append(2)
    kwargs["a"] = meta["b"] = 3
    assert (described.args, described.kwargs, described.meta) == ((1,), {"a": 1}, {"b": 2})
    with pytest.raises(dataclasses.FrozenInstanceError):
        described.delay = 1.0  # type: ignore[misc]
    assert dataclasses.replace(described, delay=1.0).kwargs == {"a": 1}


# Functions


def make_non_functions() -> list[tuple[Any, str]]:
    return [
        (None, "None"),
        (5, "int"),
        ("work", "str"),
        (AwaitableObject(), "pass the function that makes it"),
        (generator, "generator function generator"),
        (async_generator, "generator function async_generator"),
        (functools.partial(generator), "generator function generator"),
        (GeneratorObject().method, "generator function GeneratorObject.method"),
        (GeneratorObject(), "generator function GeneratorObject"),
        (AsyncGeneratorObject(), "generator function AsyncGeneratorObject"),
        (generator(), "generator"),
    ]


@pytest.mark.parametrize(("fn", "hint"), make_non_functions(), ids=format_id)
def test_non_function(fn: Any, hint: str) -> None:
    """A task rejects an object that is not a function, with a hint in the message."""
    with pytest.raises(InvalidTaskError, match=rf"^fn must be a function, not .*{hint}"):
        Task(fn)


Submit = Callable[[Manager, Any], Any]
SUBMIT_METHODS: dict[str, Submit] = {
    "run": lambda manager, fn: manager.run(fn),
    "after": lambda manager, fn: manager.after(5, fn),
    "loop": lambda manager, fn: manager.loop(fn),
    "every": lambda manager, fn: manager.every(5, fn),
    "cron": lambda manager, fn: manager.cron("@daily", fn),
    "run_task": lambda manager, fn: manager.run_task(Task(fn)),
    "@task": lambda manager, fn: manager.run(task(retry=3)(fn)),
}
submit_methods = pytest.mark.parametrize("submit", SUBMIT_METHODS.values(), ids=SUBMIT_METHODS)


@submit_methods
@pytest.mark.realtime
async def test_coroutine_object(
    manager: Manager, recorder: RecordingObserver, submit: Submit
) -> None:
    """All submission methods reject a coroutine object without a warning and name the fix."""
    with pytest.raises(
        InvalidTaskError, match=r"^fn .* not a coroutine: pass work and its arguments"
    ):
        submit(manager, work(1))
    gc.collect()
    assert manager.count() == 0
    assert recorder.events == []


@submit_methods
@pytest.mark.parametrize("fn", [None, generator, async_generator, AwaitableObject()], ids=format_id)
async def test_non_function_in_all_methods(
    manager: Manager, recorder: RecordingObserver, submit: Submit, fn: Any
) -> None:
    """All submission methods reject an object that is not a function."""
    with pytest.raises(InvalidTaskError, match=r"^fn "):
        submit(manager, fn)
    assert manager.count() == 0
    assert recorder.events == []


@submit_methods
def test_coroutine_object_before_enter(submit: Submit) -> None:
    """A coroutine object is rejected even if the manager is not running."""
    with pytest.raises(InvalidTaskError, match=r"^fn "):
        submit(Manager(), work(1))
    gc.collect()


def test_future() -> None:
    """A future is rejected with a hint to pass the function that makes it."""

    async def main() -> None:
        native = asyncio.ensure_future(work())
        with pytest.raises(InvalidTaskError, match="pass the function that makes it"):
            Task(native)  # type: ignore[arg-type]
        await native

    asyncio.run(main())


# Submission methods


INVALID_CALLS: list[tuple[str, Callable[[Manager], Any]]] = [
    *(
        ("delay", lambda manager, value=value: manager.after(value, work))
        for value in [-1, "1", None, math.nan, math.inf]
    ),
    *(
        ("interval", lambda manager, value=value: manager.every(value, work))
        for value in [0, -1, "1", None, math.nan, math.inf]
    ),
    *(
        ("expression", lambda manager, value=value: manager.cron(value, work))
        for value in ["", "* * *", "nonsense", "61 * * * *", "0 0 30 2 *", None, 5, "@never"]
    ),
    *(
        ("task", lambda manager, value=value: manager.run_task(value))
        for value in [work, None, "work", Task]
    ),
]


@pytest.mark.parametrize(("argument", "call"), INVALID_CALLS, ids=format_id)
async def test_invalid_submission_argument(
    manager: Manager,
    recorder: RecordingObserver,
    argument: str,
    call: Callable[[Manager], Any],
) -> None:
    """An invalid argument of a submission is rejected with an error that names it."""
    with pytest.raises(InvalidTaskError, match=rf"^{argument} "):
        call(manager)
    assert manager.count() == 0
    assert recorder.events == []


async def test_rejected_task_leaves_no_trace() -> None:
    """A rejected task uses neither its id nor capacity, and causes no events."""
    observer = RecordingObserver()
    async with Manager(capacity=1) as manager:
        for options in ({"delay": -1}, {"lifespan": 0}, {"retry": 0}):
            with pytest.raises(InvalidTaskError):
                manager.run_task(Task(work, id="same", observers=(observer,), **options))
        await manager.run_task(Task(work, id="same", observers=(observer,)))
    assert observer.names() == ["added", "started", "succeeded"]


@submit_methods
async def test_submit_while_not_running(
    recorder: RecordingObserver, submit: Submit, anyio_backend: object
) -> None:
    """A manager rejects tasks before it is entered and after it is closed."""
    manager = Manager(name="mail", observers=[recorder])
    with pytest.raises(ManagerNotRunningError, match="'mail' is not running yet"):
        submit(manager, functools.partial(work, 1))
    async with manager:
        pass
    event_count = len(recorder.events)
    with pytest.raises(ManagerClosedError, match="'mail' is closed"):
        submit(manager, functools.partial(work, 2))
    assert len(recorder.events) == event_count


@pytest.mark.parametrize("method", ["loop", "every", "cron"])
async def test_loop_after_stop_loops(
    manager: Manager, recorder: RecordingObserver, method: str
) -> None:
    """A manager whose loops have stopped rejects loops, but accepts one-off tasks."""
    await manager.stop_loops()
    with pytest.raises(LoopsStoppedError, match="'test'"):
        SUBMIT_METHODS[method](manager, work)
    assert recorder.events == []
    await manager.run(work)


# Schedules


@pytest.mark.parametrize("value", INVALID_DURATIONS, ids=format_id)
def test_invalid_interval(value: Any) -> None:
    """`every()` rejects an interval that is not a positive, finite number."""
    with pytest.raises(InvalidTaskError, match=r"^seconds "):
        every(value)


@pytest.mark.parametrize("value", [-1, 61, *INVALID_SECONDS], ids=format_id)
def test_invalid_jitter(value: Any) -> None:
    """`every()` rejects a jitter that is negative, not finite, or longer than the interval."""
    with pytest.raises(InvalidTaskError, match=r"^jitter "):
        every(60, jitter=value)


@pytest.mark.parametrize(
    "value", ["", " ", "* * * *", "60 * * * *", "nonsense", "@sometimes", "0 0 31 2 *", None, 3]
)
def test_invalid_cron_expression(value: Any) -> None:
    """`cron()` rejects an invalid expression."""
    with pytest.raises(InvalidTaskError, match=r"^expression "):
        cron(value)


@pytest.mark.parametrize(
    "value", ["", "Mars/Base", "../../etc/passwd", "/etc/localtime", "Europe", None, 3, b"UTC"]
)
def test_invalid_time_zone(value: Any) -> None:
    """`cron()` rejects an invalid time zone."""
    with pytest.raises(InvalidTaskError, match=r"^tz "):
        cron("@daily", tz=value)


# Options of managers


async def async_backoff(state: object) -> float:
    return 1.0


class AsyncBackoff:
    async def __call__(self, state: object) -> float:
        return 1.0


INVALID_MANAGER_OPTIONS: list[tuple[str, Any]] = [
    *(("name", value) for value in ["", None, 5, b"name"]),
    *(("limit", value) for value in INVALID_COUNTS),
    *(("capacity", value) for value in INVALID_COUNTS),
    *(("threads", value) for value in [*INVALID_COUNTS, None]),
    *(("retry", value) for value in [*INVALID_COUNTS, tenacity.Retrying(), tenacity.AsyncRetrying]),
    *(
        ("loop_backoff", value)
        for value in [1, "1", tenacity.wait_fixed, async_backoff, AsyncBackoff()]
    ),
    *(("grace", value) for value in [-1, True, "1", math.nan, math.inf, 10**400]),
    *(("cancel_timeout", value) for value in [-1, None, True, "1", math.nan, math.inf]),
    *(
        ("observers", value)
        for value in [
            Observer,
            None,
            [Observer],
            ["observer"],
            [Observer(), None],
            [SyncWatcher()],
            [AsyncAround()],
        ]
    ),
    *(
        ("signals", value)
        for value in [
            signal.SIGTERM,
            None,
            ["SIGTERM"],
            [123456],
            *([[signal.SIGKILL]] if hasattr(signal, "SIGKILL") else []),
        ]
    ),
]


@pytest.mark.parametrize(("argument", "value"), INVALID_MANAGER_OPTIONS, ids=format_id)
def test_invalid_manager_option(argument: str, value: Any) -> None:
    """An invalid option of a manager is rejected with an error that names the option."""
    with pytest.raises(ValueError, match=rf"^{argument}\b"):
        Manager(**{argument: value})


def test_valid_manager_options() -> None:
    """Valid options of a manager are accepted."""
    manager = Manager(
        name="mail",
        observers=iter([Observer(), Watcher()]),
        retry=None,
        limit=1,
        capacity=1,
        loop_backoff=None,
        threads=1,
        signals=(),
        grace=None,
        cancel_timeout=0,
    )
    assert manager.name == "mail"


@pytest.mark.parametrize("value", [-1, True, "1", math.nan, math.inf, 10**400], ids=format_id)
async def test_invalid_close_timeout(manager: Manager, value: Any) -> None:
    """`close()` rejects an invalid timeout and does not close the manager."""
    with pytest.raises(ValueError, match=r"^timeout "):
        await manager.close(timeout=value)
    assert manager.state == "running"
    await manager.run(work)


async def test_invalid_close_timeout_before_enter(anyio_backend: object) -> None:
    """`close()` rejects an invalid timeout before the manager is entered."""
    with pytest.raises(ValueError, match=r"^timeout "):
        await Manager().close(timeout=-1)


async def test_task_as_function(manager: Manager) -> None:
    """`run()` rejects a `Task`, without its arguments in the message since they may be secret."""
    with pytest.raises(InvalidTaskError) as caught:
        manager.run(Task(str, args=("secret",)))  # type: ignore[arg-type]
    assert str(caught.value) == "fn must be a function; a Task is for run_task()"
    assert manager.count() == 0
