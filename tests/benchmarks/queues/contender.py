"""What every contender can do, in words that need nothing but Python: peers run where we are not.

A contender is a module with a function `opened(url, ran)`, which connects to a server and gives a
`Contender`. Each job calls `ran` with the time that it was enqueued at, 0 if nobody asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

#: How many jobs a worker may have in flight.
CONCURRENCY = 50

Ran = Callable[[float], None]


@dataclass(frozen=True)
class Contender:
    """Something that is connected.

    - `enqueue`: one job, with the time that it is enqueued at.
    - `enqueue_many`: so many jobs; and how many in a call, for those that have a call for many.
    - `working`: runs a worker for as long as the block takes.
    """

    enqueue: Callable[[float], Awaitable[Any]]
    enqueue_many: Callable[[int, int], Awaitable[None]]
    working: Callable[[], AbstractAsyncContextManager[Any]]


def batches(jobs: int, batch: int) -> list[int]:
    """Return how many jobs to enqueue in each call."""
    return [min(batch, jobs - done) for done in range(0, jobs, batch)]


async def at_once(most: int, jobs: int, enqueue: Callable[[], Awaitable[Any]]) -> None:
    """Enqueue one by one, `most` at the same time."""
    left = iter(range(jobs))

    async def some() -> None:
        for _ in left:
            await enqueue()

    await asyncio.gather(*(some() for _ in range(most)))


@asynccontextmanager
async def running(worker: Coroutine[Any, Any, Any]) -> AsyncIterator[None]:
    """Run a worker in a task of its own, and end it by cancelling it."""
    task = asyncio.create_task(worker)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
