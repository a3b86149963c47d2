"""This library."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from contender import CONCURRENCY, Contender, Ran, batches
from servers import is_here

from background import Manager
from background.queues import JobQueue, Ordered

#: What there is to keep jobs in.
BROKERS = [broker for broker in ("memory", "sqlite", "redis", "nats") if is_here(broker)]


@asynccontextmanager
async def opened(url: str, ran: Ran) -> AsyncIterator[Contender]:
    """Connect; jobs are forgotten when they have ended, as those of the peers are."""
    # Older versions of SQLite may harm a file that several processes use; here it is of no value.
    warnings.filterwarnings("ignore", "several connections", RuntimeWarning)
    jobs = JobQueue.from_url(url, retention=0.0)

    @jobs.handler(name="noop", queue="bench", store_result=False)
    async def noop(sent: float = 0.0) -> None:
        ran(sent)

    async def enqueue_many(number: int, batch: int) -> None:
        for each in batches(number, batch):
            await noop.enqueue_many([()] * each)

    @asynccontextmanager
    async def working() -> AsyncIterator[None]:
        async with Manager() as manager:
            queues = Ordered("bench")
            worker = await jobs.start(manager, queues=queues, concurrency=CONCURRENCY)
            yield
            await worker.close()

    async with jobs:
        yield Contender(enqueue=noop.enqueue, enqueue_many=enqueue_many, working=working)
