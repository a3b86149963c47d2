"""The kinds of brokers in the conformance tests, and how time passes for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import anyio
from redis import Redis

from background.queues.abc import Broker, Results
from background.queues.memory import MemoryBroker, MemoryResults
from background.queues.redis import RedisBroker, RedisResults
from background.queues.redis.script import FIELDS
from background.queues.sqlite import SQLiteBroker, SQLiteResults
from background.testing import virtual_wall_clock
from support.brokers import redis_servers as servers
from support.brokers.nats_servers import make_nats_broker, served, virtually_served
from support.time import SOON

S = TypeVar("S", Broker, Results)


async def sleep(broker: Any, seconds: float) -> None:
    """Let time pass for a broker that uses the event loop's clock."""
    await anyio.sleep(seconds)


#: Makes all data under a prefix older, and notifies all waiters.
AGE = """
local prefix, seconds, channel = ARGV[1], tonumber(ARGV[2]), ARGV[3]
for _, key in ipairs(redis.call('KEYS', prefix .. 'result:*')) do
  redis.call('PEXPIRE', key, redis.call('PTTL', key) - seconds * 1000)
end
local jobs = redis.call('HGETALL', prefix .. 'jobs')
for i = 1, #jobs, 2 do
  local id, job = jobs[i], cmsgpack.unpack(jobs[i + 1])
  for place = 4, #ARGV do
    local field = tonumber(ARGV[place])
    if job[field] then job[field] = job[field] - seconds end
  end
  redis.call('HSET', prefix .. 'jobs', id, cmsgpack.pack(job))
  redis.call('PUBLISH', channel, '=' .. id)
end
for _, name in ipairs({'changing', 'kept'}) do
  for _, id in ipairs(redis.call('ZRANGE', prefix .. name, 0, -1)) do
    redis.call('ZINCRBY', prefix .. name, -seconds, id)
  end
end
local schedules = redis.call('HGETALL', prefix .. 'schedules')
for i = 1, #schedules, 2 do
  local tick, till = string.match(schedules[i + 1], '^(%S+) (%S+)$')
  redis.call('HSET', prefix .. 'schedules', schedules[i], tick .. ' ' .. (till - seconds))
end
for _, field in ipairs({'until', 'next'}) do
  local time = redis.call('HGET', prefix .. 'repair', field)
  if time then redis.call('HSET', prefix .. 'repair', field, time - seconds) end
end
for _, queue in ipairs(redis.call('HKEYS', prefix .. 'idle')) do
  redis.call('PUBLISH', channel, '+' .. queue)
end
"""
TIMES = [FIELDS.index(field) + 1 for field in ("STARTED", "FINISHED", "DUE", "EXPIRES", "AT")]
_prefixes = count()


def make_redis(name: str, folder: Path) -> RedisBroker:
    """Make a broker with a new prefix on the shared server."""
    return RedisBroker(servers.server(name).url, prefix=f"test-{next(_prefixes)}")


def make_redis_results(name: str, folder: Path) -> RedisResults:
    """Make a results store with a new prefix on the shared server."""
    return RedisResults(servers.server(name).url, prefix=f"test-{next(_prefixes)}")


async def age(store: RedisBroker | RedisResults, seconds: float, *, name: str) -> None:
    """Let time pass for a store that uses the server's clock."""
    prefix = f"{{{store.prefix}}}:"
    with Redis.from_url(servers.server(name).url) as client:
        client.eval(AGE, 0, prefix, seconds, f"{prefix}events:0", *TIMES)


@dataclass(frozen=True)
class Kind:
    """A kind of broker.

    Args:
        make: Makes an empty broker, with a folder for its files.
        results: Makes an empty results store; None if this kind has none.
        backends: The backends of its tests, as for the `anyio_backend` fixture.
        elapse: Lets seconds pass for a broker or a results store, in real or simulated time.
        second: Real seconds that represent one second where a test really waits.
        late: Seconds by which such a wait may end late.
        long: Steps of a long chain; more than Python's recursion limit.
    """

    make: Callable[[Path], Broker]
    results: Callable[[Path], Results] | None
    backends: tuple[str, ...] = ("virtual-asyncio", "virtual-trio")
    elapse: Callable[[Any, float], Awaitable[None]] = sleep
    second: float = 1.0
    late: float = 1.0
    long: int = 3000

    async def wait_for_acks(self, broker: Any, queue: str) -> None:
        """Wait until the server has processed what claims sent without waiting for an answer."""

    @asynccontextmanager
    async def opened(self, made: S) -> AsyncIterator[S]:
        """Open a broker or a results store, under a virtual wall clock."""
        _kinds[made] = self
        with virtual_wall_clock(datetime(2030, 1, 1, tzinfo=UTC)):
            await made.open()
            try:
                yield made
            finally:
                await made.close()
                await made.close()


_kinds: WeakKeyDictionary[Broker | Results, Kind] = WeakKeyDictionary()


async def elapse(store: Broker | Results, seconds: float) -> None:
    """Let `seconds` pass for a broker or a results store."""
    await _kinds[store].elapse(store, seconds)


@dataclass(frozen=True)
class NatsKind(Kind):
    """Brokers with separate prefixes on the shared NATS server."""

    @asynccontextmanager
    async def opened(self, made: S) -> AsyncIterator[S]:
        _kinds[made] = self
        async with served(made):
            yield made


@dataclass(frozen=True)
class VirtualNatsKind(Kind):
    """NATS brokers in virtual time, which stops while an answer of the server is awaited.

    Messages that the server sends by itself are not awaited, so this fits only tests of requests
    and answers, like the conformance tests.
    """

    @asynccontextmanager
    async def opened(self, made: S) -> AsyncIterator[S]:
        _kinds[made] = self
        async with virtually_served(made):
            yield made

    async def wait_for_acks(self, broker: Any, queue: str) -> None:
        broker._ready._send_acks()
        while (await broker._ready.status([queue]))[1]:
            pass  # each request is a round trip, during which time stops


KINDS: dict[str, Kind] = {
    "memory": Kind(lambda folder: MemoryBroker(), lambda folder: MemoryResults()),
    "sqlite": Kind(
        lambda folder: SQLiteBroker(folder / "jobs.db"),
        lambda folder: SQLiteResults(folder / "results.db"),
    ),
    **{
        name: Kind(
            partial(make_redis, name),
            partial(make_redis_results, name),
            ("asyncio",) if name == "redis" else ("uvloop",),
            partial(age, name=name),
            second=0.02,
            late=SOON,
        )
        for name in servers.available()
    },
    "nats": NatsKind(lambda folder: make_nats_broker(), None, ("asyncio",)),
    "virtual-nats": VirtualNatsKind(
        lambda folder: make_nats_broker(), None, ("virtual-asyncio",), late=2.0, long=1100
    ),
}


#: The kinds for tests above the conformance suite, where the kind of broker makes no difference.
EMBEDDED = ("memory", "sqlite")


def cases(*, conformance: bool) -> list[tuple[str, str]]:
    """Return pairs of kind and backend for the tests with a `broker_kind`."""
    names = [name for name in KINDS if name != "nats"] if conformance else EMBEDDED
    return [(name, backend) for name in names for backend in KINDS[name].backends]
