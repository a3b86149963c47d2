"""The events of tasks and jobs.

`ManagerClosing` and `ManagerClosed` are in `_report`, because a report has task handles. Times
(`time`) are seconds since the epoch; durations are seconds on the event loop's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from traceback import FrameSummary
from typing import Any

from ._states import TaskKind
from ._support.frozen import frozen


@frozen
class JobRef:
    """The durable job that a task runs, or that an event is about.

    Args:
        id: The job's id.
        handler: The name of its handler.
        queue: The name of its queue.
        attempt: The number of the attempt, counted from 1 in all processes; 0 before the first.
        enqueued_at: When it was enqueued, in seconds since the epoch.
    """

    id: str
    handler: str
    queue: str
    attempt: int
    enqueued_at: float


@frozen
class TaskEvent:
    """An event of a task.

    Args:
        id: The task's id.
        name: The task's name.
        kind: Whether it is a one-off or a loop.
        meta: The task's metadata.
        iteration: The number of a loop's iteration, counted from 1; 0 for a one-off.
        attempt: The number of the attempt in this run or iteration, counted from 1; 0 before the
            first. For a job it is the number of the job's attempt.
        time: When it happened, in seconds since the epoch.
        job: The durable job of which the task is an attempt, or `None`.
    """

    id: str
    name: str
    kind: TaskKind
    meta: Mapping[str, Any]
    iteration: int
    attempt: int
    time: float
    job: JobRef | None = None


@frozen
class TaskAdded(TaskEvent):
    """The manager accepted the task.

    Args:
        delay: Seconds until its first start, at least.
    """

    delay: float


@frozen
class TaskStarted(TaskEvent):
    """A run or an iteration begins.

    Args:
        fn: The task's function.
        queued_for: Seconds since the task was due.
        stall_after: The task's own `stall_after` in seconds, or `None`.
    """

    fn: Callable[..., Any]
    queued_for: float
    stall_after: float | None


@frozen
class TaskRetrying(TaskEvent):
    """An attempt failed, and the policy asks for another one.

    For a job this ends the task: the next attempt is another task, in any process.

    Args:
        error: The error of the attempt, or `None` if the policy refused its result.
        delay: Seconds until the next attempt.
    """

    error: Exception | None
    delay: float


@frozen
class TaskSucceeded(TaskEvent):
    """A run or an iteration succeeded.

    Args:
        duration: Seconds that it took, retries included.
        final: Whether the task has ended; `False` for an iteration of a loop that goes on.
    """

    duration: float
    final: bool


@frozen
class TaskFailed(TaskEvent):
    """A run or an iteration failed, and its policy gave up.

    Args:
        error: The error.
        duration: Seconds that it took, retries included.
        final: Whether the task has ended; `False` for an iteration of a loop that goes on.
    """

    error: BaseException
    duration: float
    final: bool


@frozen
class TaskCancelled(TaskEvent):
    """The task ended by being cancelled.

    Args:
        reason: The reason, as in `TaskCancelledError`.
        duration: Seconds that the run or iteration took, or `None` if none was in progress.
    """

    reason: str | None
    duration: float | None


@frozen
class TaskExpired(TaskEvent):
    """The task's lifespan ended before the task did.

    Args:
        lifespan: The lifespan in seconds.
        duration: Seconds that the run or iteration took, or `None` if none was in progress.
    """

    lifespan: float
    duration: float | None


@frozen
class TaskStalled(TaskEvent):
    """The current attempt takes longer than expected.

    Args:
        elapsed: Seconds since the attempt began.
        stack: The stack of its function, outermost frame first.
    """

    elapsed: float
    stack: tuple[FrameSummary, ...]


@frozen
class JobEnqueued:
    """The broker accepted a durable job.

    Args:
        job: The job.
        meta: The job's metadata.
        time: When it was enqueued, in seconds since the epoch.
        delay: Seconds until it may start.
    """

    job: JobRef
    meta: Mapping[str, Any]
    time: float
    delay: float


@frozen
class JobDead:
    """A durable job gave up; it stays in the broker and can be requeued.

    Args:
        job: The job.
        meta: The job's metadata.
        time: When it gave up, in seconds since the epoch.
        error: The error of its last attempt.
    """

    job: JobRef
    meta: Mapping[str, Any]
    time: float
    error: BaseException
