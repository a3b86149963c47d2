"""The effects of changes of records, and their repair after a crash.

A record is changed first; its effects follow in other messages, and can be applied twice without
harm. Before the change, a cover is set: a timer that makes another process apply the effects if
this one crashes. docs/design/nats.md lists every point at which it may crash.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import inf

from .._states import FINAL, JobState
from ..abc import Message
from .clock import ServerClock
from .codec import UnreadableRecordError, encode
from .jetstream import JetStream
from .job import NatsJob
from .layout import ALL_JOBS, ALL_JOBS_AGAIN, Layout
from .ready_queue import ReadyQueue
from .records import Change, Changed, Records, Stored, timer_of
from .restoration import Restoration
from .timer_wheel import COVER, JobTimer, TimerWheel

#: Seconds after which calls that were under way when streams were created again have finished.
_CALLS_FINISHED = 60.0
UNREADABLE_DELAY = 10.0  # seconds until a job whose record can't be read here is tried again
_TIME_PER_JOB = 0.002  # seconds that changing one of many jobs may take
#: Stands for a job whose record can't be read here.
_UNREADABLE = Message(id="", handler=None, queue="", body=b"", retention=0, dead_retention=0)


class Effects:
    """Changes jobs, and applies the effects.

    Args:
        api: JetStream.
        layout: The subjects of notifications.
        clock: The server's clock.
        timers: The timers.
        ready: The hints about ready jobs.
        records: The records.
        restoration: Finds jobs whose hints or timers are missing.
    """

    def __init__(
        self,
        api: JetStream,
        layout: Layout,
        clock: ServerClock,
        timers: TimerWheel,
        ready: ReadyQueue,
        records: Records,
        restoration: Restoration,
    ) -> None:
        self._api = api
        self._layout = layout
        self._clock = clock
        self._timers = timers
        self._ready = ready
        self._records = records
        self._restoration = restoration

    async def create(self, jobs: Mapping[str, NatsJob]) -> dict[str, Changed]:
        """Store new jobs, and apply the effects.

        Args:
            jobs: The jobs by id. Those that depend on each other have their `dependants`.

        Returns:
            By id the jobs that were not stored already.
        """
        now = self._clock.now()
        patience = COVER + len(jobs) * _TIME_PER_JOB
        covers = await self._timers.add(JobTimer(now + patience, id) for id in jobs)
        changing = [timer_of(job, now) for job in jobs.values()]
        await self._timers.add(timer for timer in changing if timer.at < inf)
        created: dict[str, Changed] = {}
        blocked: dict[str, NatsJob] = {}
        left = dict.fromkeys(jobs, 0)  # the revisions to replace
        while left:
            repetitions = self._api.requests.repetitions
            written = await self._records.write([(id, encode(jobs[id]), left[id]) for id in left])
            repeated = self._api.requests.repetitions > repetitions
            for id, stored in written.items():
                if stored is not None:
                    created[id] = Changed(jobs[id], stored)
            refused = [id for id, stored in written.items() if stored is None]
            left = {}
            for id, found in zip(refused, await self._records.load(refused), strict=True):
                existing = self._existing(found, now)
                if existing is None:  # deleted, or past its retention
                    left[id] = found.revision
                elif repeated and _is_same(existing, jobs[id]):
                    # The write was executed, but its answer was lost.
                    created[id] = Changed(existing, found)
                elif existing.unmet:
                    blocked[id] = existing
        # A job that existed may be from an earlier call that crashed before it registered the job.
        unmet = {id: job.unmet_ids for id, job in blocked.items()}
        # A new job is registered already in the records that were stored with it. But if that took
        # too long, the jobs it depends on may have ended before its own record was stored.
        late = self._clock.now() > now + patience / 2
        for id in created:
            depends_on = jobs[id].message.depends_on
            unmet[id] = [
                dependency for dependency in depends_on if late or dependency not in created
            ]
        await self._register(unmet)
        await self.apply(created)
        self._timers.remove(set(covers.values()))
        return created

    def _existing(self, stored: Stored, now: float) -> NatsJob | None:
        """Return the job of a record, or a placeholder if the record can't be read."""
        try:
            return self._records.job_of(stored, now)
        except UnreadableRecordError:
            return NatsJob(_UNREADABLE, now)

    async def change(
        self,
        ids: Collection[str],
        change: Change,
        *,
        hints: Mapping[str, Stored] | None = None,
        covered: bool = False,
    ) -> dict[str, Changed]:
        """Change jobs, and apply the effects.

        Args:
            ids: The ids of the jobs.
            change: Changes a job; may be called repeatedly.
            hints: Records that are probably the latest, by id.
            covered: Whether the jobs are checked anyway if this call does not finish. Otherwise
                covers are set.

        Returns:
            By id the changed jobs; without a job where none is stored.
        """
        covers: dict[str, int] = {}
        if not covered:
            at = self._clock.now() + COVER + len(ids) * _TIME_PER_JOB
            covers = await self._timers.add(JobTimer(at, id) for id in ids)
        changed = await self._records.change(ids, change, hints or {})
        await self.apply(changed)
        self._timers.remove(set(covers.values()))
        return changed

    async def apply(self, changed: Mapping[str, Changed]) -> None:
        """Apply the effects of changes."""
        ready = [change for change in changed.values() if change.is_ready]
        new = [change for change in ready if change.before is None]
        again = [change for change in ready if change.before is not None]
        await self._ready.put(_by_age(new), again=False)
        await self._ready.put(_by_age(again), again=True)
        await self._apply_ends([change for change in changed.values() if change.has_ended])

    async def _apply_ends(self, ended: Sequence[Changed], *, repair: bool = False) -> None:
        """Apply the effects of jobs that ended, then of the jobs that ended because of them.

        Args:
            ended: The jobs that ended.
            repair: Whether dependent jobs that were ready or had ended already are handled as if
                they had become so just now.
        """
        finished: list[Changed] = []
        batch = list(ended)
        while batch:
            finished += batch
            dependants = await self._update_dependants(batch)
            ready = [
                change
                for change in dependants.values()
                if change.is_ready or (repair and change.job and change.job.state is JobState.READY)
            ]
            await self._ready.put(_by_age(ready), again=True)
            batch = [
                change
                for change in dependants.values()
                if change.has_ended or (repair and change.job and change.job.state in FINAL)
            ]
        await self._ready.drop([change.existing_job for change in finished if change.was_ready])
        await self._delete_later(finished)
        for change in finished:
            self._api.requests.post(self._layout.ended(change.existing_job.message.id))

    async def _update_dependants(self, ended: Sequence[Changed]) -> dict[str, Changed]:
        """Handle the ends of jobs in all jobs that are registered with them."""
        by_dependant: defaultdict[str, dict[str, NatsJob | None]] = defaultdict(dict)
        for change in ended:
            for id in change.existing_job.dependants:
                by_dependant[id][change.existing_job.message.id] = change.job
        return await self._handle_ends(by_dependant)

    async def _handle_ends(
        self, ended: Mapping[str, Mapping[str, NatsJob | None]]
    ) -> dict[str, Changed]:
        """Handle the ends of jobs in the jobs that depend on them.

        Args:
            ended: By the id of a dependent job and the id of the job that ended, the job that
                ended; `None` if it is not stored.

        Returns:
            By id the dependent jobs.
        """
        most = await self._api.max_record() if ended else 0

        def handle_ends(job: NatsJob, now: float) -> None:
            for id, dependency in ended[job.message.id].items():
                job.dependency_ended(id, dependency, now)
            if len(encode(job)) > most:
                job.outgrow(
                    "the results of the jobs that it depends on are too large for its record", now
                )

        return await self._records.change(ended, handle_ends, {})

    async def _register(self, unmet: Mapping[str, Sequence[str]]) -> None:
        """Register jobs with the jobs that they depend on, and handle those that have ended.

        Args:
            unmet: By the id of a dependent job, the ids of the jobs that it depends on.
        """
        dependants: defaultdict[str, list[str]] = defaultdict(list)
        for id, depends_on in unmet.items():
            for dependency in depends_on:
                dependants[dependency].append(id)

        def add(job: NatsJob, now: float) -> None:
            if job.state not in FINAL:
                job.dependants += [
                    id for id in dependants[job.message.id] if id not in job.dependants
                ]

        dependencies = await self._records.change(dependants, add, {})
        await self.apply(dependencies)
        by_dependant: defaultdict[str, dict[str, NatsJob | None]] = defaultdict(dict)
        for dependency, change in dependencies.items():
            if change.unreadable:
                continue  # its end is handled by a process that can read it
            if change.job is None or change.job.state in FINAL:
                for id in dependants[dependency]:
                    by_dependant[id][dependency] = change.job
        await self.apply(await self._handle_ends(by_dependant))

    async def _delete_later(self, finished: Sequence[Changed]) -> None:
        """Delete jobs without retention, and set timers for the deletion of the others."""
        now = self._clock.now()
        revisions: list[int] = []
        timers: list[JobTimer] = []
        for change in finished:
            job = change.existing_job
            if job.delete_at <= now:
                revisions.append(change.stored.revision)
            else:
                timers.append(JobTimer(job.delete_at, job.message.id, change.stored.revision))
        await self._timers.add(timers)
        await self._records.delete(revisions)

    async def check(self, ids: Iterable[str]) -> Counter[str]:
        """Make the transitions that time demands, and apply effects that a crash may have left out.

        Args:
            ids: The ids of jobs whose timers were due, or `ALL_JOBS`, or `ALL_JOBS_AGAIN`.

        Returns:
            The number of jobs by transition.
        """
        left = dict.fromkeys(ids)
        if signs := left.keys() & {ALL_JOBS, ALL_JOBS_AGAIN}:
            await self._restoration.run()
            if ALL_JOBS in signs:
                again = self._clock.now() + _CALLS_FINISHED
                await self._timers.add([JobTimer(again, ALL_JOBS_AGAIN)])
            left = {id: None for id in left if id not in signs}
        changed = await self._records.change(left, lambda job, now: None, {}, past_retention=True)
        await self.apply(changed)
        by_time = Counter(change.by_time for change in changed.values() if change.by_time)
        await self._repair([change for change in changed.values() if not change.by_time])
        now = self._clock.now()
        changing = [timer_of(change.job, now) for change in changed.values() if change.job]
        later = now + UNREADABLE_DELAY
        changing += [JobTimer(later, id) for id, change in changed.items() if change.unreadable]
        await self._timers.add([timer for timer in changing if timer.at < inf])
        return by_time

    async def _repair(self, changed: Iterable[Changed]) -> None:
        """Apply the effects of the states that jobs are in."""
        by_state: defaultdict[JobState, list[tuple[NatsJob, Changed]]] = defaultdict(list)
        for change in changed:
            if change.job is not None:
                by_state[change.job.state].append((change.job, change))
        ready = [change for _, change in by_state[JobState.READY]]
        await self._ready.put(_by_age(ready), again=True)
        blocked = [job for job, _ in by_state[JobState.SCHEDULED] if job.unmet]
        await self._register({job.message.id: job.unmet_ids for job in blocked})
        ended = [change for state in FINAL for _, change in by_state[state]]
        await self._apply_ends(ended, repair=True)


def _is_same(job: NatsJob, enqueued: NatsJob) -> bool:
    """Return whether a stored job is the one that was enqueued, and not only one with its id."""
    return (job.message, job.enqueued_at) == (enqueued.message, enqueued.enqueued_at)


def _by_age(changed: Iterable[Changed]) -> list[tuple[NatsJob, bytes, int]]:
    """Return jobs with their records and revisions, oldest first."""
    jobs = [
        (change.existing_job, change.stored.record, change.stored.revision) for change in changed
    ]
    return sorted(jobs, key=lambda entry: entry[0].number or entry[2])
