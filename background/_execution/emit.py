"""The events of tasks, for their observers.

Most tasks have three events: added, started and succeeded. These are created without `__init__`,
which would take four times as long (see `thawed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from traceback import FrameSummary
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
from .._support.frozen import thawed
from .outcome import FROM_OUTSIDE, Outcome
from .state import TaskState

_new = object.__new__
_ThawedAdded = thawed(TaskAdded)
_ThawedStarted = thawed(TaskStarted)
_ThawedSucceeded = thawed(TaskSucceeded)


def added(state: TaskState) -> None:
    """Report that the manager accepted a task."""
    hooks, task = state.hooks, state.task
    event = _new(_ThawedAdded)
    event.id = state.id
    event.name = task.name
    event.kind = task.kind
    event.meta = task.meta
    event.iteration = 0
    event.attempt = 0
    event.time = state.submitted_at
    event.job = state.job
    event.delay = task.delay
    event.__class__ = TaskAdded
    hooks.deliver(hooks.on_task_added, event)


def started(state: TaskState, queued_for: float) -> TaskStarted:
    """Report that a run or an iteration begins, and return the event."""
    hooks, task = state.hooks, state.task
    event: Any = _new(_ThawedStarted)
    event.id = state.id
    event.name = task.name
    event.kind = task.kind
    event.meta = task.meta
    event.iteration = state.iteration
    event.attempt = state.attempt
    event.time = state.started_at
    event.job = state.job
    event.fn = task.fn
    event.queued_for = queued_for
    event.stall_after = task.stall_after
    event.__class__ = TaskStarted
    if hooks.on_task_started:
        hooks.deliver(hooks.on_task_started, event)
    started_event: TaskStarted = event
    return started_event


def _succeeded(state: TaskState, duration: float, *, final: bool) -> None:
    hooks, task = state.hooks, state.task
    event = _new(_ThawedSucceeded)
    event.id = state.id
    event.name = task.name
    event.kind = task.kind
    event.meta = task.meta
    event.iteration = state.iteration
    event.attempt = state.attempt
    event.time = clock.wall()
    event.job = state.job
    event.duration = duration
    event.final = final
    event.__class__ = TaskSucceeded
    hooks.deliver(hooks.on_task_succeeded, event)


def _identity(state: TaskState) -> dict[str, Any]:
    """Return the fields that every event of a task has."""
    task = state.task
    return {
        "id": state.id,
        "name": task.name,
        "kind": task.kind,
        "meta": task.meta,
        "iteration": state.iteration,
        "attempt": state.attempt,
        "time": clock.wall(),
        "job": state.job,
    }


def retrying(state: TaskState, error: Exception | None, delay: float) -> None:
    """Report that another attempt follows a failed one."""
    hooks = state.hooks
    if hooks.on_task_retrying:
        event = TaskRetrying(**_identity(state), error=error, delay=delay)
        hooks.deliver(hooks.on_task_retrying, event)


def iterated(state: TaskState, outcome: Outcome) -> None:
    """Report that an iteration succeeded or failed, and another one follows."""
    if outcome.status is TaskStatus.FAILED:
        _failed(state, outcome, final=False)
    elif state.hooks.on_task_succeeded:
        _succeeded(state, outcome.duration, final=False)


def _failed(state: TaskState, outcome: Outcome, *, final: bool) -> None:
    error = outcome.error
    assert error is not None
    hooks = state.hooks
    awaited = final and state.waiters > 0
    then = partial(state.log_unless_reported, error, awaited)
    if hooks.on_task_failed:
        event = TaskFailed(**_identity(state), error=error, duration=outcome.duration, final=final)
        hooks.deliver(hooks.on_task_failed, event, then)
    else:
        then(False)


def ended(state: TaskState, outcome: Outcome | None) -> None:
    """Report that a task has ended; without an outcome, no run or iteration was in progress."""
    hooks, status = state.hooks, state.status
    duration = None if outcome is None else outcome.duration
    if status is TaskStatus.SUCCEEDED:
        assert duration is not None
        if hooks.on_task_succeeded:
            _succeeded(state, duration, final=True)
    elif status is TaskStatus.CANCELLED:
        _cancelled(state, duration)
    elif status is TaskStatus.EXPIRED:
        if hooks.on_task_expired:
            lifespan = state.task.lifespan or 0.0
            expired = TaskExpired(**_identity(state), lifespan=lifespan, duration=duration)
            hooks.deliver(hooks.on_task_expired, expired)
    elif outcome is not None and outcome.retry_in is not None:
        refused = isinstance(outcome.error, RetryError)
        error = outcome.error if isinstance(outcome.error, Exception) and not refused else None
        retrying(state, error, outcome.retry_in)
    else:
        assert outcome is not None
        _failed(state, outcome, final=True)
        if outcome.is_dead:
            _dead(state, outcome)


def _cancelled(state: TaskState, duration: float | None) -> None:
    hooks = state.hooks
    then = None
    if state.cancel_reason == FROM_OUTSIDE and not state.waiters:
        # Nothing else may show it, as when a function awaits a future that was cancelled.
        then = state.log_cancellation_unless_reported
    if hooks.on_task_cancelled:
        event = TaskCancelled(**_identity(state), reason=state.cancel_reason, duration=duration)
        hooks.deliver(hooks.on_task_cancelled, event, then)
    elif then is not None:
        then(False)


def _dead(state: TaskState, outcome: Outcome) -> None:
    hooks, job, error = state.hooks, state.job, outcome.error
    assert job is not None
    assert error is not None
    if hooks.on_job_dead:
        event = JobDead(job=job, meta=state.task.meta, time=clock.wall(), error=error)
        hooks.deliver(hooks.on_job_dead, event)


def stalled(state: TaskState, elapsed: float, stack: Sequence[FrameSummary]) -> None:
    """Report that an attempt takes longer than expected."""
    hooks = state.hooks
    if hooks.on_task_stalled and state.status is TaskStatus.RUNNING:
        event = TaskStalled(**_identity(state), elapsed=elapsed, stack=tuple(stack))
        hooks.deliver(hooks.on_task_stalled, event)
