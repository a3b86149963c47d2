"""What the function of a job can ask about its job."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.from_thread
import pytest
from opentelemetry import baggage, context
from support.brokers.faulty import FaultyBroker, MemoryResults

from background import Manager, TaskCancelled
from background.queues import (
    BrokerUnavailableError,
    InvalidPayloadError,
    JobContext,
    JobQueue,
    JobState,
    PayloadTooLargeError,
    QueueError,
    chain,
)
from background.queues.abc import Settlement
from background.testing import RecordingObserver

S = JobState


async def test_what_a_job_knows_of_itself(jobs: JobQueue, manager: Manager) -> None:
    seen: list[Any] = []
    times: list[float] = []

    @jobs.handler(name="look", queue="q")
    async def look() -> None:
        it = JobContext.current()
        seen.extend([it.id, it.queue, it.attempt, it.previous, dict(it.meta), repr(it)])
        times.append(it.enqueued_at)
        with pytest.raises(TypeError):
            it.meta["k"] = 2  # type: ignore[index]

    await jobs.start(manager)
    job = await look.options(meta={"k": 1}).enqueue()
    await job.result()
    info = await job.info()
    assert info is not None
    assert times == [info.enqueued_at]
    assert seen == [job.id, "q", 1, None, {"k": 1}, f"<JobContext {job.id} attempt 1>"]
    await (await look.enqueue()).result()
    assert seen[-2] == {}


async def test_there_is_no_job_outside_of_jobs(manager: Manager, anyio_backend: Any) -> None:
    async def ask() -> None:
        JobContext.current()

    with pytest.raises(QueueError, match="no job is running here"):
        await ask()
    with pytest.raises(QueueError, match="no job is running here"):
        await manager.run(ask)


async def test_a_job_in_a_thread(jobs: JobQueue, manager: Manager) -> None:
    @jobs.handler(name="sync")
    def sync() -> list[Any]:
        it = JobContext.current()
        anyio.from_thread.run(it.save, {"half": True})
        return [it.id, it.attempt, it.previous]

    @jobs.handler(name="helped")
    async def helped() -> str:
        return await anyio.to_thread.run_sync(lambda: JobContext.current().id)

    @jobs.handler(name="first")
    async def first() -> str:
        return "first"

    await jobs.start(manager)
    job = await jobs.enqueue(chain(first.job(), sync.job()), id="it")
    assert await job.result() == ["it.2", 1, "first"]
    other = await helped.enqueue()
    assert await other.result() == other.id


async def test_tasks_that_a_job_submits_are_not_the_job(jobs: JobQueue, manager: Manager) -> None:
    async def ask() -> str:
        with pytest.raises(QueueError):
            JobContext.current()
        return "none"

    @jobs.handler(name="submits")
    async def submits() -> str:
        return await manager.run(ask)

    await jobs.start(manager)
    assert await (await submits.enqueue()).result() == "none"


async def test_what_a_job_saves_is_seen_by_others(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker
) -> None:
    saved, go_on = anyio.Event(), anyio.Event()

    @jobs.handler(name="saves")
    async def saves(fails: bool) -> str:
        it = JobContext.current()
        await it.save([1])
        await it.save({"done": 2})
        saved.set()
        await go_on.wait()
        if fails:
            raise ValueError
        return "result"

    await jobs.start(manager)
    job = await saves.enqueue(False)
    await saved.wait()
    async with JobQueue(broker) as front:
        info = await front.get(job.id)
        assert info is not None
        assert (info.state, info.result) == (S.RUNNING, {"done": 2})
        go_on.set()
        assert await job.result() == "result"
        failed = await saves.enqueue(True)
        assert await failed.wait() is S.DEAD
        info = await front.get(failed.id)
        assert info is not None
        assert info.result == {"done": 2}


async def test_what_cannot_be_saved(manager: Manager, broker: FaultyBroker) -> None:
    async with JobQueue(broker, max_payload=100) as jobs:

        @jobs.handler(name="saves")
        async def saves() -> str:
            it = JobContext.current()
            with pytest.raises(InvalidPayloadError, match="a value of job"):
                await it.save(object())
            with pytest.raises(PayloadTooLargeError):
                await it.save("x" * 101)
            broker.fail("save")
            with pytest.raises(BrokerUnavailableError):
                await it.save(1)
            return "fine"

        await jobs.start(manager)
        assert await (await saves.enqueue()).result() == "fine"


async def test_a_job_whose_lease_is_lost_saves_nothing(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, recorder: RecordingObserver
) -> None:
    """And is cancelled, as another may have it."""
    errors: list[Exception] = []

    @jobs.handler(name="saves")
    async def saves() -> None:
        it = JobContext.current()
        (claim,) = broker.claims
        stolen = Settlement(id=it.id, token=claim.token, state=S.SUCCEEDED, result=b"7")
        assert await broker.real.settle([stolen]) == [True]
        try:
            await it.save(1)
        except QueueError as error:
            errors.append(error)
        await anyio.sleep_forever()

    await jobs.start(manager)
    job = await saves.enqueue()
    event = await recorder.wait_for(TaskCancelled)
    assert event.reason == "its lease was lost"
    assert str(errors[0]) == f"job {job.id}: its lease was lost"
    info = await job.info()
    assert info is not None
    assert info.result == 7


@pytest.mark.parametrize("where", ["broker", "store"])
@pytest.mark.parametrize("ends", ["returns", "is handed back"])
async def test_what_outlives_a_job_saves_nothing(
    ends: str, where: str, manager: Manager, broker: FaultyBroker
) -> None:
    """Its result is not replaced, nor what the next attempt saves, which has the same number."""
    contexts: list[JobContext] = []
    results = MemoryResults() if where == "store" else None
    going = anyio.Event()

    async with JobQueue(broker, results=results) as jobs:

        @jobs.handler(name="saves")
        async def saves() -> str:
            contexts.append(JobContext.current())
            if ends == "is handed back" and len(contexts) == 1:
                going.set()
                await anyio.sleep_forever()
            return "the end"

        worker = await jobs.start(manager)
        job = await saves.enqueue()
        if ends == "is handed back":
            await going.wait()
            await worker.close(timeout=0)
            await jobs.start(manager)
        assert await job.result() == "the end"
        with pytest.raises(QueueError, match=f"job {job.id}: the attempt has ended"):
            await contexts[0].save("too late")
        assert await job.result() == "the end"
        await manager.close(timeout=0)


async def test_the_trace_context_travels_with_the_job(jobs: JobQueue, manager: Manager) -> None:
    """And that of the worker's surroundings does not come in its place."""

    @jobs.handler(name="look")
    async def look() -> Any:
        return baggage.get_baggage("who")

    here = context.attach(baggage.set_baggage("who", "worker"))
    await jobs.start(manager)
    context.detach(here)
    assert await (await look.enqueue()).result() is None
    here = context.attach(baggage.set_baggage("who", "me"))
    job = await look.enqueue()
    context.detach(here)
    assert await job.result() == "me"
