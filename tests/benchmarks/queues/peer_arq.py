"""arq, https://github.com/python-arq/arq."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from arq import create_pool, func
from arq.connections import RedisSettings
from arq.worker import Worker
from contender import CONCURRENCY, Contender, Ran, at_once, running


@asynccontextmanager
async def opened(url: str, ran: Ran) -> AsyncIterator[Contender]:
    """Connect.

    - A worker always waits for `poll_delay`, even when jobs are queued: with the default of half a
      second it runs 500 jobs a second, with 0 it uses a whole core while it is idle.
    - `keep_result=0` and `log_results=False` discard results.
    - There is no call that enqueues many jobs; more than 10 calls at the same time take longer.
    """

    async def noop(ctx: Any, sent: float = 0.0) -> None:
        ran(sent)

    pool = await create_pool(RedisSettings.from_dsn(url))
    enqueue = partial(pool.enqueue_job, "noop")

    def working() -> AbstractAsyncContextManager[None]:
        worker = Worker(
            [func(noop, name="noop", keep_result=0)],
            redis_pool=pool,
            max_jobs=CONCURRENCY,
            poll_delay=0,
            log_results=False,
            handle_signals=False,
        )
        return running(worker.async_run())

    try:
        yield Contender(
            enqueue=enqueue,
            enqueue_many=lambda jobs, _: at_once(10, jobs, enqueue),
            working=working,
        )
    finally:
        await pool.aclose(close_connection_pool=True)
