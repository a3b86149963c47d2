"""Background work in async services: owned, observed, retried, and finished before you exit."""

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


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("anyio-background")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
