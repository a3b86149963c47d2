"""This library as a contender."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from contender import CONCURRENCY, Contender, Ran, batches
from servers import is_available

from background import Manager
from background.queues import JobQueue, Ordered

#: The available brokers.
BROKERS = [broker for broker in ("memory", "sqlite", "redis", "nats") if is_available(broker)]


@asynccontextmanager
async def opened(url: str, ran: Ran) -> AsyncIterator[Contender]:
    """Connect; ended jobs are deleted immediately, like those of the peers."""
    # Older versions of SQLite may corrupt a file that several processes use; it is temporary here.
    warnings.filterwarnings("ignore", "several connections", RuntimeWarning)
    jobs = JobQueue.from_url(url, retention=0.0)

    @jobs.handler(name="noop", queue="bench", store_result=False)
    async def noop(sent: float = 0.0) -> None:
        ran(sent)

    async def enqueue_many(number: int, batch: int) -> None:
        for size in batches(number, batch):
            await noop.enqueue_many([()] * size)

    @asynccontextmanager
    async def working() -> AsyncIterator[None]:
        async with Manager() as manager:
            queues = Ordered("bench")
            worker = await jobs.start(manager, queues=queues, concurrency=CONCURRENCY)
            yield
            await worker.close()

    async with jobs:
        yield Contender(enqueue=noop.enqueue, enqueue_many=enqueue_many, working=working)
