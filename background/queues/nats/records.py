"""The records of jobs, which are only changed by compare-and-set.

A record is the latest message on the job's subject in the key-value bucket; its revision is that
message's sequence. A write names the revision that it replaces, and the server refuses it if there
is a later one.

This fences workers whose leases have expired. If another process has changed the job, the write of
such a worker is refused, and the new record shows that its token holds no lease. If no process has
changed it, the worker's own change first makes the transition that time demands, which ends the
lease.
"""

from __future__ import annotations

import logging
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

from ..._support.log import log
from .._errors import QueueError
from .._states import FINAL, JobState
from .._unreadable import unreadable_job
from ..abc import StoredJob
from .clock import ServerClock
from .codec import NewerRecordError, UnreadableRecordError, decode, encode
from .jetstream import JetStream
from .job import NatsJob
from .layout import Layout
from .timer_wheel import JobTimer, TimerWheel, of_lease

_MOST_REPORTED = 10_000  # records that can't be read


class Stored(NamedTuple):
    """A record and its revision; empty and 0 if there is no record."""

    record: bytes = b""
    revision: int = 0


class Changed(NamedTuple):
    """A job after a change, and its record.

    Args:
        job: The job; `None` if it is not stored, or its record can't be read.
        stored: Its record.
        value: What the change returned.
        before: The state before; `None` for a new job.
        by_time: The transition that time demanded before the change.
        timer: The sequence of the message with the timer that was set for the change, or 0.
        unreadable: Whether there is a record that this version of the library can't read.
    """

    job: NatsJob | None = None
    stored: Stored = Stored()
    value: Any = None
    before: JobState | None = None
    by_time: str | None = None
    timer: int = 0
    unreadable: bool = False

    @property
    def existing_job(self) -> NatsJob:
        """The job, where the caller knows that there is one."""
        assert self.job is not None
        return self.job

    @property
    def is_ready(self) -> bool:
        """Whether the job became ready."""
        return self._has_entered(frozenset({JobState.READY}))

    @property
    def has_ended(self) -> bool:
        """Whether the job entered a final state."""
        return self._has_entered(FINAL)

    @property
    def was_ready(self) -> bool:
        """Whether the job was ready before."""
        return self.before is JobState.READY

    def _has_entered(self, states: frozenset[JobState]) -> bool:
        return self.job is not None and self.job.state in states and self.before not in states


#: Changes a job if it applies to it. The arguments are the job and the time.
Change = Callable[[NatsJob, float], Any]


