"""When time changes the memory broker's jobs, and who waits for a change."""

from __future__ import annotations

from collections.abc import Container, Iterator
from heapq import heapify, heappop, heappush
from math import inf

import anyio

from .._states import FINAL
from .job import MemoryJob


class Changes:
    """What time will do, in its order, and those who wait for that or for others."""

    def __init__(self) -> None:
        self._to_come: list[tuple[float, int, str]] = []  # a heap; some are out of date
        self._any: anyio.Event | None = None  # made by the first who waits for it
        self._ends: dict[str, anyio.Event] = {}  # by job, for those who wait for its end

    def note(self, job: MemoryJob) -> None:
        """Wake those who wait, and come back to the job when time changes it."""
        if job.state in FINAL:
            self._tell_end(job.message.id)
        if job.next_change < inf:
            change = (job.next_change, job.number, job.message.id)
            heappush(self._to_come, change)
            if self._to_come[0] is change:  # sooner than they would look
                for id in list(self._ends):
                    self._tell_end(id)
        if self._any is not None:
            self._any.set()
            self._any = None

    def _tell_end(self, id: str) -> None:
        if (ended := self._ends.pop(id, None)) is not None:
            ended.set()

    def due(self, now: float) -> Iterator[tuple[int, str]]:
        """Take out the numbers and ids of jobs that time may have changed."""
        while self._to_come and self._to_come[0][0] <= now:
            _, number, id = heappop(self._to_come)
            yield number, id

    def forget(self, ids: Container[str]) -> None:
        self._to_come = [each for each in self._to_come if each[2] not in ids]
        heapify(self._to_come)

    async def wait(self) -> None:
        """Wait until a job has changed, or may have."""
        self._any = self._any or anyio.Event()
        await self._wait_for(self._any)

    async def wait_for_end(self, id: str) -> None:
        """Wait until a job has ended, or may have."""
        if id not in self._ends:
            self._ends[id] = anyio.Event()
        await self._wait_for(self._ends[id])

    async def _wait_for(self, event: anyio.Event) -> None:
        with anyio.move_on_at(self._to_come[0][0] if self._to_come else inf):
            await event.wait()
