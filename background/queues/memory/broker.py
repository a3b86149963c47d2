"""Jobs in the memory of one process: for tests, and for services that can do without durability."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf

import anyio
from anyio.lowlevel import checkpoint

from ..._support import clock
from .._states import FINAL, JobState
from ..abc import Broker, Claim, LeaseStatus, MaintenanceStats, Message, Settlement, StoredJob
from .changes import Changes
from .job import MemoryJob

_WAITING = (JobState.SCHEDULED, JobState.READY)


class MemoryBroker(Broker):
    """Keeps jobs for as long as the process lives; for one event loop."""

    def __init__(self) -> None:
        self._jobs: dict[str, MemoryJob] = {}
        self._numbers = count()
        self._ready: dict[str, list[tuple[int, str]]] = {}  # heaps by age
        self._changes = Changes()
        # For each job the jobs that need it, and as which of their needs.
        self._dependants: dict[str, list[tuple[MemoryJob, int]]] = {}

    async def open(self) -> None:
        await checkpoint()

    async def close(self) -> None:
        await checkpoint()

    async def enqueue(self, messages: Sequence[Message]) -> list[bool]:
        await checkpoint()
        now = anyio.current_time()
        self._advance(now)
        self._check_needs(messages)
        return [self._add(message, now) for message in messages]

    def _check_needs(self, messages: Sequence[Message]) -> None:
        new: set[str] = set()
        for message in messages:
            for need in message.needs:
                if need not in new and need not in self._jobs:
                    raise ValueError(f"job {message.id} needs the job {need}, which is not known")
            new.add(message.id)

    def _add(self, message: Message, now: float) -> bool:
        if message.id in self._jobs:
            return False
        job = self._jobs[message.id] = MemoryJob(message, next(self._numbers), now)
        needed = [self._jobs[need] for need in message.needs]
        job.blocked = len(needed)
        self._changes.note(job)
        for index, each in enumerate(needed):
            if each.state not in FINAL:
                self._dependants.setdefault(each.message.id, []).append((job, index))
            elif (state := self._hear(job, index, each, now)) is not None:
                self._end(job, state, now)
        if not needed:
            job.schedule(now)
            self._move_on(job, now)
        return True

    def _hear(self, job: MemoryJob, index: int, needed: MemoryJob, now: float) -> JobState | None:
        """Take note that a job has ended that this one needs; return how this one ends by that."""
        if job.state is not JobState.SCHEDULED or not job.blocked:
            return None
        if needed.state is not JobState.SUCCEEDED:
            message = f"job {needed.message.id}, which it needs, is {needed.state}"
            job.error = {"type": "JobFailedError", "message": message}
            return JobState.DEAD
        job.previous[index] = needed.result
        job.blocked -= 1
        if job.blocked:
            return None
        job.schedule(now)
        if job.message.handler is None and job.due <= now:
            return JobState.SUCCEEDED
        self._move_on(job, now)
        return None

    def _end(self, job: MemoryJob, state: JobState, now: float) -> None:
        """End a job, and those that end by that, however many."""
        ending = [(job, state)]
        while ending:
            job, state = ending.pop()
            job.end(state, now)
            self._changes.note(job)
            for dependant, index in self._dependants.pop(job.message.id, ()):
                if (its_state := self._hear(dependant, index, job, now)) is not None:
                    ending.append((dependant, its_state))

    async def claim(self, queues: Sequence[str], most: int, *, lease: float) -> list[Claim]:
        await checkpoint()
        now = anyio.current_time()
        self._advance(now)
        claims: list[Claim] = []
        for queue in queues:
            while len(claims) < most and (job := self._next_ready(queue)) is not None:
                heappop(self._ready[queue])
                claims.append(self._claim(job, now + lease))
        return claims

    def _claim(self, job: MemoryJob, lease_ends: float) -> Claim:
        job.state = JobState.RUNNING
        job.attempt += 1
        job.token = str(next(self._numbers))
        job.lease_ends = lease_ends
        job.expires = inf  # it has started in time
        job.started_at = clock.wall()
        self._changes.note(job)
        return Claim(
            message=job.message,
            token=job.token,
            attempt=job.attempt,
            crashes=job.crashes,
            enqueued_at=job.enqueued_at,
            previous=tuple(job.previous),
            error=job.error,
        )

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        with anyio.move_on_after(timeout):
            while not self._has_work(queues):
                await self._changes.wait()

    def _has_work(self, queues: Sequence[str]) -> bool:
        self._advance(anyio.current_time())
        return any(self._next_ready(queue) is not None for queue in queues)

    def _next_ready(self, queue: str) -> MemoryJob | None:
        """Return the oldest job that is ready, leaving it where it is."""
        ready = self._ready.get(queue, [])
        while ready:
            job = self._jobs.get(ready[0][1])
            if job is not None and job.number == ready[0][0] and job.state is JobState.READY:
                return job
            heappop(ready)  # cancelled or expired meanwhile
        return None

    def _advance(self, now: float) -> MaintenanceStats:
        """Do what time has done since the last call."""
        done: dict[str, int] = dict.fromkeys(("due", "reclaimed", "expired", "forgotten"), 0)
        for number, id in self._changes.due(now):
            job = self._jobs.get(id)
            if job is not None and job.number == number and job.next_change <= now:
                done[self._change(job, now)] += 1
        return MaintenanceStats(**done)

    def _change(self, job: MemoryJob, now: float) -> str:
        if job.state in FINAL:
            del self._jobs[job.message.id]
            return "forgotten"
        if job.state is JobState.RUNNING:
            job.crashes += 1
            job.due = now
            self._give_back(job, now)
            return "reclaimed"
        if job.expires <= now:
            self._end(job, JobState.EXPIRED, now)
            return "expired"
        self._move_on(job, now)
        return "due"

    def _move_on(self, job: MemoryJob, now: float) -> None:
        """Make a scheduled job ready if it is due."""
        if job.due <= now and job.message.handler is None:
            self._end(job, JobState.SUCCEEDED, now)
        elif job.due <= now:
            job.state = JobState.READY
            ready = self._ready.setdefault(job.message.queue, [])
            heappush(ready, (job.number, job.message.id))
        self._changes.note(job)

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> list[LeaseStatus]:
        await checkpoint()
        now = anyio.current_time()
        self._advance(now)
        return [self._renew(claim, now + lease) for claim in claims]

    def _renew(self, claim: Claim, lease_ends: float) -> LeaseStatus:
        job = self._held(claim.message.id, claim.token)
        if job is None:
            return LeaseStatus.LOST
        job.lease_ends = lease_ends
        self._changes.note(job)
        return LeaseStatus.CANCELLED if job.cancelled else LeaseStatus.KEPT

    def _held(self, id: str, token: str) -> MemoryJob | None:
        job = self._jobs.get(id)
        return job if job is not None and job.token == token else None

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        await checkpoint()
        now = anyio.current_time()
        self._advance(now)
        return [self._settle(each, now) for each in settlements]

    def _settle(self, settlement: Settlement, now: float) -> bool:
        job = self._held(settlement.id, settlement.token)
        if job is None:
            return False
        if settlement.error is not None:
            job.error = settlement.error
        if settlement.state in FINAL:
            if settlement.state is JobState.SUCCEEDED:
                job.result = settlement.result
            self._end(job, settlement.state, now)
            return True
        if settlement.state is JobState.READY:
            job.attempt -= 1
        job.due = now + settlement.delay
        self._give_back(job, now)
        return True

    def _give_back(self, job: MemoryJob, now: float) -> None:
        job.token = ""
        if job.cancelled:
            self._end(job, JobState.CANCELLED, now)
        else:
            job.state = JobState.SCHEDULED
            self._move_on(job, now)

    async def save(self, id: str, token: str, result: bytes) -> bool:
        await checkpoint()
        self._advance(anyio.current_time())
        job = self._held(id, token)
        if job is None:
            return False
        job.result = result
        return True

    async def cancel(self, id: str) -> JobState | None:
        await checkpoint()
        now = anyio.current_time()
        self._advance(now)
        job = self._jobs.get(id)
        if job is None:
            return None
        before = job.state
        if before is JobState.RUNNING:
            job.cancelled = True
        elif before in _WAITING:
            self._end(job, JobState.CANCELLED, now)
        return before

    async def requeue(self, id: str) -> bool:
        await checkpoint()
        now = anyio.current_time()
        self._advance(now)
        job = self._jobs.get(id)
        if job is None or job.state not in FINAL:
            return False
        job.attempt = job.crashes = job.blocked = 0
        job.cancelled = False
        job.finished_at = job.result = None
        job.due, job.expires = now, inf
        self._give_back(job, now)
        return True

    async def get(self, id: str) -> StoredJob | None:
        await checkpoint()
        self._advance(anyio.current_time())
        job = self._jobs.get(id)
        return None if job is None else job.stored()

    async def wait(self, id: str, timeout: float) -> StoredJob | None:
        with anyio.move_on_after(timeout):
            while (job := self._jobs.get(id)) is not None and job.state not in FINAL:
                await self._changes.wait_for_end(id)
                self._advance(anyio.current_time())
        return await self.get(id)

    async def scan(
        self, *, queue: str | None = None, state: JobState | None = None
    ) -> AsyncIterator[StoredJob]:
        await checkpoint()
        self._advance(anyio.current_time())
        for job in list(self._chosen(queue, state)):
            yield job.stored()

    async def count(self, *, queue: str | None = None, state: JobState | None = None) -> int:
        await checkpoint()
        self._advance(anyio.current_time())
        return sum(1 for _ in self._chosen(queue, state))

    def _chosen(self, queue: str | None, state: JobState | None) -> Iterator[MemoryJob]:
        for job in self._jobs.values():
            if queue in (None, job.message.queue) and state in (None, job.state):
                yield job

    async def purge(self, *, state: JobState | None = None, older_than: float = 0.0) -> int:
        await checkpoint()
        now = anyio.current_time()
        self._advance(now)
        chosen = {
            job.message.id
            for job in self._chosen(None, state)
            if job.state in FINAL and job.ended <= now - older_than
        }
        for id in chosen:
            del self._jobs[id]
        self._changes.forget(chosen)
        return len(chosen)

    async def maintain(self) -> MaintenanceStats:
        await checkpoint()
        return self._advance(anyio.current_time())
