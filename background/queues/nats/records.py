"""The records of jobs, each changed only if nobody else has been faster.

That is what fences a worker whose lease has ended: its settlement comes too late for the revision
that it knows, and the record says that somebody else has the job.
"""

from __future__ import annotations

import logging
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple, TypeVar

from ..._support.log import log
from .._errors import BrokerUnavailableError
from .._states import FINAL, JobState
from .clock import ServerClock
from .codec import UnreadableRecordError, decode, encode
from .jetstream import JetStream
from .job import NatsJob
from .layout import Layout
from .timer_wheel import JobTimer, TimerWheel, of_lease

T = TypeVar("T")

_PAGE = 256  # records that are read at once


class Stored(NamedTuple):
    """A record and its revision; nothing and 0 if there is none."""

    record: bytes = b""
    revision: int = 0


class Changed(NamedTuple):
    """A job after a change, and its record.

    `value` is what the change said of it, `before` the state that it was in, `by_time` what time
    had done to it meanwhile, and `timer` the message of the timer that was set for it.
    """

    job: NatsJob | None = None
    stored: Stored = Stored()
    value: Any = None
    before: JobState | None = None
    by_time: str | None = None
    timer: int = 0
    unreadable: bool = False

    @property
    def sure(self) -> NatsJob:
        """The job, where there has to be one."""
        assert self.job is not None
        return self.job

    @property
    def is_ready(self) -> bool:
        """Whether it is ready and was not."""
        return self._is_now(frozenset({JobState.READY}))

    @property
    def has_ended(self) -> bool:
        return self._is_now(FINAL)

    @property
    def was_ready(self) -> bool:
        return self.before is JobState.READY

    def _is_now(self, states: frozenset[JobState]) -> bool:
        return self.job is not None and self.job.state in states and self.before not in states


#: Changes a job, if it needs to be, and says something of it.
Change = Callable[[NatsJob, float], Any]


class Records:
    """The records of jobs."""

    def __init__(
        self, api: JetStream, layout: Layout, clock: ServerClock, timers: TimerWheel
    ) -> None:
        self._api = api
        self._layout = layout
        self._clock = clock
        self._timers = timers

    async def load(self, ids: Sequence[str]) -> list[Stored]:
        """Return the records of jobs, also of those that are to be forgotten."""
        subjects = [self._layout.job(id) for id in ids]
        found = await self._api.get_last(self._layout.jobs, subjects)
        return [_stored(each) for each in found]

    def known(self, stored: Stored, now: float) -> NatsJob | None:
        """Return the job of a record, unless its time to be kept is over."""
        if not stored.revision:
            return None
        job = decode(*stored)
        return None if job.delete_at <= now else job

    async def get(self, id: str) -> NatsJob | None:
        (stored,) = await self.load([id])
        return self.known(stored, self._clock.now())

    async def write(self, records: Sequence[tuple[str, bytes, int]]) -> dict[str, Stored | None]:
        """Store records in place of their revisions; `None` for those that others have changed."""
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
        over: bool = False,
    ) -> dict[str, Changed]:
        """Change jobs and set their timers; of one that is not known there is no job.

        `hints` are what their records may be. Jobs whose time to be kept is `over` are not known,
        unless these are asked for.
        """
        changed: dict[str, Changed] = {}
        left = list(dict.fromkeys(ids))
        known = {id: hints[id] for id in left if id in hints}
        while left:
            hinted = set(known)
            missing = [id for id in left if id not in hinted]
            known.update(zip(missing, await self.load(missing), strict=True))
            now = self._clock.now()
            tried = {id: self._try(known[id], change, now, over=over) for id in left}
            writes = {
                id: each for id, each in tried.items() if each.stored.record != known[id].record
            }
            timers = await self._set_timers(writes, known, now)
            written = await self.write(
                [(id, each.stored.record, each.stored.revision) for id, each in writes.items()]
            )
            for id, each in tried.items():
                if id not in writes and id not in hinted:  # a hint may be out of date
                    changed[id] = each
                elif stored := written.get(id):
                    changed[id] = each._replace(stored=stored, timer=timers.get(id, 0))
            left = [id for id in left if id not in changed]
            known.clear()
        return changed

    def _try(self, stored: Stored, change: Change, now: float, *, over: bool) -> Changed:
        try:
            job = self.known(stored, -inf if over else now)
        except UnreadableRecordError as error:
            log(logging.ERROR, "%s", error)
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
        self, writes: Mapping[str, Changed], known: Mapping[str, Stored], now: float
    ) -> dict[str, int]:
        """Have jobs looked at when they next change, unless they are before that anyway."""
        sooner: dict[str, JobTimer] = {}
        for id, each in writes.items():
            timer = timer_of(each.sure, now)
            # A lease's timer goes with the lease.
            stale = each.before is JobState.RUNNING is not each.sure.state
            if timer.at < (inf if stale else decode(*known[id]).next_change):
                sooner[id] = timer
        return await self._timers.add(sooner.values())

    async def delete(self, revisions: Sequence[int]) -> int:
        """Delete records, if these are their latest revisions; return how many."""
        return sum(await self._api.delete_all(self._layout.jobs, revisions))

    async def ids(self) -> list[str]:
        """Return the ids of all jobs, oldest first."""
        found = await self.read_all(lambda job: job.age)
        return sorted(found, key=found.__getitem__)

    async def read_all(self, take: Callable[[NatsJob], T]) -> dict[str, T]:
        """Read all records; return what is taken of each."""
        name, left = await self._api.read_all(self._layout.jobs)
        found: dict[str, T] = {}
        try:
            while left > 0:
                messages = await self._api.fetch(self._layout.jobs, name, _PAGE)
                if messages is None:  # the consumer is gone, as with the server that had it
                    shown = self._api.link.shown
                    raise BrokerUnavailableError(f"{shown}: the jobs can't be read to their end")
                if not messages:
                    break
                left -= len(messages)
                for message in messages:
                    try:
                        job = decode(message.data, message.metadata.sequence.stream)
                    except UnreadableRecordError as error:
                        log(logging.ERROR, "%s", error)
                    else:
                        found[job.message.id] = take(job)
        finally:
            self._api.post_delete_consumer(self._layout.jobs, name)
        return found


def timer_of(job: NatsJob, now: float) -> JobTimer:
    """Return when to look at a job."""
    at, id = job.next_change, job.message.id
    return of_lease(at, id, now) if job.state is JobState.RUNNING else JobTimer(at, id)


def _stored(message: Mapping[str, Any] | None) -> Stored:
    if message is None:
        return Stored()
    return Stored(b64decode(message["data"]), message["seq"])
