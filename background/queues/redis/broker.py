"""Jobs in Redis or Valkey: as durable as the server, and shared by any number of hosts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import count
from secrets import token_hex

import anyio
from redis.exceptions import NoScriptError

from .._errors import BrokerUnavailableError
from .._names import check_name
from .._states import FINAL, JobState
from ..abc import Broker, Claim, LeaseStatus, MaintenanceStats, Message, Settlement, StoredJob
from . import script as scripts
from .codec import pack_messages, pack_settlement, unpack_claims, unpack_jobs
from .connection import Address, RedisConnection
from .script import VERSION, Caller, Script, encoded
from .session import Session

_CHUNK = 500  # jobs that one script changes or reads at most, where there may be millions
_POLL = 1.0  # seconds after which waiters look although they were not notified
_SOON = 0.001  # seconds by which a clock may be read too early

_STATUSES = {"H": LeaseStatus.HELD, "L": LeaseStatus.LOST, "C": LeaseStatus.CANCELLED}


class RedisBroker(Broker):
    """Keeps jobs in Redis 6.2 or later, or in Valkey; for one event loop of asyncio.

    Acknowledged jobs are as durable as the server makes them. With `appendonly yes` and
    `appendfsync always` nothing is lost. By default a server that is killed may lose the last
    minutes. The server must not evict keys (`maxmemory-policy noeviction`). All times are the
    server's.

    A call is one script, or one script for each 500 jobs; a claim has 500 jobs at most. Up to 5,000
    messages of 64 MB together are enqueued all or none; of more messages a part may be enqueued if
    the connection is lost.

    Args:
        url: `redis://user:password@host:6379/0`; `rediss://` for TLS, with `ssl_ca_certs`,
            `ssl_certfile`, `ssl_keyfile` and the like in its query; or `unix:///path?db=0`.
        prefix: How the names of all keys begin, in braces.
        timeout: Seconds within which the server must accept a connection, and answer.

    Raises:
        ValueError: An argument is not valid.
    """

    def __init__(self, url: str, *, prefix: str = "background", timeout: float = 5.0) -> None:
        self.prefix = check_name("prefix", prefix)
        self._address = Address(url, timeout)
        self._channel = f"{{{self.prefix}}}:events:{self._address.db}"
        self._caller = Caller(self.prefix, self._channel)
        self._session = Session(self._address, self._channel, self._check_jobs)
        self._id = token_hex(8)  # distinguishes this broker's claims from those of all others
        self._claims = count(1)

    def __repr__(self) -> str:
        return f"<RedisBroker {self._address}, prefix {self.prefix!r}>"

    async def open(self) -> None:
        await self._session.open()

    async def _check_jobs(self, connection: RedisConnection) -> None:
        version = int(await self._run(connection, scripts.OPEN, encoded(VERSION)))
        if version > VERSION:
            raise BrokerUnavailableError(
                f"{self._address}: the jobs of prefix {self.prefix!r} have version {version}, from "
                f"a newer version of this library; this one supports version {VERSION}"
            )

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
            new += [each == "1" for each in answer]
        return new

    async def _check_dependencies(self, messages: Sequence[Message]) -> None:
        """Refuse a job that depends on one that is not stored, before the first of several scripts.

        Raises:
            ValueError: There is such a job.
        """
        new: set[str] = set()
        dependants: dict[str, str] = {}
        for message in messages:
            dependants.update((id, message.id) for id in message.depends_on if id not in new)
            new.add(message.id)
        ids = list(dependants)
        for first in range(0, len(ids), _CHUNK):
            some = ids[first : first + _CHUNK]
            answer = await self._call(scripts.CHECK, encoded(*some))
            for id, is_stored in zip(some, answer, strict=True):
                if is_stored == "0":
                    raise ValueError(
                        f"job {dependants[id]} depends on job {id}, which is not stored"
                    )

    async def claim(self, queues: Sequence[str], most: int, *, lease: float) -> list[Claim]:
        token = f"{self._id}-{next(self._claims)}"
        values = encoded(token, lease, min(most, _CHUNK), *queues)
        return unpack_claims(await self._ask(scripts.CLAIM, values), token)

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
            statuses += [_STATUSES[each] for each in await self._call(scripts.RENEW, values)]
        return statuses

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        accepted: list[bool] = []
        for first in range(0, len(settlements), _CHUNK):
            values: list[bytes] = []
            for settlement in settlements[first : first + _CHUNK]:
                values += pack_settlement(settlement)
            answer = await self._call(scripts.SETTLE, values)
            accepted += [each == "1" for each in answer]
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
        counts: list[bytes] = await self._session.call(self._caller.counts)
        total = 0
        for field, number in zip(counts[::2], counts[1::2], strict=True):
            its_queue, its_state = field.decode().split(" ")
            if queue in (None, its_queue) and state in (None, its_state):
                total += int(number)
        return total

    async def purge(self, *, state: JobState | None = None, older_than: float = 0.0) -> int:
        purged = 0
        last = "0"
        while last:
            values = encoded(last, _CHUNK, state or "", older_than)
            last, some = (await self._call(scripts.PURGE, values)).split("\n")
            purged += int(some)
        return purged

    async def maintain(self) -> MaintenanceStats:
        done = [0, 0, 0, 0]
        complete = False
        while not complete:
            answer = await self._call(scripts.MAINTAIN, encoded(_CHUNK))
            part = [int(each) for each in answer.split(" ")]
            done = [a + b for a, b in zip(done, part, strict=True)]
            complete = sum(part[:3]) < _CHUNK and part[3] < _CHUNK
        due, reclaimed, expired, deleted = done
        return MaintenanceStats(due=due, reclaimed=reclaimed, expired=expired, deleted=deleted)

    async def _call(self, script: Script, values: Sequence[bytes]) -> str:
        return (await self._ask(script, values)).decode()

    async def _ask(self, script: Script, values: Sequence[bytes]) -> bytes:
        return await self._run(self._session.connection, script, values)

    async def _run(
        self, connection: RedisConnection, script: Script, values: Sequence[bytes]
    ) -> bytes:
        answer = await connection.call(self._caller.by_digest(script, values))
        if isinstance(answer, NoScriptError):  # the server was restarted
            answer = await connection.call(self._caller.by_text(script, values))
        return bytes(self._session.checked(answer))


async def _wait(notified: asyncio.Event, seconds: float) -> None:
    with anyio.move_on_after(min(max(seconds, 0.0) + _SOON, _POLL)):
        await notified.wait()
