"""Changes of jobs' records, each stored if nobody else has been faster, and what follows from them.

A record is changed first, and the rest is done after it: those are told who need the job, the queue
is told that it is ready, and when to look at it again. All of that can be done twice without harm.
If a process dies before it is done, a timer that was set before the change makes another one look
at the job, and do what may not have been done.
"""

from __future__ import annotations

import logging
from base64 import b64decode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple, TypeVar

from .._log import log
from ._nats_api import Api
from ._nats_clock import Clock
from ._nats_job import Job, Unreadable
from ._nats_layout import Layout
from ._nats_ready import Ready
from ._nats_timers import COVER, Timer, Timers
from ._states import FINAL, JobState

T = TypeVar("T")


class Stored(NamedTuple):
    """A record and its revision; nothing and 0 if there is none."""

    record: bytes = b""
    revision: int = 0


class Changed(NamedTuple):
    """A job after a change, and its record.

    `value` is what the change said of it, `before` the state that it was in, `by_time` what time
    had done to it meanwhile, and `timer` the message of the timer that was set for it.
    """

    job: Job | None = None
    stored: Stored = Stored()
    value: Any = None
    before: JobState | None = None
    by_time: str | None = None
    timer: int = 0
    unreadable: bool = False

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
Change = Callable[[Job, float], Any]


