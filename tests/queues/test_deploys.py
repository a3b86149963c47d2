"""Jobs that one version of a service can't run, and another one can."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from support.brokers.faulty import FaultyBroker

from background import Manager
from background.queues import JobFailedError, JobQueue, JobState, Snooze
from background.testing import RecordingObserver

S = JobState


async def add(a: int, b: int = 1) -> int:
    return a + b


async def add_three(a: int, b: int, c: int) -> int:
    return a + b + c


async def test_unknown_handler_is_left(
    manager: Manager, broker: FaultyBroker, recorder: RecordingObserver
) -> None:
    """A worker leaves a job whose handler it lacks to a worker that has the handler."""
    async with JobQueue(broker) as old, JobQueue(broker) as new:
        old.handler(name="old")(add)
        handler = new.handler(name="new")(add)
        worker = await old.start(manager)
        job = await handler.enqueue(1)
        await broker.has_settled(1)
        info = await job.info()
        assert info is not None
        assert (info.state, info.attempt, info.attempts) == (S.SCHEDULED, 0, ())
        assert info.error is not None
        assert info.error.type == "background.queues.UnknownHandlerError"
        await new.start(manager)
        assert await job.result() == 2
        info = await job.info()
        assert info is not None
        assert info.attempt == 1
        await worker.close()
        await manager.close(timeout=0)
    assert "failed" not in recorder.names()
    assert "dead" not in recorder.names()


async def test_arguments_of_other_version(manager: Manager, broker: FaultyBroker) -> None:
    """A worker leaves a job whose arguments its handler does not take to another version."""
    async with JobQueue(broker) as old, JobQueue(broker) as new:
        old.handler(name="add")(add)
        handler = new.handler(name="add")(add_three)
        worker = await old.start(manager)
        job = await handler.enqueue(1, 2, 3)
        await broker.has_settled(1)
        assert await job.info() is not None
        await worker.close()
        await new.start(manager)
        assert await job.result() == 6
        await manager.close(timeout=0)


async def test_unknown_for(
    manager: Manager,
    broker: FaultyBroker,
    recorder: RecordingObserver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job is dead when no worker could run it for unknown_for seconds."""
    async with JobQueue(broker, unknown_for=100) as jobs:
        jobs.handler(name="add", queue="default")(add)
        await jobs.start(manager)
        unknown = [await jobs.enqueue("other", [n]) for n in range(2)]
        for job in unknown:
            with pytest.raises(JobFailedError, match=r"UnknownHandlerError: no handler 'other'"):
                await job.result()
        # After 0, 1, 2, 4, 8, 16, 32, 64 and 124 seconds.
        info = await unknown[0].info()
        assert info is not None
        assert info.attempt == 1
        assert info.finished_at is not None
        assert 100 < info.finished_at - info.enqueued_at < 130
        await manager.close(timeout=0)
    left = [text for text in caplog.messages if "left for another worker" in text]
    assert len(left) == 1
    assert "and others like it are left for another worker" in left[0]
    assert left[0].endswith("this worker has the handlers add")
    assert recorder.names().count("dead") == 2


async def test_error_of_postponed_job(manager: Manager, broker: FaultyBroker) -> None:
    """A job that failed before keeps its error while it is left for another worker."""
    fails = True

    async def shaky(a: int) -> int:
        if fails:
            raise ValueError(a)
        return a

    async with JobQueue(broker) as old, JobQueue(broker) as new:
        old.handler(name="other")(add)
        handler = new.handler(name="shaky", retry=2)(shaky)
        worker = await new.start(manager)
        job = await handler.enqueue(5)
        await broker.has_settled(1)
        await worker.close()
        worker = await old.start(manager)
        await broker.has_settled(2)
        info = await job.info()
        assert info is not None
        assert info.error is not None
        assert (info.attempt, info.error.type) == (1, "ValueError")
        fails = False
        await worker.close()
        await new.start(manager)
        assert await job.result() == 5
        await manager.close(timeout=0)


