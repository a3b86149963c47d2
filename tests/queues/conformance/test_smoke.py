"""A job queue with workers on all brokers.

Other tests of job queues run on the embedded brokers.
"""

from __future__ import annotations

import pytest
from support.brokers.faulty import FaultyBroker

from background import Manager, retry_on
from background.queues import JobFailedError, JobQueue, JobState, chain, group
from background.queues.abc import Broker


async def test_jobs(broker: Broker) -> None:
    """Jobs run, are retried, depend on each other, are cancelled, counted and purged."""
    async with Manager() as manager, JobQueue(FaultyBroker(broker)) as jobs:
        attempts: list[str] = []

        @jobs.handler(name="add")
        async def add(first: int, second: int) -> int:
            return first + second

        @jobs.handler(name="flaky", retry=retry_on(ValueError, attempts=2))
        async def flaky() -> None:
            attempts.append("flaky")
            raise ValueError("no")

        waiting = await add.options(delay=3600).enqueue(1, 2)
        await jobs.start(manager, ["default"])
        assert await (await add.enqueue(1, 2)) == 3
        added = await add.enqueue_many([(n, 1) for n in range(50)])
        assert [await job for job in added] == [n + 1 for n in range(50)]
        steps = chain(group(add.job(1, 1), add.job(2, 2)), add.job(3, 3))
        assert await (await jobs.enqueue(steps)) == 6
        with pytest.raises(JobFailedError, match="ValueError: no"):
            await (await flaky.enqueue())
        assert len(attempts) == 2
        assert await waiting.cancel()
        assert await waiting.wait() is JobState.CANCELLED
        assert await jobs.count(state=JobState.DEAD) == 1
        assert await jobs.purge(older_than=0) == 57
