"""The context of a running job."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.from_thread
import pytest
from opentelemetry import baggage, context, trace
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


async def test_attributes(jobs: JobQueue, manager: Manager) -> None:
    """The context has the id, queue, attempt, previous result, meta and enqueue time of the job."""
    seen: list[Any] = []
    times: list[float] = []

    @jobs.handler(name="inspect", queue="q")
    async def inspect() -> None:
        current = JobContext.current()
        seen.extend(
            [
                current.id,
                current.queue,
                current.attempt,
                current.previous,
                dict(current.meta),
                repr(current),
            ]
        )
        times.append(current.enqueued_at)
        with pytest.raises(TypeError):
            current.meta["k"] = 2  # type: ignore[index]

    await jobs.start(manager)
    job = await inspect.options(meta={"k": 1}).enqueue()
    await job.result()
    info = await job.info()
    assert info is not None
    assert times == [info.enqueued_at]
    assert seen == [job.id, "q", 1, None, {"k": 1}, f"<JobContext {job.id} attempt 1>"]
    await (await inspect.enqueue()).result()
    assert seen[-2] == {}


async def test_outside_of_jobs(manager: Manager, anyio_backend: Any) -> None:
    """current() raises an error outside of jobs, also in a manager's tasks."""

    async def get_context() -> None:
        JobContext.current()

    with pytest.raises(QueueError, match="no job is running here"):
        await get_context()
    with pytest.raises(QueueError, match="no job is running here"):
        await manager.run(get_context)


async def test_threads(jobs: JobQueue, manager: Manager) -> None:
    """The context is available in sync handlers and in threads that a handler starts."""

    @jobs.handler(name="sync")
    def sync() -> list[Any]:
        current = JobContext.current()
        anyio.from_thread.run(current.save, {"half": True})
        return [current.id, current.attempt, current.previous]

    @jobs.handler(name="helped")
    async def helped() -> str:
        return await anyio.to_thread.run_sync(lambda: JobContext.current().id)

    @jobs.handler(name="first")
    async def first() -> str:
        return "first"

    await jobs.start(manager)
    job = await jobs.enqueue(chain(first.job(), sync.job()), id="parent")
    assert await job.result() == ["parent..2", 1, "first"]
    helped_job = await helped.enqueue()
    assert await helped_job.result() == helped_job.id


async def test_submitted_task(jobs: JobQueue, manager: Manager) -> None:
    """A task that a job submits to the manager has no job context."""

    async def get_context() -> str:
        with pytest.raises(QueueError):
            JobContext.current()
        return "none"

    @jobs.handler(name="submits")
    async def submits() -> str:
        return await manager.run(get_context)

    await jobs.start(manager)
    assert await (await submits.enqueue()).result() == "none"


async def test_save(jobs: JobQueue, manager: Manager, broker: FaultyBroker) -> None:
    """Other queues see the last value that a running or dead job has saved."""
    saved, go_on = anyio.Event(), anyio.Event()

    @jobs.handler(name="saves")
    async def saves(fails: bool) -> str:
        current = JobContext.current()
        await current.save([1])
        await current.save({"done": 2})
        saved.set()
        await go_on.wait()
        if fails:
            raise ValueError
        return "result"

    await jobs.start(manager)
    job = await saves.enqueue(False)
    await saved.wait()
    async with JobQueue(broker) as client:
        info = await client.get(job.id)
        assert info is not None
        assert (info.state, info.result) == (S.RUNNING, {"done": 2})
        go_on.set()
        assert await job.result() == "result"
        failed = await saves.enqueue(True)
        assert await failed.wait() is S.DEAD
        info = await client.get(failed.id)
        assert info is not None
        assert info.result == {"done": 2}


async def test_save_errors(manager: Manager, broker: FaultyBroker) -> None:
    """save() raises errors for invalid values, for values above max_payload and for outages."""
    async with JobQueue(broker, max_payload=100) as jobs:

        @jobs.handler(name="saves")
        async def saves() -> str:
            current = JobContext.current()
            with pytest.raises(InvalidPayloadError, match="a value of job"):
                await current.save(object())
            with pytest.raises(PayloadTooLargeError):
                await current.save("x" * 101)
            broker.fail("save")
            with pytest.raises(BrokerUnavailableError):
                await current.save(1)
            return "saved"

        await jobs.start(manager)
        assert await (await saves.enqueue()).result() == "saved"


async def test_save_after_lost_lease(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, recorder: RecordingObserver
) -> None:
    """A job whose lease is lost can't save a value, and is cancelled."""
    errors: list[Exception] = []

    @jobs.handler(name="saves")
    async def saves() -> None:
        current = JobContext.current()
        (claim,) = broker.claims
        foreign = Settlement(id=current.id, token=claim.token, state=S.SUCCEEDED, result=b"7")
        assert await broker.real.settle([foreign]) == [True]
        try:
            await current.save(1)
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
@pytest.mark.parametrize("ends", ["returns", "is released"])
async def test_save_after_attempt(
    ends: str, where: str, manager: Manager, broker: FaultyBroker
) -> None:
    """A context can't save a value after its attempt has ended.

    That value would replace the result, or a value of the next attempt with the same number.
    """
    contexts: list[JobContext] = []
    results = MemoryResults() if where == "store" else None
    started = anyio.Event()

    async with JobQueue(broker, results=results) as jobs:

        @jobs.handler(name="saves")
        async def saves() -> str:
            contexts.append(JobContext.current())
            if ends == "is released" and len(contexts) == 1:
                started.set()
                await anyio.sleep_forever()
            return "the end"

        worker = await jobs.start(manager)
        job = await saves.enqueue()
        if ends == "is released":
            await started.wait()
            await worker.close(timeout=0)
            await jobs.start(manager)
        assert await job.result() == "the end"
        with pytest.raises(QueueError, match=f"job {job.id}: the attempt has ended"):
            await contexts[0].save("too late")
        assert await job.result() == "the end"
        await manager.close(timeout=0)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("attached", [False, True])
async def test_trace_context(
    broker: FaultyBroker, manager: Manager, stored: bool, attached: bool
) -> None:
    """A job has the trace context of its enqueuer, and its baggage if both queues say so."""

    async def read_context() -> Any:
        trace_id = trace.get_current_span().get_span_context().trace_id
        return [trace_id, baggage.get_baggage("user")]

    span = trace.NonRecordingSpan(trace.SpanContext(0xA, 0xB, is_remote=True))
    client, jobs = JobQueue(broker, baggage=stored), JobQueue(broker, baggage=attached)
    handler = client.handler(name="h")(read_context)
    jobs.handler(name="h")(read_context)
    async with client, jobs:
        token = context.attach(baggage.set_baggage("user", "worker"))
        await jobs.start(manager)
        context.detach(token)
        assert await (await client.enqueue("h")).result() == [0, None]
        in_span = trace.set_span_in_context(span)
        token = context.attach(baggage.set_baggage("user", "client", in_span))
        by_name, by_step = await client.enqueue("h"), await client.enqueue(chain(handler.job()))
        (by_handler,) = await handler.enqueue_many([()])
        context.detach(token)
        expected = [0xA, "client" if stored and attached else None]
        for job in (by_name, by_step, by_handler):
            assert await job.result() == expected
        kept = await broker.get(by_name.id)
        assert kept is not None
        assert (b"client" in kept.message.body) == stored
        await manager.close(timeout=0)
