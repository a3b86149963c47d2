"""Decisions about the settlements and final outcomes of attempts."""

from __future__ import annotations

from typing import Any

import pytest
from support.brokers.jobs import message

from background import TaskStatus
from background._execution.outcome import FROM_OUTSIDE, Outcome
from background.queues import JobState
from background.queues._worker.decision import CANCELLED, LOST, UNSETTLED, conclude, decide
from background.queues.abc import Claim

CLAIM = Claim(message("one"), token="token", attempt=2, crashes=0, unconfirmed=0, enqueued_at=0.0)
ERROR = ValueError("no")

SUCCEEDED = Outcome(TaskStatus.SUCCEEDED, 1.0, value=5)
FAILED = Outcome(TaskStatus.FAILED, 1.0, error=ERROR)
RETRIED = Outcome(TaskStatus.FAILED, 1.0, error=ERROR, retry_in=7.0)
INTERRUPTED = Outcome(TaskStatus.FAILED, 1.0, error=KeyboardInterrupt())
EXITED = Outcome(TaskStatus.FAILED, 1.0, error=SystemExit(3))


def cancelled(reason: str | None) -> Outcome:
    return Outcome(TaskStatus.CANCELLED, 1.0, cancel_reason=reason)


@pytest.mark.parametrize(
    ("outcome", "job_cancelled", "state", "delay", "error"),
    [
        (SUCCEEDED, False, JobState.SUCCEEDED, 0.0, None),
        (SUCCEEDED, True, JobState.SUCCEEDED, 0.0, None),
        (FAILED, False, JobState.DEAD, 0.0, "ValueError"),
        (FAILED, True, JobState.DEAD, 0.0, "ValueError"),
        (RETRIED, False, JobState.SCHEDULED, 7.0, "ValueError"),
        (INTERRUPTED, False, JobState.READY, 0.0, None),
        (EXITED, False, JobState.DEAD, 0.0, "SystemExit"),
        (cancelled("shutdown"), False, JobState.READY, 0.0, None),
        (cancelled(FROM_OUTSIDE), False, JobState.READY, 0.0, None),
        (cancelled("no more"), False, JobState.CANCELLED, 0.0, None),
        (cancelled(None), False, JobState.CANCELLED, 0.0, None),
        (cancelled("shutdown"), True, JobState.CANCELLED, 0.0, None),
        (cancelled(CANCELLED), True, JobState.CANCELLED, 0.0, None),
    ],
)
def test_decide(
    outcome: Outcome, job_cancelled: bool, state: JobState, delay: float, error: str | None
) -> None:
    """An attempt's outcome determines the state, delay and error of its settlement."""
    result = b"5" if outcome is SUCCEEDED else None
    settlement = decide(
        CLAIM, outcome, job_cancelled=job_cancelled, result=result, since=3.0, began=5.0
    )
    assert (settlement.id, settlement.token, settlement.state, settlement.delay) == (
        "one",
        "token",
        state,
        delay,
    )
    assert settlement.result == result
    assert settlement.has_begun
    described: Any = settlement.error
    assert (described and described["type"]) == error
    assert described is None or described["since"] == 3.0


def test_release_before_start() -> None:
    """A job that is released before its attempt began can still expire."""
    settlement = decide(CLAIM, cancelled("shutdown"))
    assert (settlement.state, settlement.has_begun) == (JobState.READY, False)


@pytest.mark.parametrize(
    ("outcome", "accepted", "status", "reason", "is_dead"),
    [
        (SUCCEEDED, True, TaskStatus.SUCCEEDED, None, False),
        (FAILED, True, TaskStatus.FAILED, None, True),
        (RETRIED, True, TaskStatus.FAILED, None, False),
        (cancelled("shutdown"), True, TaskStatus.CANCELLED, "shutdown", False),
        (cancelled(None), True, TaskStatus.CANCELLED, CANCELLED, False),
        (SUCCEEDED, False, TaskStatus.CANCELLED, LOST, False),
        (FAILED, None, TaskStatus.CANCELLED, UNSETTLED, False),
    ],
)
def test_conclude(
    outcome: Outcome,
    accepted: bool | None,
    status: TaskStatus,
    reason: str | None,
    is_dead: bool,
) -> None:
    """An attempt counts as cancelled if the broker has not accepted its settlement."""
    final = conclude(outcome, decide(CLAIM, outcome), accepted)
    assert (final.status, final.cancel_reason, final.is_dead) == (status, reason, is_dead)
    assert final.duration == outcome.duration


def test_conclude_cancelled_job() -> None:
    """A job that was cancelled ends as cancelled, not released, if a shutdown comes meanwhile."""
    outcome = cancelled("shutdown")
    final = conclude(outcome, decide(CLAIM, outcome, job_cancelled=True), True)
    assert (final.status, final.cancel_reason) == (TaskStatus.CANCELLED, CANCELLED)
