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

    - `ttl=0` keeps no result, `silent` logs none.
    - How much is fetched ahead makes no difference, and is left at its default.
    - A `Worker` can be entered once only, so there is another one to run.
    """

    async def noop(sent: float = 0.0) -> None:
        ran(sent)

    def made() -> tuple[Worker[None], Any]:
        worker: Worker[None] = Worker(redis_url=url, concurrency=CONCURRENCY, handle_signals=False)
        return worker, worker.task(noop, name="noop", ttl=0, silent=True)

    client, task = made()

    async def enqueue_many(jobs: int, batch: int) -> None:
        for each in batches(jobs, batch):
            await client.enqueue_many([task.enqueue() for _ in range(each)])

    def working() -> AbstractAsyncContextManager[None]:
        worker, _ = made()
        return running(worker.run_async())

    async with client:
        yield Contender(enqueue=task.enqueue, enqueue_many=enqueue_many, working=working)
