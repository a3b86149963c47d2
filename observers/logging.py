"""An observer that logs events with the standard library's `logging`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol, Unpack

from .._events import (
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
from .._observer import Observer
from .._report import ManagerClosed, ManagerClosing
from .._states import TaskKind
from ._log_levels import LogLevels, level_numbers
from ._log_text import described, escaped, printable_traceback, quoted, stack_lines

_UNSETTLED = "its settlement may not have arrived"  # whatever its function did
_RELEASES = ("shutdown", "cancelled from outside the manager")
_OUTCOMES = ("succeeded", "failed", "cancelled", "expired", "not_started", "stuck")


class _Subject(Protocol):
    """The attributes that events and handles share."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> TaskKind: ...
    @property
    def job(self) -> JobRef | None: ...


class LoggingObserver(Observer):
    """Logs one record for each event.

    Fields of a record's `extra`:

    - Task events: `task_id`, `task_name`, `task_kind`, `task_meta`, `iteration`, `attempt`, and the
      fields of the event, such as `error` (as text), `duration` or `reason`. Durations are in
      seconds.
    - Task events of durable jobs, besides: `job_id`, `job_handler`, `job_queue`, `job_attempt`.
    - Job events (`enqueued` and `dead`): the job fields above, `job_meta`, and the fields of the
      event.
    - Manager events: `manager_name` and the fields of the event.

    Fields hold unescaped values. In the message, names, ids, errors, reasons and source lines are
    escaped as by `repr()`, so that they can't forge a log line. The only line breaks in a message
    are those of indented stacks, after the message of a stalled or stuck task. Texts of more than
    1,000 characters are cut. Tracebacks are formatted by the handler's formatter, unless they are
    long or have characters that can't be printed.

    Args:
        logger: A `logging.Logger`, or the name of one.
        **levels: Log levels by event, as numbers or names. Defaults:

            - `added`, `started`, `enqueued`: DEBUG; `enqueued` is also the level of the loops of
              schedules of jobs, unless they fail.
            - `succeeded`, `closing`, `closed`: INFO.
            - `stopped`: INFO; a loop that was stopped, or interrupted by the shutdown.
            - `retrying`, `cancelled`, `expired`, `stalled`: WARNING.
            - `stuck`: WARNING; the manager closed while tasks still run.
            - `released`: INFO; a durable job that a shutdown interrupted, or that was snoozed.
            - `failed`: ERROR, with the traceback.
            - `dead`: ERROR, with the traceback; a durable job that gave up, instead of `failed`.

    Raises:
        ValueError: `logger` is not a logger or a name, or a level is not valid.
        TypeError: There is no such event.

    Example:
        ```python
        Manager(observers=[LoggingObserver("jobs", started=logging.INFO, succeeded="DEBUG")])
        ```
    """

    def __init__(
        self, logger: str | logging.Logger = "background", **levels: Unpack[LogLevels]
    ) -> None:
        self._logger = _logger(logger)
        self._levels = level_numbers(levels)
        self._chosen = list(levels)

    def __repr__(self) -> str:
        levels = (f"{name}={logging.getLevelName(self._levels[name])}" for name in self._chosen)
        return f"LoggingObserver({', '.join([repr(self._logger.name), *levels])})"

    def on_task_added(self, event: TaskAdded) -> None:
        if level := self._enabled("added"):
            fields = {"delay": event.delay}
            if event.job is not None:
                text = "was claimed from the queue %s"
                self._log(level, event, fields, text, quoted(event.job.queue))
            else:
                self._log(level, event, fields, "was added, due in %.3f s", event.delay)

    def on_task_started(self, event: TaskStarted) -> None:
        if level := self._enabled("started"):
            fields = {"queued_for": event.queued_for}
            if event.job is not None:
                text = "started attempt %d, %.3f s after it was enqueued"
                # The clocks of two hosts may differ.
                waited = max(0.0, event.time - event.job.enqueued_at)
                self._log(level, event, fields, text, event.attempt, waited)
            else:
                text = "started, %.3f s after it was due"
                self._log(level, event, fields, text, event.queued_for)

    def on_task_retrying(self, event: TaskRetrying) -> None:
        if level := self._enabled("retrying"):
            error = (
                "the retry policy refused its result"
                if event.error is None
                else described(event.error)
            )
            text = "failed attempt %d and retries in %.3f s: %s"
            if event.job is not None:
                text = "failed attempt %d and returns to its queue for a retry in %.3f s: %s"
            fields = {"error": error, "delay": event.delay}
            self._log(level, event, fields, text, event.attempt, event.delay, error)

    def on_task_succeeded(self, event: TaskSucceeded) -> None:
        if level := self._enabled("enqueued" if _is_schedule(event) else "succeeded"):
            fields = {"duration": event.duration, "final": event.final}
            self._log(level, event, fields, "succeeded in %.3f s", event.duration)

    def on_task_failed(self, event: TaskFailed) -> None:
        if event.job is not None and not isinstance(event.error, KeyboardInterrupt):
            return  # the job is dead, which has a record of its own
        if level := self._enabled("failed"):
            text = "failed after %.3f s, in attempt %d: %s"
            error = described(event.error)
            args = (event.duration, event.attempt, error)
            fields = {"error": error, "duration": event.duration, "final": event.final}
            self._log(level, event, fields, text, *args, failure=event.error)

    def on_task_cancelled(self, event: TaskCancelled) -> None:
        stopped = event.kind is TaskKind.LOOP and event.reason in ("stopped", "shutdown")
        fate, name = ("was stopped", "stopped") if stopped else ("was cancelled", "cancelled")
        if event.job is not None and _is_release(event.reason):
            fate, name = "was released", "released"
        elif event.job is not None and event.reason == _UNSETTLED:
            fate = "ended"
        elif stopped and _is_schedule(event):
            name = "enqueued"
        if level := self._enabled(name):
            is_clear = event.reason is None or (stopped and event.reason == "stopped")
            because = "" if is_clear else f": {escaped(event.reason)}"
            fields = {"reason": event.reason, "duration": event.duration}
            self._log(level, event, fields, "%s%s%s", fate, _after(event.duration), because)

    def on_task_expired(self, event: TaskExpired) -> None:
        if level := self._enabled("expired"):
            text = "outlived its lifespan of %g s%s"
            fields = {"lifespan": event.lifespan, "duration": event.duration}
            self._log(level, event, fields, text, event.lifespan, _after(event.duration))

    def on_task_stalled(self, event: TaskStalled) -> None:
        if level := self._enabled("stalled"):
            text = "has stalled: attempt %d has run for %.3f s and is still at\n%s"
            stack = stack_lines(event.stack)
            fields = {"elapsed": event.elapsed, "stack": stack}
            self._log(level, event, fields, text, event.attempt, event.elapsed, stack)

    def on_job_enqueued(self, event: JobEnqueued) -> None:
        if level := self._enabled("enqueued"):
            text = "was enqueued in the queue %s, due in %.3f s"
            args = (quoted(event.job.queue), event.delay)
            self._log_job(level, event, {"delay": event.delay}, text, *args)

    def on_job_dead(self, event: JobDead) -> None:
        if level := self._enabled("dead"):
            error = described(event.error)
            text, args = "is dead after attempt %d: %s", (event.job.attempt, error)
            self._log_job(level, event, {"error": error}, text, *args, failure=event.error)

    def on_manager_closing(self, event: ManagerClosing) -> None:
        if level := self._enabled("closing"):
            text = "manager %s is closing: %s; outstanding tasks: %d"
            args = (quoted(event.name), escaped(event.reason), event.outstanding)
            fields = {"reason": event.reason, "outstanding": event.outstanding}
            self._logger.log(level, text, *args, extra={"manager_name": event.name, **fields})

    def on_manager_closed(self, event: ManagerClosed) -> None:
        report = event.report
        if level := self._enabled("stuck" if report.stuck else "closed"):
            counts = {fate: len(getattr(report, fate)) for fate in _OUTCOMES}
            stuck = "".join(
                f"\n{_subject(handle)} is still at\n{stack_lines(report.stacks.get(handle.id, ()))}"
                for handle in report.stuck
            )
            since = "; since closing began" if any(counts.values()) else ""
            args = (quoted(event.name), event.duration, since, report.summary, stuck)
            extra = {"manager_name": event.name, "duration": event.duration, **counts}
            self._logger.log(level, "manager %s closed in %.3f s%s: %s%s", *args, extra=extra)

    def _enabled(self, event: str) -> int:
        """Return the event's level, or 0 if the logger is disabled for it."""
        level = self._levels[event]
        return level if self._logger.isEnabledFor(level) else 0

    def _log(
        self,
        level: int,
        event: TaskEvent,
        fields: Mapping[str, object],
        text: str,
        *args: object,
        failure: BaseException | None = None,
    ) -> None:
        subject = _subject(event)
        if event.iteration and fields.get("duration", 0.0) is not None:  # otherwise it waits
            subject += f", iteration {event.iteration},"
        extra = {
            "task_id": event.id,
            "task_name": event.name,
            "task_kind": event.kind.value,
            "task_meta": dict(event.meta),
            "iteration": event.iteration,
            "attempt": event.attempt,
            **({} if event.job is None else _job_fields(event.job)),
            **fields,
        }
        self._write(level, f"%s {text}", (subject, *args), extra, failure)

    def _log_job(
        self,
        level: int,
        event: JobEnqueued | JobDead,
        fields: Mapping[str, object],
        text: str,
        *args: object,
        failure: BaseException | None = None,
    ) -> None:
        job = event.job
        extra = {**_job_fields(job), "job_meta": dict(event.meta), **fields}
        subject = _job(job.handler, job.id)
        self._write(level, f"%s {text}", (subject, *args), extra, failure)

    def _write(
        self,
        level: int,
        text: str,
        args: tuple[object, ...],
        extra: Mapping[str, object],
        failure: BaseException | None,
    ) -> None:
        logger = self._logger
        if failure is None:
            logger.log(level, text, *args, extra=extra)
            return
        # A tuple, because logging tests the truth value of an error, which may be false.
        exc_info = type(failure), failure, failure.__traceback__
        path, line, function, _ = logger.findCaller()
        record = logger.makeRecord(
            logger.name, level, path, line, text, args, exc_info, function, extra
        )
        record.exc_text = printable_traceback(failure)
        logger.handle(record)


