"""The interface of contenders, which uses only the standard library: peers run without this one.

A contender is a module with a context manager `opened(url, ran)`, which connects to a server and
returns a `Contender`. A job calls `ran` with the time when it was enqueued, or 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

#: Maximum of jobs that a worker runs at the same time.
CONCURRENCY = 50

Ran = Callable[[float], None]


@dataclass(frozen=True)
class Contender:
    """A connected contender.

    Args:
        enqueue: Enqueues a job, with the current time.
        enqueue_many: Enqueues a number of jobs, with a number per call if there is such a call.
        working: Runs a worker until the block ends.
    """

    enqueue: Callable[[float], Awaitable[Any]]
    enqueue_many: Callable[[int, int], Awaitable[None]]
    working: Callable[[], AbstractAsyncContextManager[Any]]


def batches(jobs: int, batch: int) -> list[int]:
    """Return the numbers of jobs for the calls."""
    return [min(batch, jobs - done) for done in range(0, jobs, batch)]


async def at_once(maximum: int, jobs: int, enqueue: Callable[[], Awaitable[Any]]) -> None:
    """Enqueue jobs one by one, with at most `maximum` calls at the same time."""
    remaining = iter(range(jobs))

    async def enqueue_remaining() -> None:
        for _ in remaining:
            await enqueue()

    await asyncio.gather(*(enqueue_remaining() for _ in range(maximum)))


@asynccontextmanager
async def running(worker: Coroutine[Any, Any, Any]) -> AsyncIterator[None]:
    """Run a worker in a task, and cancel it at the end."""
    task = asyncio.create_task(worker)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
