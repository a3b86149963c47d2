"""Which event observers get for what has become of a task, and what is logged if none does."""

from __future__ import annotations

import logging
from typing import Any

from ._dispatch import tell
from ._events import (
    TaskAdded,
    TaskCancelledEvent,
    TaskExpiredEvent,
    TaskFailed,
    TaskStalled,
    TaskSucceeded,
)
from ._handle import TaskHandle
from ._runner import Outcome, identity
from ._states import TaskStatus

logger = logging.getLogger("background")


def added(handle: TaskHandle[Any]) -> None:
    hooks = handle._hooks.on_task_added
    if hooks:
        tell(hooks, TaskAdded(**identity(handle), delay=handle.task.delay))


def done(handle: TaskHandle[Any], outcome: Outcome, *, final: bool) -> None:
    """Tell of a run or an iteration that succeeded or failed."""
    if outcome.status is TaskStatus.FAILED:
        _failed(handle, outcome, final=final)
        return
    hooks = handle._hooks.on_task_succeeded
    if hooks:
        tell(hooks, TaskSucceeded(**identity(handle), duration=outcome.duration, final=final))


def _failed(handle: TaskHandle[Any], outcome: Outcome, *, final: bool) -> None:
    assert outcome.error is not None
    handle.error = outcome.error
    hooks = handle._hooks.on_task_failed
    told = bool(hooks) and tell(
        hooks,
        TaskFailed(**identity(handle), error=outcome.error, duration=outcome.duration, final=final),
    )
    awaited = final and handle._waiters > 0
    if not told and not awaited:
        logger.error("task %r (%s) failed", handle.name, handle.id, exc_info=outcome.error)


def ended(handle: TaskHandle[Any], outcome: Outcome | None) -> None:
    """Tell of a task's end; without an outcome, no run or iteration was under way."""
    duration = outcome.duration if outcome is not None else None
    if handle.status is TaskStatus.CANCELLED:
        hooks = handle._hooks.on_task_cancelled
        if hooks:
            tell(
                hooks,
                TaskCancelledEvent(**identity(handle), reason=handle._reason, duration=duration),
            )
    elif handle.status is TaskStatus.EXPIRED:
        hooks = handle._hooks.on_task_expired
        if hooks:
            lifespan = handle.task.lifespan or 0.0
            tell(hooks, TaskExpiredEvent(**identity(handle), lifespan=lifespan, duration=duration))
    elif outcome is not None:
        done(handle, outcome, final=True)


def stalled(handle: TaskHandle[Any], elapsed: float) -> None:
    hooks = handle._hooks.on_task_stalled
    if hooks:
        tell(hooks, TaskStalled(**identity(handle), elapsed=elapsed, stack=tuple(handle.stack())))
