"""Background work in async services: owned, observed, retried, and finished before you exit."""

from __future__ import annotations

from typing import Any

from ._errors import (
    BackgroundError,
    DuplicateTask,
    InvalidTask,
    LoopsStopped,
    ManagerClosed,
    ManagerFull,
    ManagerMisuse,
    ManagerNotRunning,
    TaskCancelled,
    TaskExpired,
)
from ._events import (
    Job,
    JobDead,
    JobEnqueued,
    ManagerClosedEvent,
    ManagerClosingEvent,
    TaskAdded,
    TaskCancelledEvent,
    TaskEvent,
    TaskExpiredEvent,
    TaskFailed,
    TaskRetrying,
    TaskStalled,
    TaskStarted,
    TaskSucceeded,
)
from ._execution.handle import TaskHandle
from ._manager import Manager
from ._observer import Observer
from ._report import CloseReport, Health
from ._retry import Retry
from ._schedule import Schedule, cron, every
from ._states import ManagerState, TaskKind, TaskStatus
from ._task import Task, task

__all__ = [
    "BackgroundError",
    "CloseReport",
    "DuplicateTask",
    "Health",
    "InvalidTask",
    "Job",
    "JobDead",
    "JobEnqueued",
    "LoopsStopped",
    "Manager",
    "ManagerClosed",
    "ManagerClosedEvent",
    "ManagerClosingEvent",
    "ManagerFull",
    "ManagerMisuse",
    "ManagerNotRunning",
    "ManagerState",
    "Observer",
    "Retry",
    "Schedule",
    "Task",
    "TaskAdded",
    "TaskCancelled",
    "TaskCancelledEvent",
    "TaskEvent",
    "TaskExpired",
    "TaskExpiredEvent",
    "TaskFailed",
    "TaskHandle",
    "TaskKind",
    "TaskRetrying",
    "TaskStalled",
    "TaskStarted",
    "TaskStatus",
    "TaskSucceeded",
    "cron",
    "every",
    "task",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("anyio-background")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
