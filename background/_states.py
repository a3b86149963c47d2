"""The kinds and states of tasks and managers."""

from __future__ import annotations

from enum import StrEnum


class TaskKind(StrEnum):
    """Whether a task runs once or repeatedly."""

    ONE_OFF = "one-off"
    LOOP = "loop"


class TaskStatus(StrEnum):
    """The status of a task; the last four are final.

    A loop is `WAITING` between two iterations.
    """

    WAITING = "waiting"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether the task has ended."""
        return self in FINAL


FINAL = frozenset(
    {TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.EXPIRED}
)


class ManagerState(StrEnum):
    """The state of a manager.

    `STOPPING` begins with a shutdown request, `CLOSING` with `close()` or leaving the block.
    """

    NEW = "new"
    RUNNING = "running"
    STOPPING = "stopping"
    CLOSING = "closing"
    CLOSED = "closed"
