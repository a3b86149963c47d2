"""The states of a job."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """The state of a job; the last four are final.

    A job that waits for another attempt is `SCHEDULED` again. A job is `DEAD` if its policy gave
    up, if its worker has no handler of its name, if its payload can't be used, if a dependency
    failed, or if its workers died while they ran it.
    """

    SCHEDULED = "scheduled"
    READY = "ready"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self in FINAL


FINAL = frozenset({JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED, JobState.EXPIRED})
