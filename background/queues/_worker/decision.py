"""Pure functions that decide how an attempt of a job is settled."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

from ..._execution.outcome import FROM_OUTSIDE, Outcome
from ..._states import TaskStatus
from .._codec.errors import MOST_KEPT, FailedAttempt, describe, earlier_attempts
from .._states import JobState
from .._verdicts import Cancel, Snooze
from ..abc import Claim, Settlement

LOST = "its lease was lost"
CANCELLED = "the job was cancelled"
UNSETTLED = "its settlement may not have arrived"

#: Reasons of a cancellation after which the job is released.
_RELEASED = ("shutdown", FROM_OUTSIDE)

#: The part of a job's error that says why and since when no worker could run it. An attempt that
#: runs drops it.
_POSTPONED = "postponed"

#: Seconds for which a job that this worker can't run is released.
_SHORTEST_DELAY, _LONGEST_DELAY = 1.0, 60.0


def decide(
    claim: Claim,
    outcome: Outcome,
    *,
    job_cancelled: bool = False,
    result: bytes | None = None,
    since: float = 0.0,
    began: float | None = None,
    now: float = 0.0,
) -> Settlement:
    """Return the settlement of an attempt.

    Args:
        claim: The claim of the attempt.
        outcome: The outcome of its run; `retry_in` is set if the policy retries.
        job_cancelled: Whether the job itself is to be cancelled, not only the run.
        result: The encoded result of a run that succeeded.
        since: When the job's first attempt began, in seconds since the epoch.
        began: When this attempt began; `None` if it never did.
        now: When it ended.
    """
    state, error = JobState.SUCCEEDED, None
    delay = 0.0
    if outcome.status is TaskStatus.FAILED and outcome.error is not None:
        error = outcome.error
        if isinstance(error, Snooze):
            state, delay, error = JobState.READY, error.seconds, None
        elif isinstance(error, Cancel):
            state = JobState.CANCELLED
        elif outcome.retry_in is not None:
            state, delay = JobState.SCHEDULED, outcome.retry_in
        elif isinstance(error, KeyboardInterrupt):  # it ends the process, not the job
            state, error = JobState.READY, None
        else:
            state = JobState.DEAD
    elif outcome.status is TaskStatus.CANCELLED:
        is_released = not job_cancelled and outcome.cancel_reason in _RELEASED
        state = JobState.READY if is_released else JobState.CANCELLED
    described: dict[str, Any] | None = None
    if error is None:
        if began is not None and claim.error is not None and _POSTPONED in claim.error:
            described = {key: claim.error[key] for key in claim.error if key != _POSTPONED}
    else:
        described = describe(error)
        earlier = earlier_attempts(claim.error)
        attempt = FailedAttempt(
            claim.attempt, began or now, now, claim.token, described["type"], described["message"]
        )
        described |= {"since": since, "attempts": [*map(astuple, [*earlier, attempt])][-MOST_KEPT:]}
    message = claim.message
    has_begun = began is not None
    return Settlement(message.id, claim.token, state, delay, result, described, has_begun)


def postpone(
    claim: Claim, error: Exception, *, now: float, unknown_for: float
) -> Settlement | None:
    """Return the settlement that releases a job which this worker can't run.

    The delay grows with the time for which workers could not run the job, since its latest attempt.

    Args:
        claim: The claim.
        error: The reason.
        now: The time, in seconds since the epoch.
        unknown_for: Seconds after which the job is not released any more.

    Returns:
        The settlement, or `None` if the job must be dead.
    """
    stored = dict(claim.error or {})
    lost = claim.crashes + claim.unconfirmed
    since = now
    match stored.get(_POSTPONED):
        case {"since": float() as first, "lost": int() as before} if before == lost:
            since = first
        case _:  # an attempt may have run since, whose worker died
            pass
    waited = max(0.0, now - since)
    if waited >= unknown_for:
        return None
    described = describe(error, with_traceback=False)
    stored[_POSTPONED] = described | {"since": since, "lost": lost}
    delay = min(max(_SHORTEST_DELAY, waited), _LONGEST_DELAY)
    return Settlement(
        claim.message.id, claim.token, JobState.READY, delay, error=stored, has_begun=False
    )


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
        reason = outcome.cancel_reason
        if reason is None or (reason in _RELEASED and settlement.state is JobState.CANCELLED):
            reason = CANCELLED  # not a shutdown that came later
        return cancelled(outcome, reason)
    if isinstance(outcome.error, (Snooze, Cancel)):
        return cancelled(outcome, str(outcome.error))
    outcome.is_dead = settlement.state is JobState.DEAD
    return outcome


def cancelled(outcome: Outcome, reason: str | None) -> Outcome:
    """Return the outcome of a cancelled run, without its result and error."""
    return Outcome(TaskStatus.CANCELLED, outcome.duration, cancel_reason=reason)
