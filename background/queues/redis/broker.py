"""Jobs in Redis or Valkey: durable as the server is, and shared by any number of hosts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import count
from secrets import token_hex

import anyio
from redis.exceptions import NoScriptError

from .._errors import BrokerUnavailableError
from .._names import check
from .._states import FINAL, JobState
from ..abc import Broker, Claim, LeaseStatus, MaintenanceStats, Message, Settlement, StoredJob
from . import queries as looks
from . import transitions as life
from .codec import pack_messages, pack_settlement, unpack_claims, unpack_jobs
from .connection import Address, Link
from .script import VERSION, Caller, Script, encoded
from .session import Session

_CHUNK = 500  # jobs that one script changes or reads at most, where there may be millions
_LOOK = 1.0  # seconds after which those who wait look, though they heard nothing
_SOON = 0.001  # seconds by which time may be read too early

_HOLDS = {"K": LeaseStatus.KEPT, "L": LeaseStatus.LOST, "C": LeaseStatus.CANCELLED}


class RedisBroker(Broker):
    """Keeps jobs in Redis 6.2 or later, or in Valkey; for one event loop of asyncio.

    - `url`: `redis://user:password@host:6379/0`, `rediss://` for TLS, with `ssl_ca_certs`,
      `ssl_certfile`, `ssl_keyfile` and the like in its query, or `unix:///path?db=0`.
    - `prefix`: what the names of all keys begin with, in braces.
    - `timeout`: seconds within which the server has to be connected, and to answer.

    What has been acknowledged is as durable as the server makes it: with `appendonly yes` and
    `appendfsync always` nothing is lost, by default Redis may lose the last minutes if it is
    killed. It must not evict keys (`maxmemory-policy noeviction`). All times are the server's.

    A call is one script, or one for each 500 jobs, which are the most that are claimed at once. Up
    to 5,000 messages, of 64 MB together, are enqueued all or none; of more, a part may have been if
    the connection is lost.

    Raises `ValueError` for a URL, a prefix or a timeout that can't be.
    """

    def __init__(self, url: str, *, prefix: str = "background", timeout: float = 5.0) -> None:
        self.prefix = check("prefix", prefix)
        self._address = Address(url, timeout)
        self._channel = f"{{{self.prefix}}}:events:{self._address.db}"
        self._caller = Caller(self.prefix, self._channel)
        self._session = Session(self._address, self._channel, self._check_jobs)
        self._id = token_hex(8)  # tells this broker's claims from those of all others
        self._claims = count(1)

    def __repr__(self) -> str:
        return f"<RedisBroker {self._address}, prefix {self.prefix!r}>"

    async def open(self) -> None:
        await self._session.open()

    async def _check_jobs(self, link: Link) -> None:
        version = int(await self._run(link, looks.OPEN, encoded(VERSION)))
        if version > VERSION:
            raise BrokerUnavailableError(
                f"{self._address}: the jobs of prefix {self.prefix!r} have version {version}, made "
                f"by a newer version of this library, which knows {VERSION}"
            )

    async def close(self) -> None:
        await self._session.close()

    async def enqueue(self, messages: Sequence[Message]) -> list[bool]:
        parts = pack_messages(messages)
        if len(parts) > 1:
            await self._check_needs(messages)
        new: list[bool] = []
        for part in parts:
            answer = await self._call(life.ENQUEUE, [part])
            if answer.startswith("?"):
                raise ValueError(answer[1:])
            new += [each == "1" for each in answer]
        return new

    async def _check_needs(self, messages: Sequence[Message]) -> None:
        """Raise `ValueError` before the first script of several has done anything."""
        new: set[str] = set()
        unknown: dict[str, str] = {}
        for message in messages:
            unknown.update((need, message.id) for need in message.needs if need not in new)
            new.add(message.id)
        needed = list(unknown)
        for first in range(0, len(needed), _CHUNK):
            some = needed[first : first + _CHUNK]
            answer = await self._call(life.CHECK, encoded(*some))
            for need, known in zip(some, answer, strict=True):
                if known == "0":
                    id = unknown[need]
                    raise ValueError(f"job {id} needs the job {need}, which is not known")

    async def claim(self, queues: Sequence[str], most: int, *, lease: float) -> list[Claim]:
        token = f"{self._id}-{next(self._claims)}"
        values = encoded(token, lease, min(most, _CHUNK), *queues)
        return unpack_claims(await self._ask(life.CLAIM, values), token)

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        listener = self._session.listener
        topics = [f"+{queue}" for queue in queues]
        with anyio.move_on_after(timeout):
            await listener.start()
            while True:
                with listener.expecting(topics) as news:
                    change = await self._call(looks.LOOK, encoded(*queues))
                    if not change:
                        return
                    await _wait(news, float(change))

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> list[LeaseStatus]:
        holds: list[LeaseStatus] = []
        for first in range(0, len(claims), _CHUNK):
            values = encoded(lease)
            for each in claims[first : first + _CHUNK]:
                values += encoded(each.message.id, each.token)
            holds += [_HOLDS[each] for each in await self._call(life.RENEW, values)]
        return holds

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        accepted: list[bool] = []
        for first in range(0, len(settlements), _CHUNK):
            values: list[bytes] = []
            for each in settlements[first : first + _CHUNK]:
                values += pack_settlement(each)
            answer = await self._call(life.SETTLE, values)
            accepted += [each == "1" for each in answer]
        return accepted

    async def save(self, id: str, token: str, result: bytes) -> bool:
        return await self._call(life.SAVE, [*encoded(id, token), result]) == "1"

    async def cancel(self, id: str) -> JobState | None:
        state = await self._call(life.CANCEL, encoded(id))
        return JobState(state) if state else None

    async def requeue(self, id: str) -> bool:
        return await self._call(life.REQUEUE, encoded(id)) == "1"

    async def get(self, id: str) -> StoredJob | None:
        found = unpack_jobs(await self._ask(looks.GET, encoded(id)))
        return found[0] if found else None

    async def wait(self, id: str, timeout: float) -> StoredJob | None:
        listener = self._session.listener
        with anyio.move_on_after(timeout):
            await listener.start()
            while True:
                with listener.expecting([f"={id}"]) as news:
                    answer = await self._ask(looks.AWAIT, encoded(id))
                    change, _, job = answer.partition(b"\n")
                    found = unpack_jobs(job)
                    if not found:
                        return None
                    if found[0].state in FINAL:
                        return found[0]
                    await _wait(news, float(change))
        return await self.get(id)

    async def scan(
        self, *, queue: str | None = None, state: JobState | None = None
    ) -> AsyncIterator[StoredJob]:
        last = b"0"
        while last:
            values = [last, *encoded(_CHUNK, queue or "", state or "")]
            last, _, found = (await self._ask(looks.SCAN, values)).partition(b"\n")
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
            last, some = (await self._call(looks.PURGE, values)).split("\n")
            purged += int(some)
        return purged

    async def maintain(self) -> MaintenanceStats:
        done = [0, 0, 0, 0]
        complete = False
        while not complete:
            answer = await self._call(looks.MAINTAIN, encoded(_CHUNK))
            part = [int(each) for each in answer.split(" ")]
            done = [a + b for a, b in zip(done, part, strict=True)]
            complete = sum(part[:3]) < _CHUNK and part[3] < _CHUNK
        due, reclaimed, expired, forgotten = done
        return MaintenanceStats(due=due, reclaimed=reclaimed, expired=expired, forgotten=forgotten)

    async def _call(self, script: Script, values: Sequence[bytes]) -> str:
        return (await self._ask(script, values)).decode()

    async def _ask(self, script: Script, values: Sequence[bytes]) -> bytes:
        return await self._run(self._session.link, script, values)

    async def _run(self, link: Link, script: Script, values: Sequence[bytes]) -> bytes:
        answer = await link.call(self._caller.by_digest(script, values))
        if isinstance(answer, NoScriptError):  # as after a restart of the server
            answer = await link.call(self._caller.by_text(script, values))
        return bytes(self._session.checked(answer))


async def _wait(news: asyncio.Event, seconds: float) -> None:
    with anyio.move_on_after(min(max(seconds, 0.0) + _SOON, _LOOK)):
        await news.wait()
