"""What a run or an iteration came to, and how an attempt of a durable job takes part in that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from .._states import TaskStatus


@dataclass(slots=True, eq=False)
class Outcome:
    """How a run or an iteration ended.

    Args:
        status: A final status.
        duration: Seconds that it took.
        value: What the function returned.
        error: The error, if it did not succeed.
        cancel_reason: Why it was cancelled, if it was.
        retry_in: Seconds until a durable job's next attempt, if there will be one.
        is_dead: Whether a durable job gave up.
    """

    status: TaskStatus
    duration: float
    value: Any = None
    error: BaseException | None = None
    cancel_reason: str | None = None
    retry_in: float | None = None
    is_dead: bool = False


class RunInterceptor(Protocol):
    """Acts around a run that is an attempt of a durable job."""

    async def before_run(self) -> None:
        """Prepare the attempt, inside the run's cancel scope."""

    def on_cancel_requested(self, reason: str | None) -> None:
        """Learn that the run was asked to end."""

    def on_never_started(self, reason: str | None) -> None:
        """Handle a cancellation before the run began."""

    async def after_run(self, outcome: Outcome) -> Outcome:
        """Settle the job, outside of the run's cancel scope, and return the final outcome."""
        ...