class Jobs:
    """The records of jobs."""

    def __init__(
        self, api: Api, layout: Layout, clock: Clock, timers: Timers, ready: Ready
    ) -> None:
        self._api = api
        self._layout = layout
        self._clock = clock
        self._timers = timers
        self._ready = ready

    async def load(self, ids: Sequence[str]) -> list[Stored]:
        """Return the records of jobs, also of those that are to be forgotten."""
        subjects = [self._layout.job(id) for id in ids]
        found = await self._api.get_last(self._layout.jobs, subjects)
        return [_stored(each) for each in found]

    def known(self, stored: Stored, now: float) -> Job | None:
        """Return the job of a record, unless its time to be kept is over."""
        if not stored.revision:
            return None
        job = Job.decode(*stored)
        return None if job.forget_at <= now else job

    async def get(self, id: str) -> Job | None:
        (stored,) = await self.load([id])
        return self.known(stored, self._clock.now())

    async def create(self, jobs: Mapping[str, Job]) -> dict[str, Changed]:
        """Store new jobs; return those whose ids were new."""
        now = self._clock.now()
        covers = await self._timers.add(Timer(now + COVER, id) for id in jobs)
        changing = [Timer(each.next_change, id) for id, each in jobs.items()]
        await self._timers.add(timer for timer in changing if timer.at < inf)
        created: dict[str, Changed] = {}
        left = dict.fromkeys(jobs, 0)
        while left:
            written = await self._write([(id, jobs[id].encode(), left[id]) for id in left])
            for id, stored in written.items():
                if stored is not None:
                    created[id] = Changed(jobs[id], stored, True, None, None)
            refused = [id for id, stored in written.items() if stored is None]
            found = dict(zip(refused, await self.load(refused), strict=True))
            left = {
                id: each.revision for id, each in found.items() if self.known(each, now) is None
            }
        await self._link(
            {
                id: [need for need in each.job.message.needs if need not in created]
                for id, each in created.items()
                if each.job is not None
            }
        )
        await self.follow(created)
        self._timers.remove(set(covers.values()))
        return created

    async def _write(self, records: Sequence[tuple[str, bytes, int]]) -> dict[str, Stored | None]:
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
        *,
        hints: Mapping[str, Stored] | None = None,
        covered: bool = False,
    ) -> dict[str, Changed]:
        """Change jobs, and see to what follows; of one that is not known there is no job.

        `hints` are what their records may be. Who says that it is `covered` sees to it that
        somebody looks at the jobs again if this call does not come to its end.
        """
        covers: dict[str, int] = {}
        if not covered:
            at = self._clock.now() + COVER
            covers = await self._timers.add(Timer(at, id) for id in ids)
        changed = await self._change(ids, change, hints or {})
        await self.follow(changed)
        self._timers.remove(set(covers.values()))
        return changed

    async def _change(
        self, ids: Iterable[str], change: Change, hints: Mapping[str, Stored]
    ) -> dict[str, Changed]:
        changed: dict[str, Changed] = {}
        left = list(dict.fromkeys(ids))
        known = {id: hints[id] for id in left if id in hints}
        while left:
            hinted = set(known)
            missing = [id for id in left if id not in hinted]
            known.update(zip(missing, await self.load(missing), strict=True))
            now = self._clock.now()
            tried = {id: self._try(known[id], change, now) for id in left}
            writes = {
                id: each for id, each in tried.items() if each.stored.record != known[id].record
            }
            timers = await self._set_timers(writes, known)
            written = await self._write([(id, *each.stored) for id, each in writes.items()])
            for id, each in tried.items():
                if id not in writes and id not in hinted:  # a hint may be out of date
                    changed[id] = each
                elif stored := written.get(id):
                    changed[id] = each._replace(stored=stored, timer=timers.get(id, 0))
            left = [id for id in left if id not in changed]
            known.clear()
        return changed

    def _try(self, stored: Stored, change: Change, now: float) -> Changed:
        try:
            job = self.known(stored, now)
        except Unreadable as error:
            log(logging.ERROR, "%s", error)
            return Changed(stored=stored, unreadable=True)
        if job is None:
            return Changed(stored=stored)
        before = job.state
        by_time = job.advance(now)
        value = change(job, now)
        record = job.encode()
        if record != stored.record and job.number is None:
            job.number = stored.revision
            record = job.encode()
        return Changed(job, Stored(record, stored.revision), value, before, by_time)

    async def _set_timers(
        self, writes: Mapping[str, Changed], known: Mapping[str, Stored]
    ) -> dict[str, int]:
        """Have jobs looked at when they next change, unless they are before that anyway."""
        sooner: dict[str, Timer] = {}
        for id, each in writes.items():
            if each.job is not None:
                at = each.job.next_change
                # A lease's timer goes with the lease.
                stale = each.before is JobState.RUNNING is not each.job.state
                if at < (inf if stale else Job.decode(*known[id]).next_change):
                    sooner[id] = Timer(at, id)
        return await self._timers.add(sooner.values())

    async def follow(self, changed: Mapping[str, Changed]) -> None:
        """Do what follows from changes."""
        new = [each for each in changed.values() if each.is_ready and each.before is None]
        again = [each for each in changed.values() if each.is_ready and each.before is not None]
        await self._ready.put(_records(new), again=False)
        await self._ready.put(_records(again), again=True)
        await self._end([each for each in changed.values() if each.has_ended])

    async def _end(self, ended: Sequence[Changed], *, repair: bool = False) -> None:
        """Tell those who need jobs that these have ended, and those who need them, and so on.

        To `repair`, they are told again, with whoever has ended by that.
        """
        finished: list[Changed] = []
        telling = list(ended)
        while telling:
            finished += telling
            told = await self._tell(telling)
            ready = [
                each
                for each in told.values()
                if each.is_ready or (repair and each.job and each.job.state is JobState.READY)
            ]
            await self._ready.put(_records(ready), again=True)
            telling = [
                each
                for each in told.values()
                if each.has_ended or (repair and each.job and each.job.state in FINAL)
            ]
        await self._ready.drop([each.job for each in finished if each.was_ready and each.job])
        await self._forget_later(finished)
        for each in finished:
            if each.job is not None:
                self._api.link.post(self._layout.ended(each.job.message.id))

    async def _tell(self, ended: Sequence[Changed]) -> dict[str, Changed]:
        fates: defaultdict[str, dict[str, Job | None]] = defaultdict(dict)
        for each in ended:
            if each.job is not None:
                for id in each.job.dependants:
                    fates[id][each.job.message.id] = each.job
        return await self._hear(fates)

    async def _hear(self, fates: Mapping[str, Mapping[str, Job | None]]) -> dict[str, Changed]:
        """Let jobs know how others have ended that they need."""
        most = await self._api.max_record() if fates else 0

        def hear(job: Job, now: float) -> None:
            for id, needed in fates[job.message.id].items():
                job.hear(id, needed, now)
            if len(job.encode()) > most:
                job.burst("the results of what it needs are too large to be kept with it", now)

        return await self._change(fates, hear, {})

    async def _link(self, needs: Mapping[str, Sequence[str]]) -> None:
        """Have jobs told of the ends of those that they need, which may have ended already."""
        dependants: defaultdict[str, list[str]] = defaultdict(list)
        for id, needed in needs.items():
            for need in needed:
                dependants[need].append(id)

        def add(job: Job, now: float) -> None:
            if job.state not in FINAL:
                job.dependants += [
                    id for id in dependants[job.message.id] if id not in job.dependants
                ]

        found = await self._change(dependants, add, {})
        await self.follow(found)
        fates: defaultdict[str, dict[str, Job | None]] = defaultdict(dict)
        for need, each in found.items():
            if each.job is None or each.job.state in FINAL:
                for id in dependants[need]:
                    fates[id][need] = each.job
        await self.follow(await self._hear(fates))

    async def _forget_later(self, finished: Sequence[Changed]) -> None:
        now = self._clock.now()
        over: list[int] = []
        kept: list[Timer] = []
        for each in finished:
            if each.job is not None:
                if each.job.forget_at <= now:
                    over.append(each.stored.revision)
                else:
                    id = each.job.message.id
                    kept.append(Timer(each.job.forget_at, id, each.stored.revision))
        await self._timers.add(kept)
        await self.forget(over)

    async def forget(self, revisions: Sequence[int]) -> int:
        """Delete records, if these are their latest revisions; return how many."""
        return sum(await self._api.delete_all(self._layout.jobs, revisions))

    async def read_all(self, page: int, take: Callable[[Job], T]) -> dict[str, T]:
        """Read all records, so many at a time; return what is taken of each."""
        name, left = await self._api.read_all(self._layout.jobs)
        found: dict[str, T] = {}
        try:
            while left > 0 and (messages := await self._api.fetch(self._layout.jobs, name, page)):
                left -= len(messages)
                for message in messages:
                    try:
                        job = Job.decode(message.data, message.metadata.sequence.stream)
                    except Unreadable as error:
                        log(logging.ERROR, "%s", error)
                    else:
                        found[job.message.id] = take(job)
        finally:
            self._api.post_delete_consumer(self._layout.jobs, name)
        return found

    async def look_after(self, ids: Iterable[str]) -> Counter[str]:
        """Do what time has done to jobs, and what others may have begun and not finished.

        Returns how often time has done what.
        """
        changed = await self._change(ids, lambda job, now: None, {})
        await self.follow(changed)
        by_time = Counter(each.by_time for each in changed.values() if each.by_time)
        await self._repair([each for each in changed.values() if not each.by_time])
        changing = [Timer(each.job.next_change, id) for id, each in changed.items() if each.job]
        later = self._clock.now() + COVER
        changing += [Timer(later, id) for id, each in changed.items() if each.unreadable]
        await self._timers.add([timer for timer in changing if timer.at < inf])
        return by_time

    async def _repair(self, changed: Iterable[Changed]) -> None:
        """Do once more what follows from the states that jobs are in."""
        by_state: defaultdict[JobState, list[tuple[Job, Changed]]] = defaultdict(list)
        for each in changed:
            if each.job is not None:
                by_state[each.job.state].append((each.job, each))
        ready = [each for _, each in by_state[JobState.READY]]
        await self._ready.put(_records(ready), again=True)
        blocked = [job for job, _ in by_state[JobState.SCHEDULED] if job.unmet]
        await self._link(
            {job.message.id: [job.message.needs[place] for place in job.unmet] for job in blocked}
        )
        ended = [each for state in FINAL for _, each in by_state[state]]
        await self._end(ended, repair=True)


def _records(changed: Iterable[Changed]) -> list[tuple[Job, bytes, int]]:
    """Return jobs with their records, the oldest first."""
    found = [(each.job, *each.stored) for each in changed if each.job is not None]
    return sorted(found, key=lambda each: each[0].number or each[2])


def _stored(message: Mapping[str, Any] | None) -> Stored:
    if message is None:
        return Stored()
    return Stored(b64decode(message["data"]), message["seq"])
