"""The outcome of a run or an iteration, and its interception by the attempt of a durable job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from .._states import TaskStatus

#: The reason of a cancellation that was not requested through the manager.
FROM_OUTSIDE = "cancelled from outside the manager"


@dataclass(slots=True, eq=False)
class Outcome:
    """The outcome of a run or an iteration.

    Args:
        status: A final status.
        duration: Seconds that it took.
        value: The value that the function returned.
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
        """Handle a request to cancel the run."""

    def on_never_started(self, reason: str | None) -> None:
        """Handle a cancellation before the run began."""

    async def after_run(self, outcome: Outcome) -> Outcome:
        """Settle the job, outside of the run's cancel scope, and return the final outcome."""
        ...
