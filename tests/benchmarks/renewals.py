"""Renewals of many leases on NATS: `python tests/benchmarks/renewals.py JOBS LEASE SECONDS`.

Run it with `tests` in `PYTHONPATH`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from time import perf_counter

from support.brokers.nats_servers import nats_server

from background import Manager
from background.queues import JobQueue
from background.queues.abc import Claim, LeaseStatus
from background.queues.nats import NatsBroker


class TimedBroker(NatsBroker):
    """A broker that prints how long renewals take."""

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> list[LeaseStatus]:
        began, outcome = perf_counter(), "failed"
        try:
            statuses = await super().renew(claims, lease=lease)
            outcome = "renewed"
        finally:
            print(f"{outcome}: {len(claims)} leases in {perf_counter() - began:.2f} s")
        return statuses


async def main(count: int, lease: float, seconds: float) -> None:
    """Run jobs that sleep, all of them at once."""
    with nats_server() as server:
        jobs = JobQueue(TimedBroker(server.url), lease=lease)
        runs = 0

        @jobs.handler()
        async def hold() -> None:
            nonlocal runs
            runs += 1
            await asyncio.sleep(seconds)

        async with Manager() as manager, jobs:
            stored = [await hold.enqueue() for _ in range(count)]
            await jobs.start(manager, concurrency=count)
            for job in stored:
                await job.result()
        print(f"{count} jobs ran {runs} times")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
