"""Jobs in NATS JetStream: durable, shared by any number of hosts, for asyncio only."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import count
from secrets import token_hex
from typing import Literal

from ._errors import BrokerUnavailable
from ._nats_api import Api
from ._nats_clock import Clock
from ._nats_job import Job
from ._nats_jobs import Jobs
from ._nats_layout import ACK_WAIT, Layout
from ._nats_leases import Leases
from ._nats_link import Link
from ._nats_ready import Offer, Ready
from ._nats_records import Changed, Records, Stored
from ._nats_streams import Streams
from ._nats_timers import Timers
from ._states import FINAL, JobState
from .abc import Broker, Claim, Hold, Maintained, Message, Settlement, StoredJob

_OLDEST = (2, 9)
_POLL = 1.0  # seconds after which those who wait look for themselves, as word may get lost
_LATER = 10.0  # seconds until others are offered a job whose record is of a newer version


class NatsBroker(Broker):
    """Keeps jobs in a NATS server's JetStream, from version 2.9 on; for one asyncio event loop.

    - `url`: like `nats://user:password@host:4222`, or `nats://token@host`, or `tls://…`; or several
      of them, of one cluster, joined by commas.
    - `prefix`: begins the names of all that it keeps on the server, so that several can share one.
    - `replicas`, `storage`: what its streams are made with. Streams that are there already have to
      agree.
    - `tls`: for certificates of one's own.

    The connection is made anew as often as it takes. What is asked for without one fails after five
    seconds, and is not done later. Streams that are gone are made again, empty: those of a server
    that was started again and kept them in memory, or that somebody has deleted.

    `enqueue` stores all jobs before the first of them can start, but not in one transaction: if it
    raises `BrokerUnavailable`, some of the jobs may have been taken, which will run. Called again,
    it takes the others.

    A job, with its arguments and its result, is one message, for which the server's `max_payload`
    is the limit; so are the results of all that a job needs, with that job. `scan`, `count` and
    `purge` read all jobs. All times are those of the server's clock.

    Raises `ValueError` for a URL or a prefix that can't be used.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "background",
        replicas: int = 1,
        storage: Literal["file", "memory"] = "file",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._layout = Layout(prefix, replicas, storage)
        self._link = Link(url, tls)
        self._streams = Streams(self._link, self._layout)
        self._api = Api(self._link, self._streams)
        self._clock = Clock(lambda: self._api.time(self._layout.timers, self._layout.clock))
        self._timers = Timers(self._api, self._layout, self._clock)
        self._ready = Ready(self._api, self._layout)
        self._records = Records(self._api, self._layout, self._clock, self._timers)
        self._jobs = Jobs(
            self._api, self._layout, self._clock, self._timers, self._ready, self._records
        )
        self._leases = Leases(self._timers)
        self._run = token_hex(8)  # tells this broker's claims from those of all others
        self._claims = count(1)
        self._opening = asyncio.Lock()
        self._advancing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<NatsBroker {self._link.shown} prefix={self._layout.prefix!r}>"

    async def open(self) -> None:
        _require_asyncio()
        async with self._opening:
            if self._link.connection.is_open:
                return
            await self._link.connection.open()
            try:
                await self._check_version()
                await self._streams.ensure()
                await self._clock.read()
            except BaseException:
                await self._link.connection.close()
                raise

    async def _check_version(self) -> None:
        version = await self._link.version()
        numbers = re.match(r"v?(\d+)\.(\d+)", version)
        if numbers is None or tuple(map(int, numbers.groups())) < _OLDEST:
            raise BrokerUnavailable(
                f"{self._link.shown} is NATS {version or 'of no version'}; 2.9 or later is needed"
            )

    async def close(self) -> None:
        async with self._opening:
            await self._link.connection.close()
            self._leases.clear()
            self._ready.forget()

    async def enqueue(self, messages: Sequence[Message]) -> list[bool]:
        self._link.connection.check()
        await self._check_needs(messages)
        now = self._clock.now()
        jobs: dict[str, Job] = {}
        for message in messages:
            if message.id not in jobs:
                for need in message.needs:
                    if need in jobs and message.id not in jobs[need].dependants:
                        jobs[need].dependants.append(message.id)
                jobs[message.id] = Job(message, now)
                jobs[message.id].begin()
        created = await self._jobs.create(jobs) if jobs else {}
        return [created.pop(message.id, None) is not None for message in messages]

    async def _check_needs(self, messages: Sequence[Message]) -> None:
        new: set[str] = set()
        needed: dict[str, str] = {}
        for message in messages:
            for need in message.needs:
                if need not in new:
                    needed.setdefault(need, message.id)
            new.add(message.id)
        now = self._clock.now()
        found = await self._records.load(list(needed))
        for (need, id), stored in zip(needed.items(), found, strict=True):
            if self._records.known(stored, now) is None:
                raise ValueError(f"job {id} needs the job {need}, which is not known")

    async def claim(self, queues: Sequence[str], most: int, *, lease: float) -> list[Claim]:
        await self._advance()
        claims: list[Claim] = []
        try:
            for queue in queues:
                while len(claims) < most:
                    offers = await self._ready.take(queue, most - len(claims))
                    if not offers:
                        break
                    claims += await self._claim(offers, lease)
        except BrokerUnavailable:
            if not claims:
                raise
        return claims

    async def _claim(self, offers: Sequence[Offer], lease: float) -> list[Claim]:
        token = f"{self._run}-{next(self._claims)}"
        hints = {each.id: Stored(each.record, each.revision) for each in offers if each.record}
        try:
            changed = await self._jobs.change(
                [each.id for each in offers],
                lambda job, now: job.claim(token, now + lease, now),
                hints=hints,
                covered=True,
            )
        except BaseException:
            self._ready.decline(offers)
            raise
        unread = {id for id, each in changed.items() if each.unreadable}
        self._ready.done(each for each in offers if each.id not in unread)
        self._ready.decline((each for each in offers if each.id in unread), _LATER)
        claimed = {each.id: changed[each.id] for each in offers if changed[each.id].value}
        self._leases.add(token, claimed)
        return [each.job.as_claim() for each in claimed.values() if each.job is not None]

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        subjects = [self._layout.woken(queue) for queue in queues]
        taken_since = self._clock.now()
        deadline = taken_since + timeout
        async with self._link.listening(*subjects) as woken:
            while True:
                await self._advance()
                found, taken = await self._ready.look(queues)
                now = self._clock.now()
                if not taken:
                    taken_since = now
                # What somebody has died of who had taken it can be had after a time.
                if found or woken.is_set() or now >= min(deadline, taken_since + ACK_WAIT):
                    return
                pause = min(_POLL, deadline - now, max(0.001, self._timers.next - now))
                await _wait(woken, pause)

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> list[Hold]:
        tokens: defaultdict[str, set[str]] = defaultdict(set)
        for claim in claims:
            tokens[claim.message.id].add(claim.token)

        def renew(job: Job, now: float) -> str:
            """Return the token that is the right one, if it is among those."""
            token = next(filter(job.held, tokens[job.message.id]), "")
            if token:
                job.lease_ends = now + lease
            return token

        hints = self._leases.hints(tokens)
        changed = await self._jobs.change(tokens, renew, hints=hints, covered=True)
        self._leases.keep(changed)
        return [_hold(each, changed[each.message.id]) for each in claims]

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        accepted = [False] * len(settlements)
        left: list[tuple[int, Settlement]] = list(enumerate(settlements))
        while left:
            some: dict[str, tuple[int, Settlement]] = {}
            for place, each in reversed(left):
                some[each.id] = place, each
            left = [(place, each) for place, each in left if some[each.id][0] != place]
            changed = await self._settle({id: each for id, (_, each) in some.items()})
            for id, (place, _) in some.items():
                accepted[place] = bool(changed[id].value)
        return accepted

    async def _settle(self, settlements: Mapping[str, Settlement]) -> dict[str, Changed]:
        most = await self._api.max_record()

        def settle(job: Job, now: float) -> bool:
            if not job.settle(settlements[job.message.id], now):
                return False
            if len(job.encode()) > most:
                job.burst("its result is too large to be kept with it", now)
            return True

        hints = self._leases.hints(settlements)
        changed = await self._jobs.change(settlements, settle, hints=hints, covered=True)
        self._leases.drop(id for id, each in changed.items() if each.value)
        return changed

    async def save(self, id: str, token: str, result: bytes) -> bool:
        def save(job: Job, now: float) -> bool:
            if not job.held(token):
                return False
            job.result = result
            return True

        changed = await self._jobs.change([id], save, hints=self._leases.hints([id]), covered=True)
        self._leases.keep(changed)
        return bool(changed[id].value)

    async def cancel(self, id: str) -> JobState | None:
        changed = await self._jobs.change([id], lambda job, now: job.cancel(now))
        state: JobState | None = changed[id].value
        return state

    async def requeue(self, id: str) -> bool:
        changed = await self._jobs.change([id], lambda job, now: job.requeue(now))
        return bool(changed[id].value)

    async def get(self, id: str) -> StoredJob | None:
        job = await self._records.get(id)
        return None if job is None else job.stored()

    async def wait(self, id: str, timeout: float) -> StoredJob | None:
        deadline = self._clock.now() + timeout
        async with self._link.listening(self._layout.ended(id)) as ended:
            while True:
                ended.clear()
                await self._advance()
                job = await self._records.get(id)
                now = self._clock.now()
                if job is None or job.state in FINAL or now >= deadline:
                    return None if job is None else job.stored()
                await _wait(ended, min(_POLL, deadline - now))

    async def scan(
        self, *, queue: str | None = None, state: JobState | None = None
    ) -> AsyncIterator[StoredJob]:
        now = self._clock.now()
        found = (await self._records.read_all(lambda job: job)).values()
        for job in sorted(found, key=lambda job: job.age):
            if _chosen(job, queue, state, now):
                yield job.stored()

    async def count(self, *, queue: str | None = None, state: JobState | None = None) -> int:
        now = self._clock.now()
        chosen = await self._records.read_all(lambda job: _chosen(job, queue, state, now))
        return sum(chosen.values())

    async def purge(self, *, state: JobState | None = None, older_than: float = 0.0) -> int:
        now = self._clock.now()

        def choose(job: Job) -> int:
            """Return the revision of a job to be forgotten, or 0."""
            ended = job.state in FINAL and (job.finished_at or 0.0) <= now - older_than
            return job.revision if ended and state in (None, job.state) else 0

        revisions = await self._records.read_all(choose)
        return await self._records.forget([each for each in revisions.values() if each])

    async def maintain(self) -> Maintained:
        self._link.connection.check()
        await self._clock.refresh()
        done = await self._advance(everything=True)
        self._leases.forget(self._clock.now())
        return Maintained(**done)

    async def _advance(self, *, everything: bool = False) -> Counter[str]:
        """See to timers that are due, to some of them at least."""
        self._link.connection.check()
        done: Counter[str] = Counter()
        async with self._advancing:
            while (taken := await self._timers.take()) is not None:
                forgotten = [timer.revision for timer in taken.timers if timer.revision]
                done["forgotten"] += await self._records.forget(forgotten)
                looked_at = [timer.id for timer in taken.timers if not timer.revision]
                done += await self._jobs.look_after(looked_at)
                self._timers.remove(taken.covers)
                if not everything:
                    break
        return done


def _require_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("NatsBroker works on asyncio only, as nats-py does") from None


def _hold(claim: Claim, changed: Changed) -> Hold:
    if changed.job is None or changed.value != claim.token:
        return Hold.LOST
    return Hold.CANCELLED if changed.job.cancelled else Hold.KEPT


def _chosen(job: Job, queue: str | None, state: JobState | None, now: float) -> bool:
    return (
        queue in (None, job.message.queue)
        and state in (None, job.state)
        and (job.state not in FINAL or job.forget_at > now)
    )


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
