"""The attempts of a job, from what the broker has stored about it."""

from __future__ import annotations

from ._codec.errors import MOST_KEPT, earlier_attempts
from ._info import AttemptInfo
from ._states import JobState
from .abc import StoredJob

_WITH_AN_ATTEMPT = (JobState.RUNNING, JobState.SUCCEEDED, JobState.CANCELLED)
_CANCEL = "background.queues.Cancel"


def worker_of(token: str) -> str:
    """Return the name of the process that made a claim."""
    return token.rpartition("-")[0]


def attempts_of(job: StoredJob) -> tuple[AttemptInfo, ...]:
    """Return the latest attempts of a job, oldest first."""
    earlier = earlier_attempts(job.error)
    attempts = [
        AttemptInfo(
            number=failed.number,
            started_at=failed.started_at,
            finished_at=failed.finished_at,
            worker=worker_of(failed.token),
            outcome="cancelled" if failed.type == _CANCEL else "failed",
            error=f"{failed.type}: {failed.message}" if failed.message else failed.type,
        )
        for failed in earlier
    ]
    attempts += [
        AttemptInfo(
            number=lost.attempt,
            started_at=lost.started_at,
            finished_at=lost.ended_at,
            worker=worker_of(lost.token),
            outcome="crashed" if lost.confirmed else "lost",
        )
        for lost in job.lost
    ]
    attempts.sort(key=lambda attempt: attempt.started_at)
    if job.token not in {claim.token for claims in (earlier, job.lost) for claim in claims}:
        attempts += _latest(job)
    return tuple(attempts[-MOST_KEPT:])


def _latest(job: StoredJob) -> list[AttemptInfo]:
    """Return the attempt that runs, or that ended the job without an error."""
    if job.started_at is None or job.attempt == 0 or job.state not in _WITH_AN_ATTEMPT:
        return []
    latest = AttemptInfo(
        number=job.attempt,
        started_at=job.started_at,
        finished_at=job.finished_at,
        worker=worker_of(job.token),
        outcome=str(job.state),
    )
    return [latest]
