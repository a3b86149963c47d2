"""Leaving of a queue's block while jobs run."""

from __future__ import annotations

import logging

import anyio
import pytest
from support.brokers.faulty import FaultyBroker
from support.time import Clock, ages

from background import Manager
from background.queues import JobQueue, JobState


@pytest.mark.parametrize("workers", [1, 2])
async def test_leave_timeout(broker: FaultyBroker, clock: Clock, workers: int) -> None:
    """Leaving a queue releases the jobs that still run after the manager's `leave_timeout`."""
    started = anyio.Event()
    jobs = JobQueue(broker)

    @jobs.handler(name="endless")
    async def endless() -> None:
        started.set()
        await ages()

    async with Manager(leave_timeout=30) as manager:
        async with jobs:
            job = await endless.enqueue()
            for _ in range(workers):
                await jobs.start(manager)
            await started.wait()
            began = clock.now
        assert clock.now - began == pytest.approx(30)
    stored = await broker.real.get(job.id)
    assert stored is not None
    assert (stored.state, stored.attempt) == (JobState.READY, 0)


async def test_record(broker: FaultyBroker, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Leaving a queue records every ten seconds which jobs it waits for."""
    caplog.set_level(logging.INFO, logger="background")
    started = anyio.Event()
    jobs = JobQueue(broker)

    @jobs.handler(name="slow")
    async def slow() -> None:
        started.set()
        await anyio.sleep(25)

    async with Manager(name="app") as manager, jobs:
        job = await slow.enqueue()
        await jobs.start(manager)
        await started.wait()
    line = slow.fn.__code__.co_firstlineno + 3
    expected = f"a worker in manager 'app' still waits for 1 task: 'slow' at test_leaving.py:{line}"
    assert caplog.messages == [expected] * 2
    stored = await broker.real.get(job.id)
    assert stored is not None
    assert stored.state is JobState.SUCCEEDED
