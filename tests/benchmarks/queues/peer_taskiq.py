"""taskiq with the streams of taskiq-redis, https://github.com/taskiq-python/taskiq-redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from contender import CONCURRENCY, Contender, Ran, at_once
from taskiq.receiver import Receiver
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisStreamBroker


@asynccontextmanager
async def opened(url: str, ran: Ran) -> AsyncIterator[Contender]:
    """Connect.

    - Without a result backend there are no results.
    - After each fetch it looks for unacknowledged jobs of other workers, so `xread_count` is higher
      than its default of 100. `max_prefetch` and `validate_params` correspond to the options
      `--max-prefetch` and `--no-parse` of the command.
    - It acknowledges a job when it has ended, which is the default; entries stay in the stream.
    - The command runs a `Receiver`. `run_receiver_task` does the same, but does not always end when
      it is cancelled.
    - There is no call that enqueues many jobs; more than 10 calls at the same time take longer.
    """
    broker = RedisStreamBroker(url, xread_count=1_000).with_serializer(ORJSONSerializer())

    @broker.task(task_name="noop")
    async def noop(sent: float = 0.0) -> None:
        ran(sent)

    @asynccontextmanager
    async def working() -> AsyncIterator[None]:
        receiver = Receiver(
            broker,
            max_async_tasks=CONCURRENCY,
            max_prefetch=CONCURRENCY,
            validate_params=False,
            run_startup=False,
        )
        finish = asyncio.Event()
        listening = asyncio.create_task(receiver.listen(finish))
        try:
            yield
        finally:
            finish.set()
            await listening

    await broker.startup()
    try:
        yield Contender(
            enqueue=noop.kiq,
            enqueue_many=lambda jobs, _: at_once(10, jobs, noop.kiq),
            working=working,
        )
    finally:
        await broker.shutdown()
