"""The state machine of a job, without input, output or clocks.

The memory and NATS brokers store jobs as these records. The SQLite and Redis brokers implement the
same transitions in SQL and Lua; property tests compare them with this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any, Literal

from ._states import FINAL, JobState
from .abc import (
    MOST_LOST,
    Claim,
    LeaseStatus,
    LostClaim,
    Message,
    Settlement,
    StoredJob,
)

#: The transitions of a job that are due at a time.
ByTime = Literal["due", "reclaimed", "expired"]


class JobRecord:
    """A job, and every transition that it can make.

    All times are seconds on one clock; transitions take the current time as `now`. Call `advance`
    before every other transition: it ends expired leases, which the others do not check.

    Args:
        message: The job as it was enqueued.
        now: When it is enqueued.
        at: The time of `message.at` on this clock.
    """

    __slots__ = (
        "at",
        "attempt",
        "cancel_requested",
        "confirmed",
        "crashes",
        "due",
        "enqueued_at",
        "error",
        "expires_at",
        "finished_at",
        "lease_ends",
        "lost",
        "message",
        "previous",
        "result",
        "started_at",
        "state",
        "token",
        "unconfirmed",
        "unmet",
    )

    def __init__(self, message: Message, now: float, at: float | None) -> None:
        dependencies = len(message.depends_on)
        self.message = message
        self.at = at
        self.state = JobState.SCHEDULED
        self.attempt = 0
        self.crashes = 0
        self.unconfirmed = 0
        self.confirmed = False  # whether the lease was renewed since the claim
        self.token = ""  # of the latest claim
        self.lost: list[LostClaim] = []
        self.lease_ends: float | None = None
        self.due: float | None = None
        self.expires_at = None if message.expires is None else now + message.expires
        self.cancel_requested = False
        self.enqueued_at = now
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.error: Mapping[str, Any] | None = None
        self.result: bytes | None = None
        self.unmet = [*range(dependencies)]  # places of dependencies that have not succeeded yet
        self.previous: list[bytes | None] = [None] * dependencies

    def begin(self, now: float) -> None:
        """Become due after the delay, unless dependencies have not succeeded yet."""
        if not self.unmet:
            self._schedule(now)

    @property
    def delete_at(self) -> float:
        """The end of the job's retention; infinite before its end."""
        if self.finished_at is None:
            return inf
        message = self.message
        is_dead = self.state is JobState.DEAD
        return self.finished_at + (message.dead_retention if is_dead else message.retention)

    @property
    def next_change(self) -> float:
        """The time of the next transition without an action; infinite for an ended job."""
        if self.state in FINAL:
            return inf
        if self.state is JobState.RUNNING:
            return inf if self.lease_ends is None else self.lease_ends
        expires_at = inf if self.expires_at is None else self.expires_at
        if self.state is JobState.SCHEDULED and self.due is not None:
            return min(self.due, expires_at)
        return expires_at

    def advance(self, now: float) -> ByTime | None:
        """Make the transition that is due, if any, and return its name."""
        if self.next_change > now:
            return None
        if self.state is JobState.RUNNING:
            self._lose(now)
            self._release(now, now)
            return "reclaimed"
        if self._has_expired(now):
            self.end(JobState.EXPIRED, now)
            return "expired"
        self._become_ready(now)
        return "due"

    def _has_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def _lose(self, now: float) -> None:
        """Count a claim whose lease expired."""
        if self.confirmed:
            self.crashes += 1
            self.expires_at = None
        else:
            self.unconfirmed += 1
        started_at = now if self.started_at is None else self.started_at
        lost = LostClaim(self.attempt, self.token, started_at, now, self.confirmed)
        self.lost = [*self.lost, lost][-MOST_LOST:]

    def _schedule(self, now: float) -> None:
        self.due = max(now, now + self.message.delay if self.at is None else self.at)
        self._become_ready(now)

    def _become_ready(self, now: float) -> None:
        if self.due is None or self.due > now:
            return
        if self.message.handler is None:
            self.end(JobState.SUCCEEDED, now)
        else:
            self.state = JobState.READY
            self.due = None

    def _release(self, now: float, due: float) -> None:
        self.lease_ends = None
        if self.cancel_requested:
            self.end(JobState.CANCELLED, now)
        elif self._has_expired(now):
            self.end(JobState.EXPIRED, now)
        else:
            self.state, self.due = JobState.SCHEDULED, due
            self._become_ready(now)

    def end(self, state: JobState, now: float) -> None:
        """Enter a final state."""
        self.state = state
        self.lease_ends = self.due = None
        self.finished_at = now

    def claim(self, token: str, lease_ends: float, now: float) -> bool:
        """Start an attempt; return whether the job was ready."""
        if self.state is not JobState.READY:
            return False
        self.state = JobState.RUNNING
        self.attempt += 1
        self.token, self.lease_ends, self.confirmed = token, lease_ends, False
        self.started_at = now
        return True

    def is_held(self, token: str) -> bool:
        """Return whether a claim holds the job."""
        return self.state is JobState.RUNNING and self.token == token

    def renew(self, token: str, lease_ends: float) -> LeaseStatus:
        """Renew the lease of a claim, and confirm the claim, if it holds the job."""
        if not self.is_held(token):
            return LeaseStatus.LOST
        self.lease_ends, self.confirmed = lease_ends, True
        return LeaseStatus.CANCELLED if self.cancel_requested else LeaseStatus.HELD

    def save(self, token: str, result: bytes) -> bool:
        """Store an intermediate result; return whether the claim holds the job."""
        if not self.is_held(token):
            return False
        self.result = result
        return True

    def settle(self, settlement: Settlement, now: float) -> bool:
        """End an attempt; return whether the claim held the job."""
        if not self.is_held(settlement.token):
            return False
        if settlement.error is not None:
            self.error = settlement.error
        if settlement.has_begun:
            self.expires_at = None  # an expiry concerns the start only
        if settlement.state in FINAL:
            if settlement.state is JobState.SUCCEEDED:
                self.result = settlement.result
            self.end(settlement.state, now)
            return True
        if settlement.state is JobState.READY and not self.cancel_requested:
            self.attempt -= 1
        self._release(now, now + max(0.0, settlement.delay))
        return True

    def cancel(self, now: float) -> JobState:
        """Cancel the job, or ask its worker to, and return the state before."""
        before = self.state
        if before is JobState.RUNNING:
            self.cancel_requested = True
        elif before not in FINAL:
            self.end(JobState.CANCELLED, now)
        return before

    def requeue(self, now: float) -> bool:
        """Start again; return whether the job had ended."""
        if self.state not in FINAL:
            return False
        self.attempt = self.crashes = self.unconfirmed = 0
        self.cancel_requested = False
        self.finished_at = self.result = self.expires_at = None
        self.unmet.clear()
        self._release(now, now)
        return True

    def dependency_ended(self, id: str, dependency: JobRecord | None, now: float) -> None:
        """Handle the end of a dependency.

        Args:
            id: The id of the dependency.
            dependency: The dependency, or `None` if it is not stored.
            now: The time.
        """
        if self.state is not JobState.SCHEDULED:
            return
        depends_on = self.message.depends_on
        places = [place for place in self.unmet if depends_on[place] == id]
        if not places:
            return
        if dependency is None or dependency.state is not JobState.SUCCEEDED:
            state = "no longer stored" if dependency is None else dependency.state
            message = f"job {id}, which it depends on, is {state}"
            self.error = {"type": "background.queues.JobFailedError", "message": message}
            self.end(JobState.DEAD, now)
            return
        for place in places:
            self.previous[place] = dependency.result
            self.unmet.remove(place)
        if not self.unmet:
            self._schedule(now)

    def as_claim(self, ahead: float = 0.0) -> Claim:
        """Return the claim that holds the job.

        Args:
            ahead: Seconds to add to its times for seconds since the epoch.
        """
        return Claim(
            self.message,
            self.token,
            self.attempt,
            self.crashes,
            self.unconfirmed,
            self.enqueued_at + ahead,
            tuple(self.previous),
            self.error,
            self.result,
        )

    def stored(self, ahead: float = 0.0) -> StoredJob:
        """Return a snapshot of the job.

        Args:
            ahead: Seconds to add to its times for seconds since the epoch.
        """
        return StoredJob(
            self.message,
            self.state,
            self.attempt,
            self.enqueued_at + ahead,
            None if self.started_at is None else self.started_at + ahead,
            None if self.finished_at is None else self.finished_at + ahead,
            self.error,
            self.result,
            tuple(self.previous),
            self.token,
            tuple(
                replace(lost, started_at=lost.started_at + ahead, ended_at=lost.ended_at + ahead)
                for lost in self.lost
            ),
        )