class Records:
    """The records of one prefix.

    Args:
        api: JetStream.
        layout: The names of the stream and its subjects.
        clock: The server's clock.
        timers: The timers to set for jobs that time will change.
    """

    def __init__(
        self, api: JetStream, layout: Layout, clock: ServerClock, timers: TimerWheel
    ) -> None:
        self._api = api
        self._layout = layout
        self._clock = clock
        self._timers = timers
        self._reported: set[str] = set()

    async def load(self, ids: Sequence[str]) -> list[Stored]:
        """Return the records of jobs, including those past their retention."""
        subjects = [self._layout.job(id) for id in ids]
        messages = await self._api.get_last(self._layout.jobs, subjects)
        return [_stored(message) for message in messages]

    def job_of(self, stored: Stored, now: float) -> NatsJob | None:
        """Return the job of a record, or `None` if there is none or it is past its retention.

        Raises:
            UnreadableRecordError: This version of the library can't read the record.
        """
        if not stored.revision:
            return None
        job = decode(*stored)
        return None if job.delete_at <= now else job

    async def get(self, id: str) -> StoredJob | None:
        """Return a job, or `None` if it is not stored or past its retention.

        Raises:
            QueueError: A newer version of the library has stored it.
        """
        (stored,) = await self.load([id])
        try:
            job = self.job_of(stored, self._clock.now())
        except NewerRecordError as error:
            raise QueueError(f"job {id} can't be read here: {error}") from None
        except UnreadableRecordError as error:
            return unreadable_job(id, stored.record, error)
        return None if job is None else job.stored()

    def report(self, error: UnreadableRecordError) -> None:
        """Log once that a record can't be read."""
        text = str(error)
        if text not in self._reported and len(self._reported) < _MOST_REPORTED:
            self._reported.add(text)
            log(logging.ERROR, "%s", text)

    async def write(self, records: Sequence[tuple[str, bytes, int]]) -> dict[str, Stored | None]:
        """Store records by compare-and-set.

        Args:
            records: Ids of jobs, their records, and the revisions to replace; 0 for a new job.

        Returns:
            By id the stored records; `None` where the revision to replace was not the latest.
        """
        revisions = await self._api.replace(
            [(self._layout.job(id), record, last) for id, record, last in records]
        )
        return {
            id: None if revision is None else Stored(record, revision)
            for (id, record, _), revision in zip(records, revisions, strict=True)
        }

    async def change(
        self,
        ids: Iterable[str],
        change: Change,
        hints: Mapping[str, Stored],
        *,
        past_retention: bool = False,
    ) -> dict[str, Changed]:
        """Change jobs by compare-and-set, and set their timers.

        A job that another process changes meanwhile is read and changed again. If a write is
        refused because it was executed and its answer was lost, the record that is read is equal.

        Args:
            ids: The ids of the jobs.
            change: Changes a job after the transition that time demands; may be called repeatedly.
            hints: Records that are probably the latest, by id; they need not be read.
            past_retention: Whether jobs past their retention count as stored.

        Returns:
            By id the changed jobs; without a job where none is stored.
        """
        changed: dict[str, Changed] = {}
        left = list(dict.fromkeys(ids))
        loaded = {id: hints[id] for id in left if id in hints}
        refused: dict[str, Changed] = {}
        while left:
            hinted = set(loaded)
            missing = [id for id in left if id not in hinted]
            loaded.update(zip(missing, await self.load(missing), strict=True))
            for id, candidate in refused.items():
                if candidate.stored.record == loaded[id].record:
                    changed[id] = candidate._replace(stored=loaded[id])
            left = [id for id in left if id not in changed]
            now = self._clock.now()
            candidates = {
                id: self._try(loaded[id], change, now, past_retention=past_retention) for id in left
            }
            writes = {
                id: candidate
                for id, candidate in candidates.items()
                if candidate.stored.record != loaded[id].record
            }
            timers = await self._set_timers(writes, loaded, now)
            written = await self.write(
                [
                    (id, candidate.stored.record, candidate.stored.revision)
                    for id, candidate in writes.items()
                ]
            )
            refused = {}
            for id, candidate in candidates.items():
                if id not in writes and id not in hinted:  # a hint may be outdated
                    changed[id] = candidate
                elif id in writes:
                    refused[id] = candidate._replace(timer=timers.get(id, 0))
                    if stored := written[id]:
                        changed[id] = refused.pop(id)._replace(stored=stored)
            left = [id for id in left if id not in changed]
            loaded.clear()
        return changed

    def _try(self, stored: Stored, change: Change, now: float, *, past_retention: bool) -> Changed:
        """Change a job without storing it; the result has the new record and the old revision."""
        try:
            job = self.job_of(stored, -inf if past_retention else now)
        except UnreadableRecordError as error:
            self.report(error)
            return Changed(stored=stored, unreadable=True)
        if job is None:
            return Changed(stored=stored)
        before = job.state
        by_time = job.advance(now)
        value = change(job, now)
        record = encode(job)
        if record != stored.record and job.number is None:
            job.number = stored.revision
            record = encode(job)
        return Changed(job, Stored(record, stored.revision), value, before, by_time)

    async def _set_timers(
        self, writes: Mapping[str, Changed], loaded: Mapping[str, Stored], now: float
    ) -> dict[str, int]:
        """Set timers for jobs that time will change sooner than before.

        The timer that a job has already is sufficient for the others. Timers are set before the
        records are written, so a crash between the two loses none.

        Returns:
            By id the sequences of the timers' messages.
        """
        sooner: dict[str, JobTimer] = {}
        for id, candidate in writes.items():
            timer = timer_of(candidate.existing_job, now)
            # The timer of a lease is deleted when the lease ends with a settlement.
            has_no_timer = candidate.before is JobState.RUNNING is not candidate.existing_job.state
            if timer.at < (inf if has_no_timer else decode(*loaded[id]).next_change):
                sooner[id] = timer
        return await self._timers.add(sooner.values())

    async def delete(self, revisions: Sequence[int]) -> int:
        """Delete the records that still have these revisions, and return their number."""
        return sum(await self._api.delete_all(self._layout.jobs, revisions))


def timer_of(job: NatsJob, now: float) -> JobTimer:
    """Return a timer for the next change that time makes to a job; at infinity if there is none."""
    at, id = job.next_change, job.message.id
    return of_lease(at, id, now) if job.state is JobState.RUNNING else JobTimer(at, id)


def _stored(message: Mapping[str, Any] | None) -> Stored:
    if message is None:
        return Stored()
    return Stored(b64decode(message.get("data", "")), message["seq"])
