"""SAQ, https://github.com/tobymao/saq."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import orjson
import saq
from contender import CONCURRENCY, Contender, Ran, at_once, running


@asynccontextmanager
async def opened(url: str, ran: Ran) -> AsyncIterator[Contender]:
    """Connect.

    - `ttl=-1` deletes a job when it has ended; `timeout=0` sets no deadline.
    - `max_concurrent_ops` has the default 20, which is less than the worker's concurrency.
    - `dump` and `load` select another JSON library.
    - There is no call that enqueues many jobs: `map` waits for the results. SAQ's own benchmark
      enqueues several jobs at the same time (benchmarks/simple.py).
    """

    async def noop(ctx: Any, *, sent: float = 0.0) -> None:
        ran(sent)

    queue = saq.Queue.from_url(
        url, dump=orjson.dumps, load=orjson.loads, max_concurrent_ops=2 * CONCURRENCY
    )
    await queue.connect()
    enqueue = partial(queue.enqueue, "noop", ttl=-1, timeout=0)

    def working() -> AbstractAsyncContextManager[None]:
        worker = saq.Worker(queue, [("noop", noop)], concurrency=CONCURRENCY)
        return running(worker.start())

    try:
        yield Contender(
            enqueue=lambda sent: enqueue(sent=sent),
            enqueue_many=lambda jobs, _: at_once(CONCURRENCY, jobs, enqueue),
            working=working,
        )
    finally:
        await queue.disconnect()
