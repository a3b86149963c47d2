"""The jobs of the memory broker and their transitions, without waiting.

Methods take the current time instead of reading a clock, because property tests use the class as
the model of the other brokers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

from .._dependencies import missing_dependency, outside_dependencies
from .._state_machine import JobRecord
from .._states import FINAL, JobState
from ..abc import Claim, LeaseStatus, MaintenanceStats, Message, Settlement, StoredJob


class MemoryJob(JobRecord):
    """A job in memory; `number` is its position in the order of enqueueing."""

    __slots__ = ("number",)

    def __init__(self, message: Message, now: float, at: float | None, number: int) -> None:
        super().__init__(message, now, at)
        self.number = number


class MemoryJobs:
    """All jobs of one broker.

    Args:
        on_change: Called with every job that has changed.
    """

    def __init__(self, on_change: Callable[[MemoryJob], None] = lambda job: None) -> None:
        self._jobs: dict[str, MemoryJob] = {}
        self._numbers = count()
        self._ready: dict[str, list[tuple[int, str]]] = {}  # heaps by number
        self._changing: list[tuple[float, int, str]] = []  # a heap by time, with outdated entries
        self._dependants: dict[str, list[MemoryJob]] = {}
        self._on_change = on_change

    def get(self, id: str) -> MemoryJob | None:
        """Return a job, or `None` if it is not stored."""
        return self._jobs.get(id)

    @property
    def next_change(self) -> float:
        """The time of the next transition that is due without an action, or an earlier time."""
        return self._changing[0][0] if self._changing else inf

    def advance(self, now: float) -> MaintenanceStats:
        """Make due transitions, and delete jobs past their retention."""
        stats = MaintenanceStats()
        while self._changing and self._changing[0][0] <= now:
            _, number, id = heappop(self._changing)
            job = self._jobs.get(id)
            if job is None or job.number != number:
                continue
            if job.delete_at <= now:
                del self._jobs[id]
                stats.deleted += 1
            elif (by_time := job.advance(now)) is not None:
                stats.due += by_time == "due"
                stats.reclaimed += by_time == "reclaimed"
                stats.expired += by_time == "expired"
                self._changed(job, now)
        return stats

    def enqueue(self, messages: Sequence[Message], now: float, ahead: float = 0.0) -> list[bool]:
        """Store jobs.

        Args:
            messages: The jobs.
            now: The time.
            ahead: Seconds to add to `now` for seconds since the epoch.

        Returns:
            For each job whether its id was new.

        Raises:
            ValueError: A job depends on a job that is not stored.
        """
        for id, dependant in outside_dependencies(messages).items():
            if id not in self._jobs:
                raise missing_dependency(id, dependant)
        return [self._add(message, now, ahead) for message in messages]

    def _add(self, message: Message, now: float, ahead: float) -> bool:
        if message.id in self._jobs:
            return False
        at = None if message.at is None else message.at - ahead
        job = self._jobs[message.id] = MemoryJob(message, now, at, next(self._numbers))
        job.begin(now)
        for id in dict.fromkeys(message.depends_on):
            dependency = self._jobs[id]
            if dependency.state in FINAL:
                job.dependency_ended(id, dependency, now)
            else:
                self._dependants.setdefault(id, []).append(job)
        self._changed(job, now)
        return True

    def _changed(self, job: MemoryJob, now: float) -> None:
        """Update the indexes after a change of a job, and the jobs that depend on it."""
        changed = [job]
        while changed:
            job = changed.pop()
            id = job.message.id
            if job.state is JobState.READY:
                heappush(self._ready.setdefault(job.message.queue, []), (job.number, id))
            if (at := min(job.next_change, job.delete_at)) < inf:
                heappush(self._changing, (at, job.number, id))
            self._on_change(job)
            if job.state in FINAL:
                for dependant in self._dependants.pop(id, ()):
                    dependant.dependency_ended(id, job, now)
                    if dependant.state is not JobState.SCHEDULED or dependant.due is not None:
                        changed.append(dependant)

    def claim(
        self,
        queues: Sequence[str],
        most: int,
        token: str,
        now: float,
        lease: float,
        ahead: float = 0.0,
    ) -> list[Claim]:
        """Claim ready jobs.

        Args:
            queues: The queues, in order of priority.
            most: The most jobs to claim.
            token: The token of the claims.
            now: The time.
            lease: Seconds until the leases expire.
            ahead: Seconds to add to `now` for seconds since the epoch.

        Returns:
            The claims.
        """
        claims: list[Claim] = []
        for queue in queues:
            while len(claims) < most and (job := self._next_ready(queue)) is not None:
                heappop(self._ready[queue])
                job.claim(token, now + lease, now)
                self._changed(job, now)
                claims.append(job.as_claim(ahead))
        return claims

    def has_ready(self, queues: Sequence[str]) -> bool:
        """Return whether a job in one of the queues is ready."""
        return any(self._next_ready(queue) is not None for queue in queues)

    def _next_ready(self, queue: str) -> MemoryJob | None:
        """Return the oldest ready job without removing it from its queue."""
        ready = self._ready.get(queue, [])
        while ready:
            number, id = ready[0]
            job = self._jobs.get(id)
            if job is not None and job.number == number and job.state is JobState.READY:
                return job
            heappop(ready)  # cancelled, expired or deleted
        return None

    def renew(self, claims: Sequence[Claim], now: float, lease: float) -> list[LeaseStatus]:
        """Renew leases; return the status of each claim."""
        statuses: list[LeaseStatus] = []
        for claim in claims:
            job = self._jobs.get(claim.message.id)
            status = LeaseStatus.LOST if job is None else job.renew(claim.token, now + lease)
            if job is not None and status is not LeaseStatus.LOST:
                self._changed(job, now)
            statuses.append(status)
        return statuses

    def settle(self, settlements: Sequence[Settlement], now: float) -> list[bool]:
        """Settle claimed jobs; return for each whether the claim held it."""
        accepted: list[bool] = []
        for settlement in settlements:
            job = self._jobs.get(settlement.id)
            accepted.append(job is not None and job.settle(settlement, now))
            if job is not None and accepted[-1]:
                self._changed(job, now)
        return accepted

    def save(self, id: str, token: str, result: bytes) -> bool:
        """Store an intermediate result; return whether the claim holds the job."""
        job = self._jobs.get(id)
        return job is not None and job.save(token, result)

    def cancel(self, id: str, now: float) -> JobState | None:
        """Cancel a job; return the state before, or `None` if the job is not stored."""
        job = self._jobs.get(id)
        if job is None:
            return None
        before = job.cancel(now)
        if before not in FINAL:
            self._changed(job, now)
        return before

    def requeue(self, id: str, now: float) -> bool:
        """Make an ended job ready again; return whether the job had ended."""
        job = self._jobs.get(id)
        if job is None or not job.requeue(now):
            return False
        self._changed(job, now)
        return True

    def select(self, queue: str | None, state: JobState | None) -> Iterator[MemoryJob]:
        """Iterate over jobs of a queue and a state, oldest first; `None` selects all."""
        for job in list(self._jobs.values()):  # another thread may enqueue meanwhile
            if queue in (None, job.message.queue) and state in (None, job.state):
                yield job

    def purge(self, state: JobState | None, ended_before: float) -> int:
        """Delete jobs that ended before a time; return their number."""
        chosen = {
            job.message.id
            for job in self.select(None, state)
            if job.finished_at is not None and job.finished_at <= ended_before
        }
        for id in chosen:
            del self._jobs[id]
        self._changing = [entry for entry in self._changing if entry[2] not in chosen]
        heapify(self._changing)
        return len(chosen)

    def stored(self, id: str, ahead: float = 0.0) -> StoredJob | None:
        """Return a snapshot of a job, with times in seconds since the epoch."""
        job = self._jobs.get(id)
        return None if job is None else job.stored(ahead)
