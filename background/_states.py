"""The words for what a task and a manager can be."""

from __future__ import annotations

from enum import StrEnum


class TaskKind(StrEnum):
    """Whether a task runs until it is done, or again and again."""

    ONE_OFF = "one-off"
    LOOP = "loop"


class TaskStatus(StrEnum):
    """Where a task is in its life; the last four are final.

    A loop is `WAITING` between two iterations.
    """

    WAITING = "waiting"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class ManagerState(StrEnum):
    """Where a manager is in its life.

    `STOPPING` begins with a shutdown request, `CLOSING` with `close()` or leaving the block.
    """

    NEW = "new"
    RUNNING = "running"
    STOPPING = "stopping"
    CLOSING = "closing"
    CLOSED = "closed"
