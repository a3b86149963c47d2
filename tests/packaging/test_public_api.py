"""The public API of the package: names, signatures and imports."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pickle
import pydoc
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

import background
import background.observers
import background.queues
import background.testing
from background import Manager, Observer, Task, TaskHandle

NAMES = [
    "BackgroundError",
    "CloseReport",
    "DuplicateTaskError",
    "Health",
    "InvalidTaskError",
    "JobDead",
    "JobEnqueued",
    "JobRef",
    "LoopsStoppedError",
    "Manager",
    "ManagerClosed",
    "ManagerClosedError",
    "ManagerClosing",
    "ManagerFullError",
    "ManagerMisuseError",
    "ManagerNotRunningError",
    "ManagerOptions",
    "ManagerState",
    "Observer",
    "Retry",
    "Schedule",
    "Submission",
    "Task",
    "TaskAdded",
    "TaskCancelled",
    "TaskCancelledError",
    "TaskEvent",
    "TaskExpired",
    "TaskExpiredError",
    "TaskFailed",
    "TaskHandle",
    "TaskKind",
    "TaskOptions",
    "TaskRetrying",
    "TaskStalled",
    "TaskStarted",
    "TaskStatus",
    "TaskSucceeded",
    "cron",
    "every",
    "retry_on",
    "task",
]

MODULES = [
    "background.observers.otel",
    "background.queues.abc",
    "background.queues.memory",
    "background.queues.nats",
    "background.queues.redis",
    "background.queues.sqlite",
    "background.testing",
]


def test_names() -> None:
    """`background.__all__` lists the public names."""
    assert background.__all__ == NAMES
    assert [name for name in NAMES if not hasattr(background, name)] == []


def test_dir() -> None:
    """`dir()` shows the public names, and the public modules that are imported."""
    assert dir(background) == sorted([*NAMES, "__version__", "observers", "queues", "testing"])
    modules = {"abc", "memory", "nats", "redis", "sqlite"} & vars(background.queues).keys()
    assert dir(background.queues) == sorted([*background.queues.__all__, *modules])
    observers = background.observers
    assert dir(observers) == sorted([*observers.__all__, *({"otel"} & vars(observers).keys())])


@pytest.mark.parametrize("name", MODULES)
def test_dir_of_module(name: str) -> None:
    """`dir()` of a public module shows its public names, and no imports."""
    module = importlib.import_module(name)
    assert dir(module) == sorted(module.__all__)


def test_help() -> None:
    """`help()` begins with a list of the public names by subject."""
    text = pydoc.plaintext.document(background)
    begin = text.partition("PACKAGE CONTENTS")[0]
    assert len(begin.splitlines()) < 30
    assert {*re.findall(r"`(\w+)`", begin)} == {*NAMES}


def test_modules_of_errors() -> None:
    """Errors have the name by which they are imported, in tracebacks and in pickles."""
    for package in (background, background.queues):
        for name in package.__all__:
            error = getattr(package, name)
            if isinstance(error, type) and issubclass(error, Exception):
                assert (error.__module__, error.__qualname__) == (package.__name__, name)
                assert pickle.loads(pickle.dumps(error)) is error
    error = background.TaskExpiredError("name", "id", 5)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert traceback.format_exception_only(error)[0].startswith("background.TaskExpiredError: ")


def test_no_other_public_names() -> None:
    """No other name of the package looks public."""
    modules = {name for name, value in vars(background).items() if inspect.ismodule(value)}
    public = {name for name in vars(background) if not name.startswith("_")} - modules
    assert public - {"annotations", "Any"} == set(NAMES)


def test_names_of_observers() -> None:
    """`background.observers` exports observers, and the type of log levels."""
    types, observers = ["LogLevels"], ["LoggingObserver", "StallObserver"]
    assert background.observers.__all__ == [*types, *observers]
    for name in observers:
        assert issubclass(getattr(background.observers, name), Observer)


def test_names_of_testing() -> None:
    """`background.testing` has its classes, functions and fixtures."""
    fixtures = {"jobs_memory", "manager", "recorder"}
    classes = {"EnqueuedJob", "RecordingObserver", "VirtualTimeLoop"}
    functions = {"drain", "enqueued", "virtual_time", "virtual_wall_clock"}
    assert {*background.testing.__all__} == fixtures | classes | functions
    for name in fixtures:
        assert "fixture" in repr(getattr(background.testing, name))


# Signatures: names, kinds and defaults; `tests/typing` checks the types


def parameters(function: Any) -> str:
    """Return the parameters without annotations and `self`."""
    listed = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    ]
    return str(inspect.Signature(listed))


METHODS = {
    "open": "()",
    "run": "(fn, /, *args, **kwargs)",
    "after": "(delay, fn, /, *args, **kwargs)",
    "loop": "(fn, /, *args, **kwargs)",
    "every": "(interval, fn, /, *args, **kwargs)",
    "cron": "(expression, fn, /, *args, **kwargs)",
    "schedule": "(schedule, fn, /, *args, **kwargs)",
    "options": "(**options)",
    "run_task": "(task)",
    "submit": "(task)",
    "wait": "()",
    "stop_loops": "()",
    "close": "(*, timeout='grace')",
    "shutdown_requested": "()",
    "request_shutdown": "()",
    "cancel": "(id, *, reason=None)",
    "get": "(id)",
    "tasks": "(kind=None)",
    "count": "(kind=None)",
    "health": "()",
    "report_stall": "(id, *, elapsed)",
}
AWAITED = {"open", "submit", "wait", "stop_loops", "close", "shutdown_requested"}


def test_manager() -> None:
    """The options of a manager have these defaults."""
    options = inspect.signature(Manager).parameters
    assert {option.kind for option in options.values()} == {inspect.Parameter.KEYWORD_ONLY}
    defaults = {name: option.default for name, option in options.items()}
    backoff = defaults.pop("loop_backoff")
    assert defaults == {
        "name": "background",
        "observers": (),
        "retry": None,
        "limit": None,
        "capacity": None,
        "threads": 40,
        "signals": False,
        "grace": 25.0,
        "leave_timeout": None,
        "cancel_timeout": 5.0,
    }
    assert (backoff.min, backoff.max) == (0.1, 30)


@pytest.mark.parametrize("name", METHODS)
def test_manager_methods(name: str) -> None:
    """A method of the manager has this signature, and a docstring."""
    method = getattr(Manager, name)
    assert parameters(method) == METHODS[name]
    assert inspect.iscoroutinefunction(method) == (name in AWAITED)
    assert method.__doc__


def test_no_other_manager_methods() -> None:
    """The manager has no other public attributes."""
    public = {name for name in dir(Manager) if not name.startswith("_")}
    assert public == {*METHODS, "name", "state"}


def test_task() -> None:
    """A task has these fields and is immutable."""
    assert parameters(Task) == (
        "(fn, *, args=(), kwargs=mappingproxy({}), kind=<TaskKind.ONE_OFF: 'one-off'>, "
        "schedule=None, delay=0.0, timeout=None, lifespan=None, retry=None, id=None, name=None, "
        "meta=mappingproxy({}), observers=(), critical=False, max_failures=None, "
        "stall_after=None, context=None)"
    )
    task = Task(print)
    assert task.kwargs == task.meta == {}
    assert not hasattr(task, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.delay = 1  # type: ignore[misc]


def test_handle() -> None:
    """A handle has these attributes and can be awaited."""
    assert parameters(TaskHandle.result) == "()"
    assert parameters(TaskHandle.wait) == "()"
    assert parameters(TaskHandle.cancel) == "(reason=None)"
    assert parameters(TaskHandle.stack) == "()"
    public = {name for name in dir(TaskHandle) if not name.startswith("_")}
    assert public == {
        *("id", "name", "kind", "task", "meta", "status", "done", "attempt", "iteration", "error"),
        *("submitted_at", "started_at", "finished_at", "job"),
        *("result", "wait", "cancel", "stack"),
    }
    assert hasattr(TaskHandle, "__await__")


def test_functions() -> None:
    """The functions have these signatures."""
    assert parameters(background.every) == "(seconds, *, jitter=0.0)"
    assert parameters(background.cron) == "(expression, *, tz='UTC')"
    assert parameters(background.task) == "(fn=None, /, **options)"
    assert parameters(background.retry_on) == "(*exceptions, attempts=10, timeout=45.0)"


def test_hooks() -> None:
    """An observer has these hooks."""
    hooks = {name: parameters(hook) for name, hook in vars(Observer).items() if name[0] != "_"}
    assert hooks == {
        "on_task_added": "(event)",
        "on_task_started": "(event)",
        "on_task_retrying": "(event)",
        "on_task_succeeded": "(event)",
        "on_task_failed": "(event)",
        "on_task_cancelled": "(event)",
        "on_task_expired": "(event)",
        "on_task_stalled": "(event)",
        "on_job_enqueued": "(event)",
        "on_job_dead": "(event)",
        "on_manager_closing": "(event)",
        "on_manager_closed": "(event)",
        "around_task": "(event)",
        "watch": "(manager)",
    }


def test_enum_values() -> None:
    """Statuses, kinds and states are strings that telemetry and dashboards can store."""
    assert [*background.TaskKind] == ["one-off", "loop"]
    assert [*background.TaskStatus] == [
        *("waiting", "running", "retrying"),
        *("succeeded", "failed", "cancelled", "expired"),
    ]
    assert [*background.ManagerState] == ["new", "running", "stopping", "closing", "closed"]


def test_errors() -> None:
    """All errors have the same root class."""
    bases = {
        name: [base.__name__ for base in value.__bases__]
        for name, value in vars(background).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert bases == {
        "BackgroundError": ["Exception"],
        "ManagerMisuseError": ["BackgroundError", "RuntimeError"],
        "ManagerNotRunningError": ["BackgroundError"],
        "ManagerClosedError": ["BackgroundError"],
        "LoopsStoppedError": ["ManagerClosedError"],
        "ManagerFullError": ["BackgroundError"],
        "DuplicateTaskError": ["BackgroundError"],
        "InvalidTaskError": ["BackgroundError", "ValueError"],
        "TaskCancelledError": ["BackgroundError"],
        "TaskExpiredError": ["BackgroundError"],
    }


# The module itself


def test_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`__version__` is the version of the distribution."""
    metadata = tmp_path / "anyio_background-123.4.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: anyio-background\nVersion: 123.4\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert background.__version__ == "123.4"


