"""Durable jobs, processed by the process that enqueues them; no server is needed.

    python examples/jobs.py                             # stores them in the file jobs.db
    python examples/jobs.py redis://localhost:6379?prefix=example   # or on a server
    python examples/jobs.py nats://localhost:4222?prefix=example

Interrupt it, or kill it: the next run finishes the jobs that are left. Jobs of other programs in
the same file or on the same server are not touched.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

import anyio

from background import Manager
from background.observers import LoggingObserver
from background.queues import (
    DuplicateJobError,
    JobContext,
    JobQueue,
    chain,
    group,
)

URL = sys.argv[1] if sys.argv[1:] else "sqlite:///jobs.db"

# An ended job is stored for a minute, by default for a day.
jobs = JobQueue.from_url(URL, lease=3, retention=60)


@jobs.handler(name="send_receipt", queue="mail", retry=5, timeout=30)
async def send_receipt(order: int) -> str:
    if order % 3 == 0 and JobContext.current().attempt == 1:
        raise ConnectionError("the mail server is busy")
    await anyio.sleep(0.2)
    return f"the receipt of order {order} is out"


@jobs.handler(name="count_sales", queue="reports")
def count_sales(month: int) -> int:
    return 100 + month  # a sync function runs in a thread


@jobs.handler(name="add_up", queue="reports")
async def add_up() -> int:
    return sum(JobContext.current().previous)  # the results of the previous step


OURS = {handler.name for handler in (send_receipt, count_sales, add_up)}


async def main() -> None:
    observers = [LoggingObserver()]
    async with jobs, Manager(observers=observers, signals=True, grace=1) as manager:
        stored = [info async for info in jobs.list() if info.handler in OURS]
        left = [info.id for info in stored if not info.state.is_final]
        print(f"{len(left)} jobs are left from before")
        receipts = await send_receipt.enqueue_many((order,) for order in range(1, 6))
        with suppress(DuplicateJobError):  # if it is stored from before
            await send_receipt.options(delay=1, id="order-6").enqueue(6)
        months = [count_sales.job(month) for month in (1, 2, 3)]
        quarter = await jobs.enqueue(chain(group(*months), add_up.job()))
        await jobs.start(manager, queues=["mail", "reports"], concurrency=3)
        for receipt in receipts:
            print(await receipt.result(timeout=30))
        print(f"{await quarter.result(timeout=30)} sales in the first quarter")
        print(await jobs.handle("order-6").result(timeout=30))
        for id in left:
            await jobs.handle(id).wait()  # those of a killed process


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    with suppress(KeyboardInterrupt):
        anyio.run(main)