def _logger(logger: object) -> logging.Logger:
    if isinstance(logger, logging.Logger):
        return logger
    if not isinstance(logger, str):
        raise ValueError(f"logger must be a logging.Logger or the name of one, not {logger!r}")
    return logging.getLogger(logger)


def _is_release(reason: str | None) -> bool:
    """Return whether a job whose attempt was cancelled for this reason runs again."""
    return reason is not None and (reason in _RELEASES or reason.startswith("snoozed for "))


def _is_schedule(event: TaskEvent) -> bool:
    """Return whether the task is the loop of a schedule of jobs, which have records themselves."""
    return event.kind is TaskKind.LOOP and "schedule_of" in event.meta


def _subject(task: _Subject) -> str:
    if task.job is not None:
        return _job(task.name, task.job.id)
    kind = "loop" if task.kind is TaskKind.LOOP else "task"
    return f"{kind} {quoted(task.name)} ({escaped(task.id)})"


def _job(name: str, id: str) -> str:
    return f"job {quoted(name)} ({escaped(id)})"


def _job_fields(job: JobRef) -> Mapping[str, object]:
    return {
        "job_id": job.id,
        "job_handler": job.handler,
        "job_queue": job.queue,
        "job_attempt": job.attempt,
    }


def _after(duration: float | None) -> str:
    return "" if duration is None else f" after {duration:.3f} s"
