"""The bare Redis client: the minimum of work for a job of this library.

One call enqueues many jobs, with unique ids. One call fetches a job for every free slot; a job runs
in a task with a cancel scope. One call settles the jobs that ended within 2 ms.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import anyio
from contender import CONCURRENCY, Contender, Ran, batches
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

STREAM = "floor"
PAUSE = 0.002  # seconds
BLOCK = 1_000  # milliseconds

# KEYS: the stream; ARGV: id and body of each job.
ENQUEUE = """
for i = 1, #ARGV, 2 do
  if redis.call('SET', 'floor:' .. ARGV[i], '', 'NX') then
    redis.call('XADD', KEYS[1], '*', 'id', ARGV[i], 'body', ARGV[i + 1])
  end
end
"""
# KEYS: the stream; ARGV: the entry and the id of each job.
SETTLE = """
for i = 1, #ARGV, 2 do
  if redis.call('XACK', KEYS[1], 'workers', ARGV[i]) == 1 then
    redis.call('XDEL', KEYS[1], ARGV[i])
    redis.call('DEL', 'floor:' .. ARGV[i + 1])
  end
end
"""


class Worker:
    """Fetches, runs and settles jobs."""

    def __init__(self, url: str, ran: Ran) -> None:
        retry = Retry(NoBackoff(), 0)
        self._redis = Redis.from_url(url, retry=retry)
        self._blocked = Redis.from_url(url, retry=retry)
        self._settle = self._redis.register_script(SETTLE)
        self._ran = ran
        self._free = CONCURRENCY
        self._ended: list[bytes] = []
        self._changed = anyio.Event()

    async def run(self) -> None:
        async with self._redis, self._blocked, anyio.create_task_group() as group:
            group.start_soon(self._settle_ended)
            while True:
                while not self._free:
                    self._changed = anyio.Event()
                    await self._changed.wait()
                response = await self._blocked.xreadgroup(
                    "workers", "one", {STREAM: ">"}, count=self._free, block=BLOCK
                )
                for _, entries in response:
                    self._free -= len(entries)
                    for entry, fields in entries:
                        group.start_soon(self._run_one, entry, fields)

    async def _noop(self, sent: float) -> None:
        self._ran(sent)

    async def _run_one(self, entry: bytes, fields: dict[bytes, bytes]) -> None:
        with anyio.CancelScope():
            await self._noop(float(fields[b"body"]))
        self._ended += (entry, fields[b"id"])
        self._free += 1
        self._changed.set()

    async def _settle_ended(self) -> None:
        while True:
            await anyio.sleep(PAUSE)
            if self._ended:
                ended, self._ended = self._ended, []
                await self._settle([STREAM], ended)


@asynccontextmanager
async def opened(url: str, ran: Ran) -> AsyncIterator[Contender]:
    """Connect."""
    async with Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as redis:
        enqueue = redis.register_script(ENQUEUE)
        try:
            await redis.xgroup_create(STREAM, "workers", id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

        async def enqueue_many(jobs: int, batch: int) -> None:
            for size in batches(jobs, batch):
                await enqueue([STREAM], [arg for _ in range(size) for arg in (uuid4().hex, "0")])

        @asynccontextmanager
        async def working() -> AsyncIterator[None]:
            async with anyio.create_task_group() as group:
                group.start_soon(Worker(url, ran).run)
                yield
                group.cancel_scope.cancel()

        yield Contender(
            enqueue=lambda sent: enqueue([STREAM], [uuid4().hex, repr(sent)]),
            enqueue_many=enqueue_many,
            working=working,
        )
