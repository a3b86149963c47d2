"""One job of the NATS broker: what is known of it, and what becomes of it, all without waiting.

Times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from .._states import FINAL, JobState
from ..abc import Claim, Message, Settlement, StoredJob

_WAITING = (JobState.SCHEDULED, JobState.READY)


class NatsJob:
    """A job as its record has it; to be changed, and then stored if nobody else has been faster."""

    def __init__(self, message: Message, enqueued_at: float) -> None:
        self.message = message
        self.state = JobState.SCHEDULED
        self.enqueued_at = enqueued_at
        self.attempt = 0
        self.crashes = 0
        self.token = ""
        self.lease_ends: float | None = None
        self.due: float | None = None
        self.expires_at: float | None = None
        self.cancelled = False  # while it runs
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.error: Mapping[str, Any] | None = None
        self.result: bytes | None = None
        self.revision = 0  # of the record that it was read from
        self.number: int | None = None  # its first record's revision, in all records after that
        self.unmet: set[int] = set(range(len(message.needs)))
        self.previous: list[bytes | None] = [None] * len(message.needs)
        self.dependants: list[str] = []

    def begin(self) -> None:
        """Be a new job, with all that is known of what it needs."""
        expires = self.message.expires
        self.expires_at = None if expires is None else self.enqueued_at + expires
        if not self.unmet:
            self._schedule(self.enqueued_at)

    @property
    def age(self) -> int:
        """By which jobs are sorted."""
        return self.revision if self.number is None else self.number

    @property
    def forget_at(self) -> float:
        return inf if self.finished_at is None else self.finished_at + self.message.keep

    @property
    def next_change(self) -> float:
        """When time alone will change its state; of one that has ended, never."""
        if self.state in FINAL:
            return inf
        if self.state is JobState.RUNNING:
            return inf if self.lease_ends is None else self.lease_ends
        expires_at = inf if self.expires_at is None else self.expires_at
        if self.state is JobState.SCHEDULED and self.due is not None:
            return min(self.due, expires_at)
        return expires_at

    def advance(self, now: float) -> str | None:
        """Do what time has done, and say what of a maintenance's counts that is."""
        if self.next_change > now:
            return None
        if self.state is JobState.RUNNING:
            self.crashes += 1
            self._give_back(now, now)
            return "reclaimed"
        if self.expires_at is not None and self.expires_at <= now:
            self.end(JobState.EXPIRED, now)
            return "expired"
        self._move_on(now)
        return "due"

    def _schedule(self, now: float) -> None:
        """Let it be due after its delay."""
        at = self.message.at
        self.due = max(now, now + self.message.delay if at is None else at)
        self._move_on(now)

    def _move_on(self, now: float) -> None:
        if self.due is None or self.due > now:
            return
        if self.message.handler is None:
            self.end(JobState.SUCCEEDED, now)
        else:
            self.state = JobState.READY
            self.due = None

    def _give_back(self, now: float, due: float) -> None:
        self.token, self.lease_ends = "", None
        if self.cancelled:
            self.end(JobState.CANCELLED, now)
        else:
            self.state, self.due = JobState.SCHEDULED, due
            self._move_on(now)

    def end(self, state: JobState, now: float) -> None:
        self.state = state
        self.token, self.lease_ends, self.due = "", None, None
        self.finished_at = now

    def claim(self, token: str, lease_ends: float, now: float) -> bool:
        if self.state is not JobState.READY:
            return False
        self.state = JobState.RUNNING
        self.attempt += 1
        self.token, self.lease_ends = token, lease_ends
        self.expires_at = None  # it has started in time
        self.started_at = now
        return True

    def held(self, token: str) -> bool:
        return self.state is JobState.RUNNING and self.token == token

    def settle(self, settlement: Settlement, now: float) -> bool:
        if not self.held(settlement.token):
            return False
        if settlement.error is not None:
            self.error = dict(settlement.error)
        if settlement.state in FINAL:
            if settlement.state is JobState.SUCCEEDED:
                self.result = settlement.result
            self.end(settlement.state, now)
            return True
        if settlement.state is JobState.READY:
            self.attempt -= 1
        self._give_back(now, now + max(0.0, settlement.delay))
        return True

    def cancel(self, now: float) -> JobState:
        """Cancel it, or have it cancelled by whoever runs it; return the state that it was in."""
        before = self.state
        if before is JobState.RUNNING:
            self.cancelled = True
        elif before in _WAITING:
            self.end(JobState.CANCELLED, now)
        return before

    def requeue(self, now: float) -> bool:
        if self.state not in FINAL:
            return False
        self.attempt = self.crashes = 0
        self.cancelled = False
        self.finished_at = self.result = self.expires_at = None
        self.unmet.clear()
        self._give_back(now, now)
        return True

    def hear(self, id: str, needed: NatsJob | None, now: float) -> None:
        """Take note of how a job has ended that this one needs; `None` is one that is unknown."""
        places = [place for place in self.unmet if self.message.needs[place] == id]
        if self.state is not JobState.SCHEDULED or not places:
            return
        if needed is None or needed.state is not JobState.SUCCEEDED:
            fate = "no longer known" if needed is None else needed.state
            message = f"job {id}, which it needs, is {fate}"
            self.error = {"type": "JobFailedError", "message": message}
            self.end(JobState.DEAD, now)
            return
        for place in places:
            self.previous[place] = needed.result
        self.unmet.difference_update(places)
        if not self.unmet:
            self._schedule(now)

    def burst(self, message: str, now: float) -> None:
        """Be dead, as results take more room than a record has."""
        self.result, self.previous = None, [None] * len(self.previous)
        self.error = {"type": "PayloadTooLargeError", "message": message}
        self.end(JobState.DEAD, now)

    def as_claim(self) -> Claim:
        return Claim(
            message=self.message,
            token=self.token,
            attempt=self.attempt,
            crashes=self.crashes,
            enqueued_at=self.enqueued_at,
            previous=tuple(self.previous),
            error=self.error,
        )

    def stored(self) -> StoredJob:
        return StoredJob(
            message=self.message,
            state=self.state,
            attempt=self.attempt,
            enqueued_at=self.enqueued_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            error=self.error,
            result=self.result,
            previous=tuple(self.previous),
        )
