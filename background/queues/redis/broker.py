"""A broker that stores jobs in Redis or Valkey; docs/design/redis.md explains its design."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from time import monotonic
from typing import Any, Unpack

import anyio
from redis.exceptions import NoScriptError

from .._dependencies import missing_dependency, outside_dependencies
from .._errors import BrokerRefusedError, BrokerUnavailableError
from .._names import process_name
from .._states import FINAL, JobState
from .._unreadable import describe, report, report_tick
from ..abc import Broker, Claim, LeaseStatus, MaintenanceStats, Message, Settlement, StoredJob
from . import script as scripts
from .address import Address
from .checks import KeysCheck, report_corrections
from .codec import pack_messages, pack_settlement, unpack_claims, unpack_counts, unpack_jobs
from .connection import RedisConnection
from .lost_claims import LostClaim, release_values
from .script import READS, WRITES, Caller, Script, encoded
from .session import Session
from .url import RedisOptions

_CHUNK = 500  # the most jobs that one script reads or changes
_POLL = 1.0  # the most seconds between two queries of a waiter, because notifications may be lost
_REPAIR_INTERVAL = 3600.0  # seconds between two passes that repair the indexes
_REPAIR_PAGE = 200  # jobs that one script compares, which takes some milliseconds
_REPAIR_TIME = 1.0  # the most seconds that one maintenance spends on a pass
_SOON = 0.001  # seconds added to a wait, because clocks and timers are not exact

_STATUSES = {"H": LeaseStatus.HELD, "L": LeaseStatus.LOST, "C": LeaseStatus.CANCELLED}


class RedisBroker(Broker):
    """A broker that stores jobs in Redis 6.2 or later, or in Valkey.

    It works on asyncio only, in one event loop. Any number of processes and hosts may share the
    jobs. All times are those of the server's clock.

    Jobs are as durable as the server's configuration makes them. With `appendonly yes` and
    `appendfsync always`, no acknowledged change is lost. With the default configuration, a server
    that is killed may lose the changes of the last minutes. The server must not evict keys
    (`maxmemory-policy noeviction`).

    A call runs one script, or one script per 500 jobs. A claim has at most 500 jobs. Up to 5,000
    messages of up to 64 MB in total are enqueued atomically. A larger call runs several scripts: if
    the connection is lost in between, only a part of the messages is enqueued.

    The broker makes and closes its own connections. In a cluster all keys of a prefix are in one
    slot.

    Args:
        url: `redis://user:password@host:6379/0`; `rediss://` for TLS; `valkey://` and `valkeys://`
            are the same; `unix:///path?db=0`; `redis+sentinel://host,host2/name` with the hosts of
            sentinels and their name for the primary; `redis+cluster://host,host2` with some nodes
            of a cluster. All options are in the guide on connections; each of them can be an
            argument or a part of the query.
        prefix: The prefix of all keys, by default `background`. It is a hash tag.
        timeout: Seconds to wait for a connection, and for an answer.
        tls: The TLS context, with a URL for TLS.
        **options: `username`, `password`, `credential_provider` and others of redis-py's
            connections, `sentinel_username` and `sentinel_password`, and the options of TLS.

    Raises:
        TypeError: An argument is unknown.
        ValueError: An argument is not valid; the message names it.

    Example:
        ```python
        jobs = JobQueue(RedisBroker("redis://localhost:6379/0"))
        ```
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str | None = None,
        timeout: float = 5.0,
        tls: ssl.SSLContext | None = None,
        **options: Unpack[RedisOptions],
    ) -> None:
        self._address = Address(url, timeout, prefix, tls, options)
        self.prefix = self._address.prefix
        self._channel = f"{{{self.prefix}}}:events:{self._address.db}"
        self._caller = Caller(self.prefix, self._channel)
        self._session = Session(self._address, self._channel, self._check)
        self._keys = KeysCheck(self._address, self.prefix)
        self._process = process_name()
        self._claims = count(1)
        self._lost_claims: list[LostClaim] = []  # what they took is released by the next call
        self._requests_repair = True  # by the first maintenance

    def __repr__(self) -> str:
        return f"<RedisBroker {self._address}, prefix {self.prefix!r}>"

    async def open(self) -> None:
        await self._session.open()

    async def _check(self, connection: RedisConnection) -> None:
        await self._check_jobs(connection)
        missing = (await self._run(connection, scripts.RIGHTS, [])).decode()
        if missing:
            raise BrokerRefusedError(
                f"{self._address}: NOPERM: the user has no permission to send {missing} for prefix "
                f"{self.prefix!r}; the guide on connections lists the rights that a worker needs"
            )

    async def _check_jobs(self, connection: RedisConnection) -> None:
        """Raise the stored version of the format to the written one; refuse a newer one."""
        version = int(await self._run(connection, scripts.OPEN, encoded(WRITES)))
        if version > READS:
            reason = (
                f"{self._address}: the jobs of prefix {self.prefix!r} have version {version}, from "
                f"a newer version of this library; this one supports versions up to {READS}"
            )
            self._session.refuse(reason)
            raise BrokerRefusedError(reason)

    async def close(self) -> None:
        await self._session.close()

    async def enqueue(self, messages: Sequence[Message]) -> list[bool]:
        parts = pack_messages(messages)
        if len(parts) > 1:
            await self._check_dependencies(messages)
        new: list[bool] = []
        for part in parts:
            answer = await self._call(scripts.ENQUEUE, [part])
            if answer.startswith("?"):
                raise ValueError(answer[1:])
            new += [flag == "1" for flag in answer]
        return new

    async def _check_dependencies(self, messages: Sequence[Message]) -> None:
        """Check that all dependencies are stored, before the first of several scripts.

        Raises:
            ValueError: A job depends on a job that is not stored.
        """
        dependants = outside_dependencies(messages)
        ids = list(dependants)
        for first in range(0, len(ids), _CHUNK):
            chunk = ids[first : first + _CHUNK]
            answer = await self._call(scripts.CHECK, encoded(*chunk))
            for id, flag in zip(chunk, answer, strict=True):
                if flag == "0":
                    raise missing_dependency(id, dependants[id])

    async def claim(self, queues: Sequence[str], most: int, *, lease: float) -> list[Claim]:
        token = f"{self._process}-{next(self._claims)}"
        values = encoded(token, lease, min(most, _CHUNK), *queues)
        sent = monotonic()
        try:
            claims, unreadable = unpack_claims(await self._ask(scripts.CLAIM, values), token)
            await self._end_unreadable(unreadable, token)
        except BaseException:
            self._lost_claims.append(LostClaim(token, lease, sent))
            raise
        return claims

    async def _end_unreadable(self, unreadable: Mapping[str, Exception], token: str) -> None:
        """Settle claimed jobs that can't be read as dead."""
        dead: list[Settlement] = []
        for id, reason in unreadable.items():
            report(id, reason)
            dead.append(Settlement(id, token, JobState.DEAD, error=describe(reason)))
        if dead:
            with suppress(BrokerUnavailableError):  # the other claims were made; a lease ends these
                await self.settle(dead)

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        notifications = self._session.notifications
        topics = [f"+{queue}" for queue in queues]
        with anyio.move_on_after(timeout):
            await notifications.start()
            while True:
                with notifications.listening(topics) as notified:
                    change = await self._call(scripts.NEXT_WORK, encoded(*queues))
                    if not change:
                        return
                    await _wait(notified, float(change))

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> list[LeaseStatus]:
        statuses: list[LeaseStatus] = []
        for first in range(0, len(claims), _CHUNK):
            values = encoded(lease)
            for claim in claims[first : first + _CHUNK]:
                values += encoded(claim.message.id, claim.token)
            statuses += [_STATUSES[code] for code in await self._call(scripts.RENEW, values)]
        return statuses

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        accepted: list[bool] = []
        for first in range(0, len(settlements), _CHUNK):
            values: list[bytes] = []
            for settlement in settlements[first : first + _CHUNK]:
                values += pack_settlement(settlement)
            answer = await self._call(scripts.SETTLE, values)
            accepted += [flag == "1" for flag in answer]
        return accepted

    async def save(self, id: str, token: str, result: bytes) -> bool:
        return await self._call(scripts.SAVE, [*encoded(id, token), result]) == "1"

    async def cancel(self, id: str) -> JobState | None:
        state = await self._call(scripts.CANCEL, encoded(id))
        return JobState(state) if state else None

    async def requeue(self, id: str) -> bool:
        return await self._call(scripts.REQUEUE, encoded(id)) == "1"

    async def get(self, id: str) -> StoredJob | None:
        found = unpack_jobs(await self._ask(scripts.GET, encoded(id)))
        return found[0] if found else None

    async def wait(self, id: str, timeout: float) -> StoredJob | None:
        notifications = self._session.notifications
        with anyio.move_on_after(timeout):
            await notifications.start()
            while True:
                with notifications.listening([f"={id}"]) as notified:
                    answer = await self._ask(scripts.AWAIT, encoded(id))
                    change, _, job = answer.partition(b"\n")
                    found = unpack_jobs(job)
                    if not found:
                        return None
                    if found[0].state in FINAL:
                        return found[0]
                    await _wait(notified, float(change))
        return await self.get(id)

    async def scan(
        self, *, queue: str | None = None, state: JobState | None = None
    ) -> AsyncIterator[StoredJob]:
        last = b"0"
        while last:
            values = [last, *encoded(_CHUNK, queue or "", state or "")]
            last, _, found = (await self._ask(scripts.SCAN, values)).partition(b"\n")
            for job in unpack_jobs(found):
                yield job

    async def count(self, *, queue: str | None = None, state: JobState | None = None) -> int:
        counts = unpack_counts(await self._session.call(self._caller.counts))
        return sum(
            number
            for counted_queue, counted_state, number in counts
            if queue in (None, counted_queue) and state in (None, counted_state)
        )

    async def purge(self, *, state: JobState | None = None, older_than: float = 0.0) -> int:
        purged = 0
        last = "0"
        while last:
            values = encoded(last, _CHUNK, state or "", older_than)
            last, number = (await self._call(scripts.PURGE, values)).split("\n")
            purged += int(number)
        return purged

    async def advance_schedule(
        self, name: str, expected: float | None, tick: float, *, retention: float
    ) -> float:
        replaced = "" if expected is None else float(expected)
        values = encoded(name, replaced, float(tick), retention)
        stored = await self._ask(scripts.ADVANCE_SCHEDULE, values)
        if not stored.startswith(b"?"):
            return float(stored)
        report_tick(name, stored[1:])
        return float(tick)

    async def maintain(self) -> MaintenanceStats:
        version, are_gone = self._keys.report(await self._call(scripts.PRESENT, []))
        if await self._session.check_evictions() or are_gone:
            self._requests_repair = True
        if not WRITES <= version <= READS:  # the server was emptied, or a newer release has opened
            await self._check_jobs(self._session.connection)
        done = [0, 0, 0, 0]
        complete = False
        while not complete:
            answer = await self._call(scripts.MAINTAIN, encoded(_CHUNK))
            *part, more = [int(number) for number in answer.split(" ")]
            done = [a + b for a, b in zip(done, part, strict=True)]
            complete = not more
        await self._repair()
        due, reclaimed, expired, deleted = done
        return MaintenanceStats(due=due, reclaimed=reclaimed, expired=expired, deleted=deleted)

    async def _repair(self) -> None:
        """Run pages of a pass that repairs the indexes, if it is time for one.

        A pass begins with the first maintenance, each hour, after a job was set aside, and when
        keys are gone or were evicted.
        """
        end = anyio.current_time() + _REPAIR_TIME
        while True:
            requested = int(self._requests_repair)
            values = encoded(self._process, _REPAIR_PAGE, _REPAIR_INTERVAL, requested)
            more, corrections = (await self._call(scripts.REPAIR, values)).split(" ")
            self._requests_repair = False
            report_corrections(self._address, self.prefix, int(corrections))
            if more == "0" or anyio.current_time() >= end:
                return

    async def _call(self, script: Script, values: Sequence[bytes]) -> str:
        return (await self._ask(script, values)).decode()

    async def _ask(self, script: Script, values: Sequence[bytes]) -> bytes:
        connection = self._session.connection
        if self._lost_claims:
            await self._release_lost(connection)
        return await self._run(connection, script, values)

    async def _release_lost(self, connection: RedisConnection) -> None:
        """Release what lost claims took; if the server refuses that, their leases end it."""
        lost = [claim for claim in self._lost_claims if claim.left() > 0]
        self._lost_claims = []
        if not lost:
            return
        try:
            await self._send(connection, scripts.RELEASE, release_values(lost))
        except BaseException:
            self._lost_claims += lost
            raise

    async def _run(
        self, connection: RedisConnection, script: Script, values: Sequence[bytes]
    ) -> bytes:
        return bytes(self._session.checked(await self._send(connection, script, values)))

    async def _send(
        self, connection: RedisConnection, script: Script, values: Sequence[bytes]
    ) -> Any:
        """Call a script; return its answer, or an error of the server."""
        answer = await connection.call(self._caller.by_digest(script, values))
        if isinstance(answer, NoScriptError):  # after a restart of the server, for example
            answer = await connection.call(self._caller.by_text(script, values))
        return answer


async def _wait(notified: asyncio.Event, seconds: float) -> None:
    with anyio.move_on_after(min(max(seconds, 0.0) + _SOON, _POLL)):
        await notified.wait()
