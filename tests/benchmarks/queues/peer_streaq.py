"""streaQ, https://github.com/tastyware/streaq."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from contender import CONCURRENCY, Contender, Ran, batches, running
from streaq import Worker


@asynccontextmanager
async def opened(url: str, ran: Ran) -> AsyncIterator[Contender]:
    """Connect.

    - `ttl=0` stores no result; `silent` logs none.
    - The prefetch makes no difference and has its default.
    - A `Worker` can be entered only once, so a second one runs the jobs.
    """

    async def noop(sent: float = 0.0) -> None:
        ran(sent)

    def make() -> tuple[Worker[None], Any]:
        worker: Worker[None] = Worker(redis_url=url, concurrency=CONCURRENCY, handle_signals=False)
        return worker, worker.task(noop, name="noop", ttl=0, silent=True)

    client, task = make()

    async def enqueue_many(jobs: int, batch: int) -> None:
        for size in batches(jobs, batch):
            await client.enqueue_many([task.enqueue() for _ in range(size)])

    def working() -> AbstractAsyncContextManager[None]:
        worker, _ = make()
        return running(worker.run_async())

    async with client:
        yield Contender(enqueue=task.enqueue, enqueue_many=enqueue_many, working=working)
