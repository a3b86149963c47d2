"""Pure functions that decide how an attempt of a job is settled."""

from __future__ import annotations

from typing import Any

from ..._execution.outcome import FROM_OUTSIDE, Outcome
from ..._states import TaskStatus
from .._codec.errors import describe
from .._states import JobState
from ..abc import Claim, Settlement

LOST = "its lease was lost"
CANCELLED = "the job was cancelled"
UNSETTLED = "it could not be settled"

#: Reasons of a cancellation after which the job is released.
_RELEASED = ("shutdown", FROM_OUTSIDE)


def decide(
    claim: Claim,
    outcome: Outcome,
    *,
    job_cancelled: bool = False,
    result: bytes | None = None,
    since: float = 0.0,
) -> Settlement:
    """Return the settlement of an attempt.

    Args:
        claim: The claim of the attempt.
        outcome: The outcome of its run; `retry_in` is set if the policy retries.
        job_cancelled: Whether the job itself is to be cancelled, not only the run.
        result: The encoded result of a run that succeeded.
        since: When the job's first attempt began, in seconds since the epoch.
    """
    state, error = JobState.SUCCEEDED, None
    delay = 0.0
    if outcome.status is TaskStatus.FAILED and outcome.error is not None:
        error = outcome.error
        if outcome.retry_in is not None:
            state, delay = JobState.SCHEDULED, outcome.retry_in
        elif isinstance(error, KeyboardInterrupt):  # it ends the process, not the job
            state, error = JobState.READY, None
        else:
            state = JobState.DEAD
    elif outcome.status is TaskStatus.CANCELLED:
        is_released = not job_cancelled and outcome.cancel_reason in _RELEASED
        state = JobState.READY if is_released else JobState.CANCELLED
    described: dict[str, Any] | None = None
    if error is not None:
        described = describe(error) | {"since": since}
    message = claim.message
    return Settlement(message.id, claim.token, state, delay, result, described)


def conclude(outcome: Outcome, settlement: Settlement, accepted: bool | None) -> Outcome:
    """Return the final outcome of an attempt.

    Args:
        outcome: The outcome of its run.
        settlement: The settlement that was sent.
        accepted: Whether the lease was still held; `None` if that is unknown.
    """
    if not accepted:
        return cancelled(outcome, LOST if accepted is False else UNSETTLED)
    if outcome.status is TaskStatus.CANCELLED:
        return cancelled(outcome, outcome.cancel_reason or CANCELLED)
    outcome.is_dead = settlement.state is JobState.DEAD
    return outcome


def cancelled(outcome: Outcome, reason: str | None) -> Outcome:
    """Return the outcome of a cancelled run, without its result and error."""
    return Outcome(TaskStatus.CANCELLED, outcome.duration, cancel_reason=reason)
