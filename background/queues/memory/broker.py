"""A broker that stores jobs in memory, for tests and for jobs that need no durability."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import count
from math import inf

import anyio
from anyio.lowlevel import EventLoopToken, checkpoint, current_token

from ..._support import clock
from .._names import process_name
from .._states import FINAL, JobState
from ..abc import Broker, Claim, LeaseStatus, MaintenanceStats, Message, Settlement, StoredJob
from .jobs import MemoryJob, MemoryJobs
from .schedules import MemorySchedules

_CLOCK_MOVED = 1.0  # seconds; a larger difference means that the wall clock was set


class MemoryBroker(Broker):
    """A broker that stores jobs in memory, for one event loop at a time.

    Example:
        ```python
        jobs = JobQueue(MemoryBroker())
        ```
    """

    def __init__(self) -> None:
        self._jobs = MemoryJobs(self._on_change)
        self._schedules = MemorySchedules()
        self._process = process_name()
        self._claims = count()
        self._loop: EventLoopToken | None = None  # the one that opened it last
        self._shift = 0.0  # seconds from the event loop's time to the broker's
        self._closed_at = 0.0
        self._ahead = 0.0  # see `_epoch`
        self._changed: anyio.Event | None = None  # created by the first waiter
        self._ended: dict[str, anyio.Event] = {}  # by job id: the waiters for its end
        self._next_change = inf  # when the waiters query again

    def __repr__(self) -> str:
        return "<MemoryBroker>"

    async def open(self) -> None:
        await checkpoint()
        loop = current_token()
        if self._loop not in (None, loop):  # its clock began at another time
            self._shift = self._closed_at - anyio.current_time()
            self._changed = None
            self._ended.clear()
        self._loop = loop

    async def close(self) -> None:
        await checkpoint()
        self._closed_at = self._time()

    def messages(self) -> list[Message]:
        """Return the messages of the stored jobs, in the order in which they were enqueued."""
        return [job.message for job in self._jobs.select(None, None)]

    async def enqueue(self, messages: Sequence[Message]) -> list[bool]:
        now = await self._now()
        return self._jobs.enqueue(messages, now, self._epoch(now))

    async def claim(self, queues: Sequence[str], most: int, *, lease: float) -> list[Claim]:
        now = await self._now()
        token = f"{self._process}-{next(self._claims)}"
        return self._jobs.claim(queues, most, token, now, lease, self._epoch(now))

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        with anyio.move_on_after(timeout):
            while not self._has_work(queues):
                self._changed = self._changed or anyio.Event()
                await self._wait(self._changed)

    def _has_work(self, queues: Sequence[str]) -> bool:
        self._jobs.advance(self._time())
        return self._jobs.has_ready(queues)

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> list[LeaseStatus]:
        return self._jobs.renew(claims, await self._now(), lease)

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        return self._jobs.settle(settlements, await self._now())

    async def save(self, id: str, token: str, result: bytes) -> bool:
        await self._now()
        return self._jobs.save(id, token, result)

    async def cancel(self, id: str) -> JobState | None:
        return self._jobs.cancel(id, await self._now())

    async def requeue(self, id: str) -> bool:
        return self._jobs.requeue(id, await self._now())

    async def get(self, id: str) -> StoredJob | None:
        now = await self._now()
        return self._jobs.stored(id, self._epoch(now))

    async def wait(self, id: str, timeout: float) -> StoredJob | None:
        with anyio.move_on_after(timeout):
            while (job := self._jobs.get(id)) is not None and job.state not in FINAL:
                if id not in self._ended:
                    self._ended[id] = anyio.Event()
                await self._wait(self._ended[id])
                self._jobs.advance(self._time())
        return await self.get(id)

    async def scan(
        self, *, queue: str | None = None, state: JobState | None = None
    ) -> AsyncIterator[StoredJob]:
        now = await self._now()
        for job in list(self._jobs.select(queue, state)):
            yield job.stored(self._epoch(now))

    async def count(self, *, queue: str | None = None, state: JobState | None = None) -> int:
        await self._now()
        return sum(1 for _ in self._jobs.select(queue, state))

    async def purge(self, *, state: JobState | None = None, older_than: float = 0.0) -> int:
        return self._jobs.purge(state, await self._now() - older_than)

    async def advance_schedule(
        self, name: str, expected: float | None, tick: float, *, retention: float
    ) -> float:
        return self._schedules.advance(name, expected, tick, await self._now(), retention)

    async def maintain(self) -> MaintenanceStats:
        await checkpoint()
        return self._jobs.advance(self._time())

    async def _now(self) -> float:
        """Make due transitions, and return the broker's time."""
        await checkpoint()
        now = self._time()
        self._jobs.advance(now)
        return now

    def _time(self) -> float:
        """Return the broker's time, which stands still between two event loops."""
        return anyio.current_time() + self._shift

    def _epoch(self, now: float) -> float:
        """Return the difference between seconds since the epoch and the broker's time.

        It changes only when the wall clock is set, so that the reported times of a job stay equal.
        """
        ahead = clock.wall() - now
        if abs(ahead - self._ahead) > _CLOCK_MOVED:
            self._ahead = ahead
        return self._ahead

    def _on_change(self, job: MemoryJob) -> None:
        if job.state in FINAL and (ended := self._ended.pop(job.message.id, None)) is not None:
            ended.set()
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        if self._jobs.next_change < self._next_change:  # before the waiters query again
            for ended in self._ended.values():
                ended.set()
            self._ended.clear()

    async def _wait(self, event: anyio.Event) -> None:
        """Wait for an event, or until the next transition is due."""
        self._next_change = self._jobs.next_change
        with anyio.move_on_at(self._next_change - self._shift):
            await event.wait()
