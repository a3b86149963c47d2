"""What follows from a change of a job's record, and how it is done if somebody has died of it.

A record is changed first, and the rest is done after it: those are told who need the job, the queue
is told that it is ready, and when to look at it again. All of that can be done twice without harm.
If a process dies before it is done, a timer that was set before the change makes another one look
at the job, and do what may not have been done.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import inf

from .._states import FINAL, JobState
from ..abc import Message
from .clock import ServerClock
from .codec import UnreadableRecordError, encode
from .jetstream import JetStream
from .job import NatsJob
from .layout import EVERY, EVERY_AGAIN, Layout
from .ready_queue import ReadyQueue
from .records import Change, Changed, Records, Stored, timer_of
from .timer_wheel import COVER, JobTimer, TimerWheel

#: Seconds until changes are at their ends that were under way when streams were made again.
_SETTLED = 60.0
_LATER = 10.0  # seconds until a record is read again that is of a newer version
_EACH = 0.002  # seconds that it may take to store a job, of many
_SOME = Message(id="", handler=None, queue="", body=b"", retention=0, dead_retention=0)


class Effects:
    """Changes of jobs, and all that follows from them."""

    def __init__(
        self,
        api: JetStream,
        layout: Layout,
        clock: ServerClock,
        timers: TimerWheel,
        ready: ReadyQueue,
        records: Records,
    ) -> None:
        self._api = api
        self._layout = layout
        self._clock = clock
        self._timers = timers
        self._ready = ready
        self._records = records

    async def create(self, jobs: Mapping[str, NatsJob]) -> dict[str, Changed]:
        """Store new jobs; return those whose ids were new."""
        now = self._clock.now()
        patience = COVER + len(jobs) * _EACH
        covers = await self._timers.add(JobTimer(now + patience, id) for id in jobs)
        changing = [timer_of(each, now) for each in jobs.values()]
        await self._timers.add(timer for timer in changing if timer.at < inf)
        created: dict[str, Changed] = {}
        blocked: dict[str, NatsJob] = {}
        left = dict.fromkeys(jobs, 0)
        while left:
            written = await self._records.write([(id, encode(jobs[id]), left[id]) for id in left])
            for id, stored in written.items():
                if stored is not None:
                    created[id] = Changed(jobs[id], stored)
            refused = [id for id, stored in written.items() if stored is None]
            left = {}
            for id, found in zip(refused, await self._records.load(refused), strict=True):
                known = self._look(found, now)
                if known is None:
                    left[id] = found.revision
                elif known.unmet:
                    blocked[id] = known
        # Some that were known may be there of a call that died before it came to this.
        unmet = {id: _unmet(job) for id, job in blocked.items()}
        # And some that are new may have ended already, if storing all of them took that long.
        late = self._clock.now() > now + patience / 2
        for id in created:
            depends_on = jobs[id].message.depends_on
            unmet[id] = [each for each in depends_on if late or each not in created]
        await self._link(unmet)
        await self.follow(created)
        self._timers.remove(set(covers.values()))
        return created

    def _look(self, stored: Stored, now: float) -> NatsJob | None:
        """Return a job that is known, and of one that can't be read at least that there is one."""
        try:
            return self._records.known(stored, now)
        except UnreadableRecordError:
            return NatsJob(_SOME, now)

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
            covers = await self._timers.add(JobTimer(at, id) for id in ids)
        changed = await self._records.change(ids, change, hints or {})
        await self.follow(changed)
        self._timers.remove(set(covers.values()))
        return changed

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
        await self._ready.drop([each.sure for each in finished if each.was_ready])
        await self._delete_later(finished)
        for each in finished:
            self._api.link.post(self._layout.ended(each.sure.message.id))

    async def _tell(self, ended: Sequence[Changed]) -> dict[str, Changed]:
        by_dependant: defaultdict[str, dict[str, NatsJob | None]] = defaultdict(dict)
        for each in ended:
            for id in each.sure.dependants:
                by_dependant[id][each.sure.message.id] = each.job
        return await self._handle_ends(by_dependant)

    async def _handle_ends(
        self, ended: Mapping[str, Mapping[str, NatsJob | None]]
    ) -> dict[str, Changed]:
        """Handle the ends of jobs in the jobs that depend on them."""
        most = await self._api.max_record() if ended else 0

        def handle_ends(job: NatsJob, now: float) -> None:
            for id, dependency in ended[job.message.id].items():
                job.dependency_ended(id, dependency, now)
            if len(encode(job)) > most:
                job.outgrow("the results that it depends on are too large for its record", now)

        return await self._records.change(ended, handle_ends, {})

    async def _link(self, unmet: Mapping[str, Sequence[str]]) -> None:
        """Register jobs with those that they depend on, which may have ended already."""
        dependants: defaultdict[str, list[str]] = defaultdict(list)
        for id, depends_on in unmet.items():
            for dependency in depends_on:
                dependants[dependency].append(id)

        def add(job: NatsJob, now: float) -> None:
            if job.state not in FINAL:
                job.dependants += [
                    id for id in dependants[job.message.id] if id not in job.dependants
                ]

        found = await self._records.change(dependants, add, {})
        await self.follow(found)
        by_dependant: defaultdict[str, dict[str, NatsJob | None]] = defaultdict(dict)
        for dependency, each in found.items():
            if each.job is None or each.job.state in FINAL:
                for id in dependants[dependency]:
                    by_dependant[id][dependency] = each.job
        await self.follow(await self._handle_ends(by_dependant))

    async def _delete_later(self, finished: Sequence[Changed]) -> None:
        now = self._clock.now()
        over: list[int] = []
        kept: list[JobTimer] = []
        for each in finished:
            if each.sure.delete_at <= now:
                over.append(each.stored.revision)
            else:
                id = each.sure.message.id
                kept.append(JobTimer(each.sure.delete_at, id, each.stored.revision))
        await self._timers.add(kept)
        await self._records.delete(over)

    async def look_after(self, ids: Iterable[str]) -> Counter[str]:
        """Do what time has done to jobs, and what others may have begun and not finished.

        Returns how often time has done what.
        """
        known = dict.fromkeys(ids)
        if signs := known.keys() & {EVERY, EVERY_AGAIN}:
            await self._look_at_all(again=EVERY in signs)
            known = {id: None for id in known if id not in signs}
        changed = await self._records.change(known, lambda job, now: None, {}, over=True)
        await self.follow(changed)
        by_time = Counter(each.by_time for each in changed.values() if each.by_time)
        await self._repair([each for each in changed.values() if not each.by_time])
        now = self._clock.now()
        changing = [timer_of(each.job, now) for each in changed.values() if each.job]
        later = now + _LATER
        changing += [JobTimer(later, id) for id, each in changed.items() if each.unreadable]
        await self._timers.add([timer for timer in changing if timer.at < inf])
        return by_time

    async def _look_at_all(self, *, again: bool) -> None:
        """Have all jobs looked at soon, as what else was known of them may be gone."""
        now = self._clock.now()
        await self._timers.add(JobTimer(now, id) for id in await self._records.ids())
        if again:
            await self._timers.add([JobTimer(now + _SETTLED, EVERY_AGAIN)])

    async def _repair(self, changed: Iterable[Changed]) -> None:
        """Do once more what follows from the states that jobs are in."""
        by_state: defaultdict[JobState, list[tuple[NatsJob, Changed]]] = defaultdict(list)
        for each in changed:
            if each.job is not None:
                by_state[each.job.state].append((each.job, each))
        ready = [each for _, each in by_state[JobState.READY]]
        await self._ready.put(_records(ready), again=True)
        blocked = [job for job, _ in by_state[JobState.SCHEDULED] if job.unmet]
        await self._link({job.message.id: _unmet(job) for job in blocked})
        ended = [each for state in FINAL for _, each in by_state[state]]
        await self._end(ended, repair=True)


def _unmet(job: NatsJob) -> list[str]:
    """Return the ids of the jobs that a job still waits for."""
    return [job.message.depends_on[place] for place in job.unmet]


def _records(changed: Iterable[Changed]) -> list[tuple[NatsJob, bytes, int]]:
    """Return jobs with their records, the oldest first."""
    found = [(each.sure, each.stored.record, each.stored.revision) for each in changed]
    return sorted(found, key=lambda each: each[0].number or each[2])
