"""A broker that stores jobs in NATS JetStream; docs/design/nats.md explains its design."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Literal, Unpack

import anyio

from .._dependencies import missing_dependency, outside_dependencies
from .._errors import BrokerRefusedError
from .._states import FINAL, JobState
from ..abc import Broker, Claim, LeaseStatus, MaintenanceStats, Message, Settlement, StoredJob
from .address import NatsAddress, NatsOptions
from .claims import Claims
from .clock import ServerClock
from .effects import Effects
from .inspection import Inspection
from .jetstream import JetStream
from .job import NatsJob
from .layout import ACK_WAIT, Layout
from .ready_queue import ReadyQueue
from .records import Records
from .requests import Requests
from .restoration import Restoration
from .schedules import Schedules
from .streams import Streams
from .timer_wheel import TimerWheel

_OLDEST = (2, 9)
_POLL = 1.0  # seconds after which waiters query the server, because notifications may be lost


class NatsBroker(Broker):
    """A broker that stores jobs in NATS JetStream, from server version 2.9 on.

    It works on asyncio only, in one event loop. Any number of hosts may share the jobs.

    The broker reconnects when the connection is lost. A call that finds no connection fails after
    five seconds, and is not executed later. Streams that are missing are created again, empty: a
    server that stores them in memory loses them when it restarts, and an administrator may delete
    them. Servers before 2.10 then reuse the revisions of the lost records: after that, close all
    queues and open them again.

    `enqueue` stores all jobs before the first of them can start, but not in one transaction. If it
    raises `BrokerUnavailableError`, some of the jobs may be stored, and will run. `JobQueue`
    repeats a call a few times with the same ids, which stores the others.

    Within a queue, jobs that became ready later, for example after a delay or a retry, are claimed
    before jobs that were ready when they were enqueued. Both are claimed oldest first.

    A job is stored as one message, with its arguments, its result, and the results of the jobs that
    it depends on. The server's `max_payload` limits its size. `scan`, `count` and `purge` read all
    jobs, on a second connection. All times are those of the server's clock.

    A worker leaves jobs that a newer version of the library has stored to workers of that version,
    and `purge` leaves them alone. `get` and `wait` of such a job raise `QueueError`, as do `scan`
    and `count` while there is one.

    The broker makes and closes its own clients of nats-py: what it promises depends on how they
    reconnect, and that they buffer nothing.

    Args:
        url: `nats://user:password@host:4222`, `nats://token@host`, or `tls://…` for TLS; several
            servers of one cluster are separated by commas, `nats://a:4222,b:4222`. All options are
            in the guide on connections; each of them can be an argument or a part of the query.
        prefix: The beginning of the names of all streams and subjects, by default `background`, so
            that brokers with different prefixes can share a server.
        replicas: The number of servers in the cluster that store each stream, by default 1.
        storage: Where the server stores the streams, by default `"file"`. Streams that exist must
            have the same `replicas` and `storage`.
        tls: The TLS context, for example with certificates of a private authority. With it,
            `tls://` or an option of TLS, a server without TLS is refused before anything is sent.
        **options: `user`, `password`, `token`, `user_credentials`, `nkeys_seed`, `inbox_prefix` and
            others that nats-py takes, and the options of TLS.

    Raises:
        TypeError: An argument is unknown.
        ValueError: An argument is not valid.
        ImportError: An nkey or credentials need the extra `nkeys`.

    Example:
        ```python
        jobs = JobQueue(NatsBroker("nats://localhost:4222", replicas=3))
        ```
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str | None = None,
        replicas: int | None = None,
        storage: Literal["file", "memory"] | None = None,
        tls: ssl.SSLContext | None = None,
        **options: Unpack[NatsOptions],
    ) -> None:
        own = {"prefix": prefix, "replicas": replicas, "storage": storage}
        address = NatsAddress(url, tls, own, options)
        address.own.setdefault("prefix", "background")
        self._layout = Layout(**address.own)
        self._requests = Requests(address)
        self._streams = Streams(self._requests, self._layout)
        self._api = JetStream(self._requests, self._streams)
        self._clock = ServerClock(lambda: self._api.time(self._layout.timers, self._layout.clock))
        self._timers = TimerWheel(self._api, self._layout, self._clock)
        self._ready = ReadyQueue(self._api, self._layout)
        self._records = Records(self._api, self._layout, self._clock, self._timers)
        self._inspection = Inspection(address, self._layout, self._records.report)
        self._schedules = Schedules(self._api, self._layout, self._clock)
        self._restoration = Restoration(
            self._clock, self._timers, self._schedules, self._inspection
        )
        self._jobs = Effects(
            self._api,
            self._layout,
            self._clock,
            self._timers,
            self._ready,
            self._records,
            self._restoration,
        )
        self._claims = Claims(self._api, self._timers, self._ready, self._jobs)
        # Not those of asyncio, which work in one event loop only.
        self._opening = anyio.Lock(fast_acquire=True)
        self._advancing = anyio.Lock(fast_acquire=True)

    def __repr__(self) -> str:
        return f"<NatsBroker {self._requests.shown}, prefix {self._layout.prefix!r}>"

    async def open(self) -> None:
        _require_asyncio()
        async with self._opening:
            if self._requests.connection.is_open:
                return
            await self._requests.connection.open()
            self._inspection.requests.connection.prepare_to_connect()
            try:
                await self._check_version()
                await self._streams.ensure()
                await self._clock.read()
                self._restoration.opened()
            except BaseException:
                await self._disconnect()
                raise

    async def _disconnect(self) -> None:
        connections = self._inspection.requests.connection, self._requests.connection
        for connection in connections:
            connection.begin_to_close()
        for connection in connections:
            await connection.has_closed()

    async def _check_version(self) -> None:
        version = await self._requests.version()
        numbers = re.match(r"v?(\d+)\.(\d+)", version)
        if numbers is None or tuple(map(int, numbers.groups())) < _OLDEST:
            raise BrokerRefusedError(
                f"{self._requests.shown}: NATS 2.9 or later is needed; this server reports version "
                f"{version!r}"
            )

    async def close(self) -> None:
        async with self._opening:
            await self._disconnect()
            self._claims.clear()
            self._ready.reset()
            self._timers.reset()

    async def enqueue(self, messages: Sequence[Message]) -> list[bool]:
        self._requests.connection.check()
        await self._check_dependencies(messages)
        now = self._clock.now()
        jobs: dict[str, NatsJob] = {}
        for message in messages:
            if message.id not in jobs:
                for id in message.depends_on:
                    if id in jobs and message.id not in jobs[id].dependants:
                        jobs[id].dependants.append(message.id)
                jobs[message.id] = NatsJob(message, now)
                jobs[message.id].begin(now)
        created = await self._jobs.create(jobs) if jobs else {}
        return [created.pop(message.id, None) is not None for message in messages]

    async def _check_dependencies(self, messages: Sequence[Message]) -> None:
        """Refuse a job that depends on one that is not stored.

        Raises:
            ValueError: There is such a job.
        """
        dependants = outside_dependencies(messages)
        now = self._clock.now()
        found = await self._records.load(list(dependants))
        for (id, dependant), stored in zip(dependants.items(), found, strict=True):
            if self._records.job_of(stored, now) is None:
                raise missing_dependency(id, dependant)

    async def claim(self, queues: Sequence[str], most: int, *, lease: float) -> list[Claim]:
        await self._advance()
        return await self._claims.claim(queues, most, lease)

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        subjects = [self._layout.woken(queue) for queue in queues]
        unacknowledged_since = self._clock.now()
        deadline = unacknowledged_since + timeout
        async with self._requests.listening(*subjects) as woken:
            while True:
                await self._advance()
                found, unacknowledged = await self._ready.status(queues)
                now = self._clock.now()
                if not unacknowledged:
                    unacknowledged_since = now
                # The process that fetched a hint may have crashed. The server delivers the hint
                # again after ACK_WAIT, without counting it as undelivered.
                until = min(deadline, unacknowledged_since + ACK_WAIT)
                if found or woken.is_set() or now >= until:
                    return
                pause = min(_POLL, deadline - now, max(0.001, self._timers.next - now))
                await _wait(woken, pause)

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> list[LeaseStatus]:
        return await self._claims.renew(claims, lease)

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        return await self._claims.settle(settlements)

    async def save(self, id: str, token: str, result: bytes) -> bool:
        return await self._claims.save(id, token, result)

    async def cancel(self, id: str) -> JobState | None:
        (state,) = await self.cancel_many([id])
        return state

    async def cancel_many(self, ids: Sequence[str]) -> list[JobState | None]:
        changed = await self._jobs.change(ids, lambda job, now: job.cancel(now))
        return [changed[id].value for id in ids]

    async def requeue(self, id: str) -> bool:
        changed = await self._jobs.change([id], lambda job, now: job.requeue(now))
        return bool(changed[id].value)

    async def get(self, id: str) -> StoredJob | None:
        return await self._records.get(id)

    async def wait(self, id: str, timeout: float) -> StoredJob | None:
        deadline = self._clock.now() + timeout
        async with self._requests.listening(self._layout.ended(id)) as ended:
            while True:
                ended.clear()
                await self._advance()
                job = await self._records.get(id)
                now = self._clock.now()
                if job is None or job.state in FINAL or now >= deadline:
                    return job
                await _wait(ended, min(_POLL, deadline - now))

    async def scan(
        self, *, queue: str | None = None, state: JobState | None = None
    ) -> AsyncIterator[StoredJob]:
        now = self._clock.now()
        found = await self._inspection.read_all(
            lambda job: job if _is_selected(job, queue, state, now) else None
        )
        selected = [job for job in found.values() if job is not None]
        for job in sorted(selected, key=lambda job: job.age):
            yield job.stored()

    async def count(self, *, queue: str | None = None, state: JobState | None = None) -> int:
        now = self._clock.now()
        selected = await self._inspection.read_all(lambda job: _is_selected(job, queue, state, now))
        return sum(selected.values())

    async def purge(self, *, state: JobState | None = None, older_than: float = 0.0) -> int:
        now = self._clock.now()

        def select(job: NatsJob) -> int:
            """Return the revision of a job to delete, or 0."""
            ended = job.state in FINAL and (job.finished_at or 0.0) <= now - older_than
            return job.revision if ended and state in (None, job.state) else 0

        revisions = await self._inspection.read_all(select, newer=True)
        return await self._inspection.delete(
            [revision for revision in revisions.values() if revision]
        )

    async def advance_schedule(
        self, name: str, expected: float | None, tick: float, *, retention: float
    ) -> float:
        self._requests.connection.check()
        return await self._schedules.advance(name, expected, tick, retention)

    async def maintain(self) -> MaintenanceStats:
        self._requests.connection.check()
        await self._clock.refresh()
        done = await self._advance(everything=True)
        if await self._restoration.run_if_due():
            done += await self._advance(everything=True)
        self._claims.drop_expired(self._clock.now())
        return MaintenanceStats(**done)

    async def _advance(self, *, everything: bool = False) -> Counter[str]:
        """Process timers that are due: a batch, or everything.

        Returns:
            The number of jobs by transition, and of those that were deleted.
        """
        self._requests.connection.check()
        done: Counter[str] = Counter()
        async with self._advancing:
            while (taken := await self._timers.take()) is not None:
                revisions = [timer.revision for timer in taken.timers if timer.revision]
                done["deleted"] += await self._records.delete(revisions)
                ids = [timer.id for timer in taken.timers if not timer.revision]
                done += await self._jobs.check(ids)
                self._timers.remove(taken.covers)
                if not everything:
                    break
        return done


def _require_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("NatsBroker works on asyncio only, as nats-py does") from None


def _is_selected(job: NatsJob, queue: str | None, state: JobState | None, now: float) -> bool:
    return (
        queue in (None, job.message.queue)
        and state in (None, job.state)
        and (job.state not in FINAL or job.delete_at > now)
    )


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
