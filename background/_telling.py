"""Which event observers get for what has become of a task, and what is logged if none does."""

from __future__ import annotations

from functools import partial
from typing import Any

from ._events import (
    TaskAdded,
    TaskCancelledEvent,
    TaskExpiredEvent,
    TaskFailed,
    TaskStalled,
    TaskSucceeded,
)
from ._handle import TaskHandle, log_failure
from ._runner import Outcome, identity
from ._states import TaskStatus


def added(handle: TaskHandle[Any]) -> None:
    hooks = handle._hooks
    if hooks.on_task_added:
        hooks.tell(hooks.on_task_added, TaskAdded(**identity(handle), delay=handle.task.delay))


def done(handle: TaskHandle[Any], outcome: Outcome, *, final: bool) -> None:
    """Tell of a run or an iteration that succeeded or failed."""
    hooks = handle._hooks
    if outcome.status is TaskStatus.FAILED:
        _failed(handle, outcome, final=final)
    elif hooks.on_task_succeeded:
        event = TaskSucceeded(**identity(handle), duration=outcome.duration, final=final)
        hooks.tell(hooks.on_task_succeeded, event)


def _failed(handle: TaskHandle[Any], outcome: Outcome, *, final: bool) -> None:
    error = outcome.error
    assert error is not None
    hooks = handle._hooks
    awaited = final and handle._waiters > 0
    unless_told = partial(_hear_of, handle, error, awaited)
    if hooks.on_task_failed:
        event = TaskFailed(**identity(handle), error=error, duration=outcome.duration, final=final)
        hooks.tell(hooks.on_task_failed, event, unless_told)
    else:
        unless_told(False)


def _hear_of(handle: TaskHandle[Any], error: BaseException, awaited: bool, told: bool) -> None:
    if told:
        return
    if awaited:
        handle._unheard = True
    else:
        log_failure(handle.name, handle.id, error)


def ended(handle: TaskHandle[Any], outcome: Outcome | None) -> None:
    """Tell of a task's end; without an outcome, no run or iteration was under way."""
    hooks = handle._hooks
    duration = outcome.duration if outcome is not None else None
    if handle.status is TaskStatus.CANCELLED:
        if hooks.on_task_cancelled:
            reason = handle._reason
            event = TaskCancelledEvent(**identity(handle), reason=reason, duration=duration)
            hooks.tell(hooks.on_task_cancelled, event)
    elif handle.status is TaskStatus.EXPIRED:
        if hooks.on_task_expired:
            lifespan = handle.task.lifespan or 0.0
            expired = TaskExpiredEvent(**identity(handle), lifespan=lifespan, duration=duration)
            hooks.tell(hooks.on_task_expired, expired)
    else:
        assert outcome is not None
        done(handle, outcome, final=True)


def stalled(handle: TaskHandle[Any], elapsed: float) -> None:
    hooks = handle._hooks
    if hooks.on_task_stalled and handle.status is TaskStatus.RUNNING:
        stack = tuple(handle.stack())
        event = TaskStalled(**identity(handle), elapsed=elapsed, stack=stack)
        hooks.tell(hooks.on_task_stalled, event)
