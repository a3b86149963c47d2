"""Restoring hints and timers that were lost, from the records of the jobs.

An administrator may purge the streams with the hints and the timers, or delete single messages. A
job whose record needs a hint or a timer that is not stored would wait for ever. A pass finds such
jobs and sets timers to check them, which restores what is missing and nothing else. So passes can
be repeated without adding messages.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from math import inf
from typing import NamedTuple

from ..._support.log import log
from .._states import FINAL, JobState
from .clock import ServerClock
from .codec import UnreadableRecordError, decode
from .inspection import Inspection
from .job import NatsJob
from .schedules import Schedules
from .timer_wheel import COVER, END_OF_TIME, JobTimer, TimerWheel

_INTERVAL = 3_600.0  # seconds between two passes
_LEASE = 60.0  # seconds after which another process makes a pass if the one that began it crashed
_KEY = "=restoration"  # stands for the passes among the schedules; no schedule has such a name


class Restoration:
    """The passes of one broker; all processes share one pass an hour.

    Besides, the first maintenance of a broker makes a pass, unless another process has begun one
    since the broker was opened, or less than a minute before.

    Args:
        clock: The server's clock.
        timers: The timers.
        schedules: Store when the latest pass began.
        inspection: Reads what is stored.
    """

    def __init__(
        self, clock: ServerClock, timers: TimerWheel, schedules: Schedules, inspection: Inspection
    ) -> None:
        self._clock = clock
        self._timers = timers
        self._schedules = schedules
        self._inspection = inspection
        self._opened_at = self._next = -inf

    def opened(self) -> None:
        """Want a pass that begins from now on."""
        self._opened_at = self._clock.now()
        self._next = -inf  # when to ask whether a pass is due

    async def run_if_due(self) -> bool:
        """Make a pass if it is due and no other process makes it; return whether it was made."""
        now = self._clock.now()
        if now < self._next <= now + _LEASE:  # a clock may be set back
            return False
        self._next = now + _LEASE
        # What a process that crashes has stored here ends after `_LEASE`.
        began = await self._schedules.advance(_KEY, None, now, _LEASE)
        age = now - began
        if age < -_LEASE or (age >= _LEASE and began < self._opened_at):
            began = await self._schedules.advance(_KEY, began, now, _LEASE)
        if began != now:
            return False
        await self.run()
        await self._schedules.advance(_KEY, now, now, _INTERVAL)
        return True

    async def run(self) -> None:
        """Set timers to check the jobs whose hints or timers are missing."""
        records = await self._inspection.records()
        soonest, deletions = await self._read_timers()
        hinted = await self._inspection.hinted()
        # Records are read last, and count if they have not changed meanwhile. So hints and timers
        # were read while the jobs were in the states that the records show.
        ended = {id for id, (revision, _) in records.items() if (id, revision) in deletions}
        needs = await self._read_needs(
            {id: found for id, found in records.items() if id not in ended}
        )
        latest = self._clock.now() + COVER
        lost = [
            id
            for id, need in needs.items()
            if soonest.get(id, inf) > latest
            and (
                (need.hint and id not in hinted)
                or (need.timer < END_OF_TIME and soonest.get(id, inf) > need.timer + COVER)
                or any(
                    dependency in ended
                    or dependency not in records
                    or (dependency in needs and id not in needs[dependency].dependants)
                    for dependency in need.depends_on
                )
            )
        ]
        if lost:
            log(logging.INFO, "NATS: %d jobs are checked: hints or timers were missing", len(lost))
        now = self._clock.now()
        await self._timers.add(JobTimer(now, id) for id in lost)

    async def _read_timers(self) -> tuple[dict[str, float], set[tuple[str, int]]]:
        """Return the time of each job's first check, and the revisions that will be deleted."""
        soonest: dict[str, float] = {}
        deletions: set[tuple[str, int]] = set()
        async for timers in self._inspection.timers():
            for timer in timers:
                if timer.revision:
                    deletions.add((timer.id, timer.revision))
                else:
                    soonest[timer.id] = min(timer.at, soonest.get(timer.id, inf))
            await asyncio.sleep(0)  # a message may have hundreds of timers
        return soonest, deletions

    async def _read_needs(self, records: Mapping[str, tuple[int, int]]) -> dict[str, _Needs]:
        """Read the records that still have these revisions, and return what the jobs need."""
        needs: dict[str, _Needs] = {}
        sizes = {id: size for id, (_, size) in records.items()}
        async for id, record, revision in self._inspection.load(sizes):
            if revision == records[id][0]:
                try:
                    needs[id] = _needs(decode(record, revision))
                except UnreadableRecordError as error:
                    self._inspection.report(error)
        return needs


class _Needs(NamedTuple):
    """What must be stored for a job besides its record.

    Args:
        hint: Whether it needs a hint.
        timer: The time of the timer that it needs; infinite if it needs none.
        depends_on: The jobs in which it must be registered, and which have not ended.
        dependants: The jobs that are registered with it.
    """

    hint: bool
    timer: float
    depends_on: Iterable[str]
    dependants: Iterable[str]


def _needs(job: NatsJob) -> _Needs:
    return _Needs(
        job.state is JobState.READY,
        job.delete_at if job.state in FINAL else job.next_change,
        job.unmet_ids if job.state is JobState.SCHEDULED else (),
        frozenset(job.dependants) if job.state not in FINAL else (),
    )
