"""The mutable state of an outstanding task."""

from __future__ import annotations

import logging
from contextvars import Context, ContextVar
from math import inf
from types import TracebackType
from typing import Any

import anyio

from .._events import JobRef
from .._notify.dispatcher import HookTable
from .._schedule import Ticks
from .._states import TaskStatus
from .._support.log import log, log_failure
from .._task import Task
from .outcome import RunInterceptor

_NO_CONTEXT = Context()


class TaskState:
    """The state of a submitted task, which the scheduler and the runner change.

    Times called `..._at` are seconds since the epoch. `due` and `expires` are on the event loop's
    clock.

    While a run or an iteration is in progress, `native` is the event loop's task. `scope` cancels
    the run, and `pause` only the wait before its next attempt. `thread` is the thread that a sync
    function runs in. (An object for these would cost 3 % of a short task.)

    `ended` is the event that `waiters` wait for, if any has come. `is_unreported` means that the
    task failed, and that neither an observer nor a waiter has received the failure yet.
    """

    __slots__ = (
        "attempt",
        "cancel_reason",
        "cancel_requested",
        "context",
        "due",
        "ended",
        "error",
        "expires",
        "failures",
        "finished_at",
        "hooks",
        "id",
        "interceptor",
        "is_unreported",
        "iteration",
        "job",
        "native",
        "pause",
        "result",
        "scope",
        "started_at",
        "status",
        "submitted_at",
        "task",
        "thread",
        "ticks",
        "traceback",
        "waiters",
    )

    def __init__(
        self,
        task: Task[Any],
        id: str,
        hooks: HookTable,
        context: Context,
        now: float,
        wall: float,
        job: JobRef | None,
        interceptor: RunInterceptor | None,
    ) -> None:
        self.task = task
        self.id = id
        self.hooks = hooks
        self.context = context
        self.job = job
        self.interceptor = interceptor
        self.status = TaskStatus.WAITING
        self.attempt = 0
        self.iteration = 0
        self.failures = 0  # failed iterations in a row
        self.submitted_at = wall
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.due = now + task.delay
        self.expires = inf if task.lifespan is None else now + task.lifespan
        self.ticks: Ticks | None = None
        self.cancel_requested = False
        self.cancel_reason: str | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.traceback: TracebackType | None = None
        self.ended: anyio.Event | None = None
        self.waiters = 0
        self.is_unreported = False
        self.native: object = None
        self.scope: anyio.CancelScope | None = None
        self.pause: anyio.CancelScope | None = None
        self.thread: int | None = None

    @property
    def name(self) -> str:
        """The task's name."""
        assert self.task.name is not None
        return self.task.name

    def fail(self, error: BaseException) -> None:
        """Record the error of a failed run or iteration."""
        self.error = error
        # A raise extends the error's traceback, so every waiter raises it with this one.
        self.traceback = error.__traceback__

    def end(self, status: TaskStatus, finished_at: float, reason: str | None) -> None:
        """Enter a final status, and release the resources of an outstanding task."""
        self.status = status
        self.finished_at = finished_at
        self.cancel_reason = self.cancel_reason or reason
        self.end_run()
        self.interceptor = None
        self.context = _NO_CONTEXT

    def end_run(self) -> None:
        """Release the run that was in progress."""
        self.native = None

    def log_unless_reported(self, error: BaseException, awaited: bool, reported: bool) -> None:
        """Log a failure unless it was `reported` to an observer or is `awaited`."""
        if reported:
            return
        if awaited:
            self.is_unreported = True
        else:
            log_failure(self.name, self.id, error)

    def log_cancellation_unless_reported(self, reported: bool) -> None:
        """Log that the task was cancelled, unless that was `reported` to an observer."""
        if not reported:
            text = "task %r (%r) was %s"
            log(logging.WARNING, text, self.name, self.id, self.cancel_reason)

    def log_failure(self) -> None:
        """Log the error that the task failed with."""
        log_failure(self.name, self.id, self.error)


#: The task that the running code belongs to.
current_task: ContextVar[TaskState | None] = ContextVar("background_task", default=None)
