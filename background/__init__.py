"""Background work in async services: owned, observed, retried, and finished before you exit.

Enter a `Manager`, and submit functions to it. Its public names:

- Manager: `Manager`, `ManagerOptions`, `ManagerState`, `Health`, `CloseReport`.
- Tasks: `Task`, `TaskOptions`, `task`, `Submission`, `TaskHandle`, `TaskKind`, `TaskStatus`.
- Retries and schedules: `Retry`, `retry_on`, `Schedule`, `every`, `cron`.
- Observers: `Observer`; events of tasks: `TaskEvent`, `TaskAdded`, `TaskStarted`, `TaskRetrying`,
  `TaskSucceeded`, `TaskFailed`, `TaskCancelled`, `TaskExpired`, `TaskStalled`; of jobs: `JobRef`,
  `JobEnqueued`, `JobDead`; of managers: `ManagerClosing`, `ManagerClosed`.
- Errors: `BackgroundError`, `ManagerNotRunningError`, `ManagerClosedError`, `LoopsStoppedError`,
  `ManagerFullError`, `ManagerMisuseError`, `DuplicateTaskError`, `InvalidTaskError`,
  `TaskCancelledError`, `TaskExpiredError`.

The module `background.queues` has durable jobs, `background.observers` observers that are ready to
use, and `background.testing` tools for tests. Modules with an underscore are private.
"""

from __future__ import annotations

from typing import Any

from ._config import ManagerOptions
from ._errors import (
    BackgroundError,
    DuplicateTaskError,
    InvalidTaskError,
    LoopsStoppedError,
    ManagerClosedError,
    ManagerFullError,
    ManagerMisuseError,
    ManagerNotRunningError,
    TaskCancelledError,
    TaskExpiredError,
)
from ._events import (
    JobDead,
    JobEnqueued,
    JobRef,
    TaskAdded,
    TaskCancelled,
    TaskEvent,
    TaskExpired,
    TaskFailed,
    TaskRetrying,
    TaskStalled,
    TaskStarted,
    TaskSucceeded,
)
from ._execution.handle import TaskHandle
from ._manager import Manager
from ._observer import Observer
from ._report import CloseReport, Health, ManagerClosed, ManagerClosing
from ._retry import Retry, retry_on
from ._schedule import Schedule, cron, every
from ._states import ManagerState, TaskKind, TaskStatus
from ._submission import Submission
from ._task import Task, TaskOptions, task

__all__ = [
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


for _name in __all__:
    _error = globals()[_name]
    if isinstance(_error, type) and issubclass(_error, BackgroundError):
        _error.__module__ = __name__  # so that tracebacks show the name to catch


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", *({"observers", "queues", "testing"} & {*globals()})])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("anyio-background")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
