"""What observers are told.

Times (`time`) are seconds since the epoch, durations are seconds on the event loop's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from traceback import FrameSummary
from typing import TYPE_CHECKING, Any

from ._states import TaskKind
from ._support.frozen import record

if TYPE_CHECKING:
    from ._report import CloseReport


@record
class JobRef:
    """A durable job: the task that runs one has it, and so have the events of both.

    `attempt` counts the attempts in all processes from 1 and is 0 before the first; `enqueued_at`
    is in seconds since the epoch.
    """

    id: str
    handler: str
    queue: str
    attempt: int
    enqueued_at: float


@record
class TaskEvent:
    """What every event of a task carries.

    `iteration` counts a loop's iterations from 1 and is 0 for a one-off; `attempt` counts the
    attempts of this run or iteration from 1 and is 0 before the first. `job` is the durable job
    that the task runs, if it does: one attempt of it, so that `attempt` is the job's.
    """

    id: str
    name: str
    kind: TaskKind
    meta: Mapping[str, Any]
    iteration: int
    attempt: int
    time: float
    job: JobRef | None = None


@record
class TaskAdded(TaskEvent):
    """The manager has taken the task; its first start is at least `delay` seconds away."""

    delay: float


@record
class TaskStarted(TaskEvent):
    """A run or an iteration of `fn` begins, `queued_for` seconds after it was due.

    `stall_after` is that of the task, in seconds.
    """

    fn: Callable[..., Any]
    queued_for: float
    stall_after: float | None


@record
class TaskRetrying(TaskEvent):
    """An attempt failed and the policy asks for another in `delay` seconds.

    `error` is `None` where the policy refused the attempt's result. For a job this is the end of
    the task: the next attempt is a task of its own, in whichever process.
    """

    error: Exception | None
    delay: float


@record
class TaskSucceeded(TaskEvent):
    """A run or an iteration succeeded after `duration` seconds; `final` unless a loop goes on."""

    duration: float
    final: bool


@record
class TaskFailed(TaskEvent):
    """A run or an iteration failed after `duration` seconds; `final` unless a loop goes on."""

    error: BaseException
    duration: float
    final: bool


@record
class TaskCancelled(TaskEvent):
    """The task ended by being cancelled; `reason` as in the error `TaskCancelledError`.

    `duration` is `None` when no run or iteration was under way.
    """

    reason: str | None
    duration: float | None


@record
class TaskExpired(TaskEvent):
    """The task ended with its lifespan of `lifespan` seconds.

    `duration` is `None` when no run or iteration was under way.
    """

    lifespan: float
    duration: float | None


@record
class TaskStalled(TaskEvent):
    """The current attempt has been running for `elapsed` seconds and stands at `stack`."""

    elapsed: float
    stack: tuple[FrameSummary, ...]


@record
class JobEnqueued:
    """A durable job was taken by the broker; it may start in `delay` seconds."""

    job: JobRef
    meta: Mapping[str, Any]
    time: float
    delay: float


@record
class JobDead:
    """A durable job has given up, because of `error`; it stays where it can be requeued."""

    job: JobRef
    meta: Mapping[str, Any]
    time: float
    error: BaseException


@record
class ManagerClosing:
    """The manager has stopped taking tasks, for `reason`, and `outstanding` are left."""

    name: str
    time: float
    reason: str
    outstanding: int


@record
class ManagerClosed:
    """The manager has closed, `duration` seconds after it began to."""

    name: str
    time: float
    duration: float
    report: CloseReport
