"""Leaving of a queue's block: while jobs run, in another task, and without a block."""

from __future__ import annotations

import logging
from pathlib import Path

import anyio
import pytest
from support.brokers.faulty import FaultyBroker
from support.brokers.kinds import Kind
from support.leaving import run_in_task
from support.time import Clock, ages

from background import Manager, TaskCancelled, every
from background.queues import JobQueue, JobState, QueueError
from background.testing import RecordingObserver


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


async def test_enqueue_while_leaving(broker: FaultyBroker, clock: Clock) -> None:
    """Tasks and jobs enqueue until the manager has closed, if the queue was entered before it."""
    jobs = JobQueue(broker)

    @jobs.handler(name="h")
    async def enqueue(left: int) -> None:
        await anyio.sleep(1)
        if left:
            await enqueue.enqueue(left - 1)

    async with jobs, Manager(leave_timeout=30) as manager:
        await jobs.start(manager)
        job = await enqueue.enqueue(1)
        await broker.called("settle")
        manager.run(enqueue, 1)
    assert await broker.real.count() == 3
    stored = await broker.real.get(job.id)
    assert stored is not None
    assert stored.state is JobState.SUCCEEDED


@pytest.mark.parametrize("workers", [1, 4])
async def test_stuck_jobs(broker: FaultyBroker, clock: Clock, workers: int) -> None:
    """Leaving a queue waits for the stuck jobs of all workers at the same time, and only once."""
    running, release = anyio.Semaphore(0), anyio.Event()
    jobs = JobQueue(broker)

    @jobs.handler(name="stuck")
    async def stuck() -> None:
        running.release()
        with anyio.CancelScope(shield=True):
            await release.wait()

    async with Manager(leave_timeout=1, cancel_timeout=2) as manager:
        async with jobs:
            for _ in range(workers):
                await stuck.enqueue()
                await jobs.start(manager, concurrency=1)
                await running.acquire()
            began = clock.now
        assert clock.now - began == pytest.approx(3)
        release.set()


async def test_leave_after_stuck_job(broker: FaultyBroker, clock: Clock) -> None:
    """Leaving a queue does not wait for a job that a closed worker has given up."""
    running, release = anyio.Event(), anyio.Event()
    jobs = JobQueue(broker)

    @jobs.handler(name="stuck")
    async def stuck() -> None:
        running.set()
        with anyio.CancelScope(shield=True):
            await release.wait()

    async with Manager(cancel_timeout=2) as manager:
        async with jobs:
            await stuck.enqueue()
            worker = await jobs.start(manager)
            await running.wait()
            await worker.close(timeout=0)
            began = clock.now
        assert clock.now == began
        release.set()


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
    started, *waits, stopped = caplog.messages
    assert waits == [expected] * 2
    assert started.startswith("worker started")
    assert stopped.startswith("worker stopped")
    stored = await broker.real.get(job.id)
    assert stored is not None
    assert stored.state is JobState.SUCCEEDED


async def test_schedules(jobs: JobQueue, recorder: RecordingObserver, manager: Manager) -> None:
    """Leaving a queue stops the loops of its schedules, as leaving a manager stops loops."""
    jobs.schedule(every(3600), jobs.handler(name="hourly")(double).job(1))
    async with jobs:
        await jobs.start(manager)
        await anyio.sleep(1)
    (event,) = recorder.of(TaskCancelled)
    assert (event.name, event.reason) == ("schedule of hourly", "stopped")


# Other tasks


@pytest.fixture
def jobs(broker_kind: Kind, tmp_path: Path) -> JobQueue:
    """A queue that is not open."""
    jobs = JobQueue(broker_kind.make(tmp_path))
    jobs.handler(name="double")(double)
    return jobs


async def double(number: int) -> int:
    return 2 * number


async def test_leave_in_another_task(jobs: JobQueue, manager: Manager) -> None:
    """A queue may be left in another task than the one that entered it."""
    started = anyio.Event()
    finished: list[int] = []

    @jobs.handler(name="slow")
    async def slow(number: int) -> None:
        started.set()
        await anyio.sleep(5)
        finished.append(number)

    await run_in_task(jobs.__aenter__)
    await jobs.start(manager)
    await slow.enqueue(7)
    await started.wait()
    await run_in_task(lambda: jobs.__aexit__(None, None, None))
    assert finished == [7]
    with pytest.raises(QueueError, match="the queue is not open"):
        await jobs.start(manager)


async def test_open_and_close(jobs: JobQueue, manager: Manager) -> None:
    """Tasks of a task group can open a queue, use it, and close it, repeatedly."""
    results: list[int] = []

    async def use() -> None:
        await jobs.start(manager)
        job = await jobs.enqueue("double", [21])
        results.append(await job.result())

    for _ in range(2):
        for step in (jobs.open, use, jobs.close):
            async with anyio.create_task_group() as group:
                group.start_soon(step)
    assert results == [42, 42]


async def test_open_twice(jobs: JobQueue) -> None:
    """A queue that is open can't be opened, and one that is not open can't be closed."""
    await jobs.open()
    with pytest.raises(QueueError, match="the queue is open already"):
        await jobs.open()
    await jobs.close()
    with pytest.raises(QueueError, match=r"enter it with `async with`, await open\(\)"):
        await jobs.close()
