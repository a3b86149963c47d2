"""What a run or an iteration came to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from .._states import TaskStatus
from .handle import TaskHandle


class Outcome:
    """How a run or an iteration ended, after `duration` seconds, with a value or an error.

    `retry_in` are the seconds after which a durable job that failed will have another attempt, and
    `is_dead` tells that it has given up.
    """

    __slots__ = ("duration", "error", "is_dead", "retry_in", "status", "value")

    def __init__(
        self,
        status: TaskStatus,
        duration: float,
        value: Any,
        error: BaseException | None,
    ) -> None:
        self.status = status
        self.duration = duration
        self.value = value
        self.error = error
        self.retry_in: float | None = None
        self.is_dead = False


Settle = Callable[[TaskHandle[Any], Outcome], None]


class Durable(Protocol):
    """What belongs to a run that is an attempt of a durable job."""

    async def begin(self) -> None:
        """Do what comes before the job's function, inside the run."""

    def drop(self, handle: TaskHandle[Any] | None) -> None:
        """Take note that the run was cancelled before it began."""

    async def conclude(self, handle: TaskHandle[Any], outcome: Outcome) -> Outcome:
        """Have the job settled, outside of the run's scope; return what the run has come to."""
        ...