async def test_postponed_job_expires(manager: Manager, broker: FaultyBroker) -> None:
    """A job that is left for another worker expires, and a job that snoozed does not."""

    async def nap() -> int:
        if len(broker.claims) < 3:
            raise Snooze(100)
        return 7

    async with JobQueue(broker) as old, JobQueue(broker) as new:
        old.handler(name="nap", queue="default")(nap)
        worker = await old.start(manager)
        handler = new.handler(name="add", expires=50)(add)
        left = await handler.enqueue(1)
        snoozed = await new.handler(name="nap")(nap).options(expires=50).enqueue()
        await anyio.sleep(90)
        info = await left.info()
        assert info is not None
        assert (info.state, info.attempt, info.worker is None) == (S.EXPIRED, 0, False)
        assert await snoozed.result() == 7
        await worker.close()
        await new.start(manager)
        assert (await left.wait()) == "expired"
        await manager.close(timeout=0)


async def snooze(manager: Manager, broker: FaultyBroker, jobs: JobQueue) -> None:
    """Run the job, which snoozes."""
    await jobs.start(manager)
    await broker.has_settled(2)


async def interrupt(manager: Manager, broker: FaultyBroker, jobs: JobQueue) -> None:
    """Run the job until a shutdown releases it."""
    await jobs.start(manager)
    await anyio.sleep(60)


async def lose(manager: Manager, broker: FaultyBroker, jobs: JobQueue) -> None:
    """Claim the job for a worker that dies."""
    (claim,) = await broker.claim(["default"], 1, lease=30)
    await broker.renew([claim], lease=30)


@pytest.mark.parametrize("run", [snooze, interrupt, lose])
async def test_postponed_before_run(
    manager: Manager,
    broker: FaultyBroker,
    run: Callable[[Manager, FaultyBroker, JobQueue], Awaitable[None]],
) -> None:
    """An attempt ends the time for which no worker could run the job, however it ends."""

    async def handler() -> None:
        if run is snooze:
            raise Snooze(1)
        await anyio.sleep_forever()

    async with (
        JobQueue(broker, unknown_for=100) as old,
        JobQueue(broker, unknown_for=100) as new,
    ):
        old.handler(name="old")(add)
        worker = await old.start(manager)
        job = await new.handler(name="new")(handler).enqueue()
        await broker.has_settled(1)
        await worker.close()
        await anyio.sleep(10)
        async with Manager() as running:
            await run(running, broker, new)
            await running.close(timeout=0)
        info = await job.info()
        assert info is not None
        assert (info.error is None) == (run is not lose)
        await anyio.sleep(200)
        settled = broker.settled
        await old.start(manager)
        await broker.has_settled(settled + 1)
        info = await job.info()
        assert info is not None
        assert info.state is S.SCHEDULED
        assert info.error is not None
        assert info.error.type == "background.queues.UnknownHandlerError"
        await manager.close(timeout=0)


async def test_aliases(jobs: JobQueue, manager: Manager) -> None:
    """A handler runs the jobs of its earlier names."""
    handler = jobs.handler(name="add", aliases=["sum", "plus"])(add)
    await jobs.start(manager)
    job = await jobs.enqueue("plus", [1])
    assert await job.result() == 2
    assert handler.name == "add"
    with pytest.raises(ValueError, match=r"^name: there is a handler 'sum' already"):
        jobs.handler(name="sum")(add)
    with pytest.raises(ValueError, match=r"^name: there is a handler 'add' already"):
        jobs.handler(name="third", aliases=["add"])(add)
    assert "third" not in [info.handler async for info in jobs.list()]


@pytest.mark.parametrize("aliases", ["sum", 5, [5], ["no space"]])
async def test_invalid_aliases(jobs: JobQueue, aliases: Any) -> None:
    """Aliases that are no list of names are rejected."""
    with pytest.raises(ValueError, match=r"^aliases must be"):
        jobs.handler(name="add", aliases=aliases)
