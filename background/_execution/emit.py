"""Which event observers get for what becomes of a task, and what is logged if none does."""

from __future__ import annotations

from functools import partial
from typing import Any

from tenacity import RetryError

from .._events import (
    JobDead,
    TaskAdded,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskRetrying,
    TaskStalled,
    TaskStarted,
    TaskSucceeded,
)
from .._states import TaskStatus
from .._support import clock
from .._support.frozen import maker
from .handle import TaskHandle, log_failure
from .outcome import Outcome

_added = maker(TaskAdded)
_started = maker(TaskStarted)
_retrying = maker(TaskRetrying)
_succeeded = maker(TaskSucceeded)
_failed = maker(TaskFailed)
_cancelled = maker(TaskCancelled)
_expired = maker(TaskExpired)
_stalled = maker(TaskStalled)


def _identity(handle: TaskHandle[Any], time: float) -> tuple[Any, ...]:
    """Return what every event of the task begins with."""
    task = handle.task
    attempt = handle.attempt
    return handle.id, task.name, task.kind, task.meta, handle.iteration, attempt, time, handle.job


def added(handle: TaskHandle[Any]) -> None:
    hooks, task = handle._hooks, handle.task
    event = _added(
        handle.id,
        task.name,
        task.kind,
        task.meta,
        0,
        0,
        handle.submitted_at,
        handle.job,
        task.delay,
    )
    hooks.tell(hooks.on_task_added, event)


def started(handle: TaskHandle[Any], queued_for: float) -> TaskStarted:
    """Tell of the begin of a run or an iteration, and return the event."""
    hooks, task = handle._hooks, handle.task
    event = _started(
        handle.id,
        task.name,
        task.kind,
        task.meta,
        handle.iteration,
        handle.attempt,
        handle.started_at,
        handle.job,
        task.fn,
        queued_for,
        task.stall_after,
    )
    if hooks.on_task_started:
        hooks.tell(hooks.on_task_started, event)
    return event


def retrying(handle: TaskHandle[Any], error: Exception | None, delay: float) -> None:
    hooks = handle._hooks
    if hooks.on_task_retrying:
        event = _retrying(*_identity(handle, clock.wall()), error, delay)
        hooks.tell(hooks.on_task_retrying, event)


def done(handle: TaskHandle[Any], outcome: Outcome, *, final: bool) -> None:
    """Tell of a run or an iteration that succeeded or failed."""
    hooks = handle._hooks
    if outcome.status is TaskStatus.FAILED:
        _done_failed(handle, outcome, final=final)
    elif hooks.on_task_succeeded:
        task = handle.task
        event = _succeeded(
            handle.id,
            task.name,
            task.kind,
            task.meta,
            handle.iteration,
            handle.attempt,
            clock.wall(),
            handle.job,
            outcome.duration,
            final,
        )
        hooks.tell(hooks.on_task_succeeded, event)


def _done_failed(handle: TaskHandle[Any], outcome: Outcome, *, final: bool) -> None:
    error = outcome.error
    assert error is not None
    hooks = handle._hooks
    awaited = final and handle._waiters > 0
    unless_told = partial(_hear_of, handle, error, awaited)
    if hooks.on_task_failed:
        event = _failed(*_identity(handle, clock.wall()), error, outcome.duration, final)
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
    duration = None if outcome is None else outcome.duration
    if handle.status is TaskStatus.CANCELLED:
        if hooks.on_task_cancelled:
            event = _cancelled(*_identity(handle, clock.wall()), handle._reason, duration)
            hooks.tell(hooks.on_task_cancelled, event)
    elif handle.status is TaskStatus.EXPIRED:
        if hooks.on_task_expired:
            lifespan = handle.task.lifespan or 0.0
            expired = _expired(*_identity(handle, clock.wall()), lifespan, duration)
            hooks.tell(hooks.on_task_expired, expired)
    elif outcome is not None and outcome.retry_in is not None:
        refused = isinstance(outcome.error, RetryError)
        error = outcome.error if isinstance(outcome.error, Exception) and not refused else None
        retrying(handle, error, outcome.retry_in)
    else:
        assert outcome is not None
        done(handle, outcome, final=True)
        if outcome.is_dead:
            _dead(handle, outcome)


def _dead(handle: TaskHandle[Any], outcome: Outcome) -> None:
    hooks, job, error = handle._hooks, handle.job, outcome.error
    assert job is not None
    assert error is not None
    if hooks.on_job_dead:
        event = JobDead(job=job, meta=handle.meta, time=clock.wall(), error=error)
        hooks.tell(hooks.on_job_dead, event)


def stalled(handle: TaskHandle[Any], elapsed: float) -> None:
    hooks = handle._hooks
    if hooks.on_task_stalled and handle.status is TaskStatus.RUNNING:
        stack = tuple(handle.stack())
        event = _stalled(*_identity(handle, clock.wall()), elapsed, stack)
        hooks.tell(hooks.on_task_stalled, event)