def test_unknown_attribute() -> None:
    """An unknown attribute of the package raises an AttributeError."""
    with pytest.raises(AttributeError, match="module 'background' has no attribute 'nonsense'"):
        background.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_typed() -> None:
    """The package has a `py.typed` file."""
    assert (Path(background.__file__).parent / "py.typed").is_file()


def loaded_modules(statement: str) -> set[str]:
    """Return the names of the modules that are loaded after a statement in a new process."""
    code = f"import sys; {statement}; print(*sys.modules)"
    root = Path(background.__file__).parents[1]
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )
    return set(process.stdout.split())


OPTIONAL = {"trio", "uvloop", "pytest", "_pytest", "opentelemetry", "cronsim", "zoneinfo"}
LATE = {f"background.{name}" for name in ("observers", "queues", "testing")}


def test_import_of_package() -> None:
    """The package imports no extra, no event loop, and no optional module."""
    modules = loaded_modules("import background")
    assert "background._manager" in modules
    assert modules & (OPTIONAL | LATE | {"asyncio"}) == set()


def test_import_of_observers() -> None:
    """`background.observers` does not import OpenTelemetry; its observer's module does."""
    modules = loaded_modules("import background.observers")
    assert modules & (OPTIONAL | {"background.testing"}) == set()
    modules = loaded_modules("import background.observers.otel")
    assert "opentelemetry" in modules
    assert not {name for name in modules if name.startswith("opentelemetry.sdk")}
    assert modules & {"trio", "pytest"} == set()


def test_import_of_testing() -> None:
    """`background.testing` does not import trio."""
    assert "trio" not in loaded_modules("import background.testing")
