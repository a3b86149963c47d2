"""Brokers that can't be reached for a while, and leases that are lost meanwhile."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import anyio
import pytest
from opentelemetry import propagate
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from support.brokers.faulty import FaultyBroker
from support.job_events import told_of
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from background import JobEnqueued, Manager, TaskCancelled, TaskSucceeded
from background.queues import (
    BrokerUnavailableError,
    JobContext,
    JobFailedError,
    JobQueue,
    JobState,
    Ordered,
    PayloadTooLargeError,
    QueueError,
)
from background.queues.abc import Message, Settlement
from background.testing import RecordingObserver

S = JobState
TWICE = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(0.2))


class Log:
    """What a handler did."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.cancelled = anyio.Event()
        self.started = anyio.Event()
        self.finish = anyio.Event()

    async def note(self) -> int:
        self.ran.append(JobContext.current().attempt)
        return len(self.ran)

    async def wait(self) -> int:
        self.ran.append(JobContext.current().attempt)
        self.started.set()
        try:
            await self.finish.wait()
        except BaseException:
            self.cancelled.set()
            raise
        return len(self.ran)


@pytest.fixture
async def log(anyio_backend: object) -> Log:
    return Log()


# Enqueueing


@pytest.mark.parametrize("lost", [False, True], ids=["asked in vain", "answer lost"])
@pytest.mark.parametrize("options", [{}, {"id": "mine"}, {"delay": 0.01}], ids=str)
async def test_a_job_is_enqueued_once_however_often_it_is_tried(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    recorder: RecordingObserver,
    log: Log,
    lost: bool,
    options: Any,
) -> None:
    handler = jobs.handler(name="h")(log.note)
    await jobs.start(manager)
    (broker.lose if lost else broker.fail)("enqueue", times=3)
    job = await handler.options(**options).enqueue()
    assert broker.asked["enqueue"] == 4
    assert await job.result() == 1
    assert await jobs.count() == 1
    assert len([event for event in recorder.events if isinstance(event, JobEnqueued)]) == 1


async def test_many_jobs_are_enqueued_once(jobs: JobQueue, broker: FaultyBroker, log: Log) -> None:
    handler = jobs.handler(name="h")(log.note)
    broker.lose("enqueue")
    assert len(await handler.enqueue_many([()] * 5)) == await jobs.count() == 5


async def test_an_id_that_was_taken_before_is_refused_though_an_answer_was_lost(
    jobs: JobQueue, broker: FaultyBroker, log: Log
) -> None:
    handler = jobs.handler(name="h")(log.note)
    await handler.options(id="mine").enqueue()
    broker.lose("enqueue")
    with pytest.raises(QueueError, match="'mine'"):
        await handler.options(id="mine").enqueue()


async def test_a_broker_that_stays_away_is_told_of(
    jobs: JobQueue, broker: FaultyBroker, recorder: RecordingObserver, log: Log
) -> None:
    handler = jobs.handler(name="h")(log.note)
    job = await handler.enqueue()
    broker.down |= {"enqueue", "get", "cancel", "requeue", "count", "purge"}
    with pytest.raises(BrokerUnavailableError):
        await handler.enqueue()
    assert broker.asked["enqueue"] == 5
    for ask in (job.info, job.cancel, jobs.count, partial(jobs.purge, older_than=0)):
        with pytest.raises(BrokerUnavailableError):
            await ask()
    broker.down.clear()
    assert await jobs.count() == 1


# Waiting


async def test_those_who_wait_bear_with_an_outage(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, log: Log
) -> None:
    job = await jobs.handler(name="h")(log.note).enqueue()
    await jobs.start(manager)
    broker.fail("wait", times=3)
    assert await job.result() == 1
    broker.fail("wait")
    with pytest.raises(BrokerUnavailableError):
        await job.result(timeout=0)


async def test_those_who_wait_are_told_of_a_long_outage(
    jobs: JobQueue, broker: FaultyBroker, log: Log
) -> None:
    job = await jobs.handler(name="h")(log.note).enqueue()
    broker.down.add("wait")
    began = anyio.current_time()
    with pytest.raises(BrokerUnavailableError):
        await job.result()
    assert 29 < anyio.current_time() - began < 32
    with pytest.raises(BrokerUnavailableError):
        await job.wait(timeout=5)
    assert 34 < anyio.current_time() - began < 38
    broker.down.clear()
    with pytest.raises(TimeoutError):
        await job.wait(timeout=100)
    assert 134 < anyio.current_time() - began < 138


# Working


@pytest.mark.parametrize("name", ["claim", "wait_for_work", "maintain"])
async def test_a_worker_goes_on_after_an_outage(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    log: Log,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    caplog.set_level(logging.INFO, "background")
    handler = jobs.handler(name="h")(log.note)
    broker.fail(name, times=2)
    await jobs.start(manager)
    await broker.called(name, 3 if name != "wait_for_work" else 2)
    job = await handler.enqueue()
    assert await job.result() == 1
    await broker.called(name, 3)
    for _ in range(2):
        await (await handler.enqueue()).result()
    assert "works again" in caplog.text
    assert caplog.text.count("no broker; trying again") == 1


async def test_an_error_that_is_not_the_networks_is_logged_as_it_is(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    log: Log,
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler = jobs.handler(name="h")(log.note)
    for name in ("claim", "maintain", "settle"):
        broker.fail(name, error=ZeroDivisionError(name))
    await jobs.start(manager)
    assert await (await handler.enqueue()).result() == 1
    await broker.called("maintain", 2)
    assert caplog.text.count("ZeroDivisionError") >= 3
    assert "Traceback" in caplog.text


async def test_what_the_broker_refuses_to_settle_is_dead_and_holds_nobody_up(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, log: Log
) -> None:
    handler = jobs.handler(name="h")(log.note)
    made = await handler.enqueue_many([(), ()])
    # Both together, then one of them alone.
    broker.fail("settle", error=PayloadTooLargeError("no room for this"), times=2)
    await jobs.start(manager, concurrency=2)
    by_state = {await each.wait(): each for each in made}
    assert by_state.keys() == {S.DEAD, S.SUCCEEDED}
    with pytest.raises(JobFailedError, match="no room for this") as failed:
        await by_state[S.DEAD].result()
    assert failed.value.type.endswith("PayloadTooLargeError")
    assert await (await handler.enqueue()).result() == 3


async def test_what_can_not_even_be_dead_is_left_to_its_lease(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, recorder: RecordingObserver, log: Log
) -> None:
    handler = jobs.handler(name="h")(log.note)
    broker.fail("settle", error=PayloadTooLargeError("no room for this"), times=2)
    await jobs.start(manager)
    job = await handler.enqueue()
    event = await recorder.wait_for(TaskCancelled)
    assert event.reason == "it could not be settled"
    info = await job.info()
    assert info is not None
    assert info.state is S.RUNNING


class Broken(TraceContextTextMapPropagator):
    """A propagator that can't read what another has written."""

    def extract(self, *args: Any, **kwargs: Any) -> Any:
        raise ArithmeticError("what is this?")


async def test_a_job_that_cannot_be_started_is_left_to_its_lease(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    jobs.handler(name="h")(log.note)
    body = b'{"args":[],"trace":{"traceparent":"?"}}'
    await broker.enqueue(
        [Message(id="one", handler="h", queue="q", body=body, retention=60, dead_retention=60)]
    )
    with monkeypatch.context() as patch:
        patch.setattr(propagate, "extract", Broken().extract)
        worker = await jobs.start(manager, Ordered("q"))
        await broker.called("claim")
        await anyio.sleep(1)
        assert worker.in_flight == 0
    assert "job one can't be started" in caplog.text
    assert await jobs.handle("one").result() == 1
    assert log.ran == [2]


async def test_a_claim_that_took_longer_than_its_lease_is_not_begun(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, log: Log
) -> None:
    handler = jobs.handler(name="h")(log.note)
    job = await handler.enqueue()
    going_on = broker.hold("claim")
    await jobs.start(manager)
    await broker.called("claim")
    await anyio.sleep(31)
    going_on.set()
    assert await job.result() == 1
    assert log.ran == [1]
    assert [claim.attempt for claim in broker.claims] == [1, 1]


@pytest.mark.parametrize("lost", [False, True], ids=["asked in vain", "answer lost"])
async def test_a_settlement_is_repeated(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    recorder: RecordingObserver,
    log: Log,
    lost: bool,
) -> None:
    handler = jobs.handler(name="h")(log.note)
    (broker.lose if lost else broker.fail)("settle", times=2)
    await jobs.start(manager)
    job = await handler.enqueue()
    assert await job.result() == 1
    await recorder.wait_for(TaskSucceeded)
    assert log.ran == [1]
    assert told_of(recorder, job.id) == ["added", "started", "succeeded"]


async def test_the_answer_to_every_settlement_may_be_lost(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, recorder: RecordingObserver
) -> None:
    """Whether it was of a failure, after which the next attempt may begin first, or of an end."""

    @jobs.handler(name="shaky", retry=TWICE)
    async def shaky() -> int:
        broker.lose("settle")
        if (attempt := JobContext.current().attempt) == 1:
            raise ValueError
        return attempt

    @jobs.handler(name="fails")
    async def fails() -> None:
        broker.lose("settle")
        raise ValueError

    worker = await jobs.start(manager)
    job = await shaky.enqueue()
    assert await job.result() == 2
    assert await (await fails.enqueue()).wait() is S.DEAD
    await worker.close()
    told = told_of(recorder, job.id)
    assert sorted(told) == ["added", "added", "retrying", "started", "started", "succeeded"]


async def test_a_job_handed_back_may_be_with_another_when_the_answer_is_lost(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, log: Log
) -> None:
    job = await jobs.handler(name="h")(log.wait).enqueue()
    worker = await jobs.start(manager)
    await log.started.wait()
    broker.lose("settle")
    await worker.close(timeout=0)
    stored = await broker.get(job.id)
    assert stored is not None
    assert (stored.state, stored.attempt) == (S.READY, 0)


async def test_a_settlement_of_a_job_that_is_forgotten_at_once(
    broker: FaultyBroker, manager: Manager, recorder: RecordingObserver, log: Log
) -> None:
    async with JobQueue(broker, retention=0) as jobs:
        handler = jobs.handler(name="h")(log.note)
        await jobs.start(manager)
        broker.lose("settle")
        job = await handler.enqueue()
        await recorder.wait_for(TaskSucceeded)
        assert told_of(recorder, job.id) == ["added", "started", "succeeded"]


async def test_what_cannot_be_settled_is_given_up_with_the_manager(
    broker: FaultyBroker, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = RecordingObserver()
    async with Manager(observers=[recorder], grace=0.05) as manager, JobQueue(broker) as jobs:
        handler = jobs.handler(name="h")(log.note)
        await jobs.start(manager)
        broker.down.add("settle")
        job = await handler.enqueue()
        await broker.called("settle", 2)
        manager.request_shutdown()
    assert told_of(recorder, job.id) == ["added", "started", "cancelled"]
    assert recorder.of(TaskCancelled)[0].reason == "it could not be settled"
    assert "1 jobs could not be settled" in caplog.text
    broker.down.clear()
    stored = await broker.get(job.id)
    assert stored is not None
    assert stored.state is S.RUNNING


# Leases


@pytest.mark.usefixtures("renewing_often")
async def test_a_job_that_another_has_is_cancelled_here(
    broker: FaultyBroker, manager: Manager, recorder: RecordingObserver, log: Log
) -> None:
    """And can no longer change what becomes of it."""
    async with JobQueue(broker) as jobs:
        handler = jobs.handler(name="h")(log.wait)
        worker = await jobs.start(manager, concurrency=1)
        job = await handler.enqueue()
        await log.started.wait()
        (claim,) = broker.claims
        log.finish = anyio.Event()
        stolen = Settlement(id=job.id, token=claim.token, state=S.SUCCEEDED, result=b"7")
        assert await broker.real.settle([stolen]) == [True]
        await log.cancelled.wait()
        event = await recorder.wait_for(TaskCancelled)
        assert (event.id, event.reason) == (job.id, "its lease was lost")
        assert await job.result() == 7
        assert worker.in_flight == 0


async def test_a_job_that_another_has_is_not_settled_here(
    broker: FaultyBroker, manager: Manager, recorder: RecordingObserver, log: Log
) -> None:
    async with JobQueue(broker) as jobs:
        handler = jobs.handler(name="h")(log.wait)
        await jobs.start(manager)
        job = await handler.enqueue()
        await log.started.wait()
        (claim,) = broker.claims
        stolen = Settlement(id=job.id, token=claim.token, state=S.SUCCEEDED, result=b"7")
        assert await broker.real.settle([stolen]) == [True]
        log.finish.set()
        event = await recorder.wait_for(TaskCancelled)
        assert event.reason == "its lease was lost"
        assert await job.result() == 7


@pytest.mark.usefixtures("renewing_often")
async def test_a_job_that_another_has_is_not_begun(
    broker: FaultyBroker, recorder: RecordingObserver, log: Log
) -> None:
    """Where it has been waiting for the manager's limit."""
    async with (
        Manager(limit=1, observers=[recorder]) as manager,
        JobQueue(broker) as jobs,
    ):
        handler = jobs.handler(name="h")(log.wait)
        first, second = await handler.enqueue_many([(), ()])
        await jobs.start(manager)
        await log.started.wait()
        claim = broker.claims[1]
        stolen = Settlement(id=second.id, token=claim.token, state=S.SUCCEEDED, result=b"7")
        assert await broker.real.settle([stolen]) == [True]
        event = await recorder.wait_for(TaskCancelled)
        assert (event.id, event.reason) == (second.id, "its lease was lost")
        log.finish.set()
        assert await first.result() == 1
        assert await second.result() == 7
    assert log.ran == [1]


@pytest.mark.usefixtures("renewing_often")
async def test_a_job_that_ends_while_leases_are_renewed(
    broker: FaultyBroker, manager: Manager, recorder: RecordingObserver, log: Log
) -> None:
    async with JobQueue(broker) as jobs:
        handler = jobs.handler(name="h")(log.wait)
        await jobs.start(manager)
        job = await handler.enqueue()
        await log.started.wait()
        going_on = broker.hold("renew")
        await broker.called("renew")
        log.finish.set()
        assert await job.result() == 1
        going_on.set()
        await broker.called("renew", 1)
    assert recorder.of(TaskCancelled) == []
    assert told_of(recorder, job.id) == ["added", "started", "succeeded"]


@pytest.mark.usefixtures("renewing_often")
async def test_a_lease_that_a_settlement_has_ended_is_not_missed(
    broker: FaultyBroker, manager: Manager, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """Though a renewal hears of that before the settlement has its answer."""
    async with JobQueue(broker) as jobs:
        handler = jobs.handler(name="h")(log.note)
        await jobs.start(manager)
        broker.lose("settle")
        job = await handler.enqueue()
        await broker.called("settle")
        going_on = broker.hold("settle")
        await broker.called("settle", 2)
        renewed = broker.asked["renew"]
        await broker.called("renew", renewed + 2)
        going_on.set()
        assert await job.result() == 1
    assert "lease was lost" not in caplog.text


@pytest.mark.parametrize("how", ["down", "hangs", "odd"])
async def test_leases_that_cannot_be_renewed_are_given_up(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    recorder: RecordingObserver,
    log: Log,
    how: str,
) -> None:
    """When they have ended for everybody else, and no sooner."""
    handler = jobs.handler(name="h")(log.wait)
    await jobs.start(manager)
    began = anyio.current_time()
    job = await handler.enqueue()
    await log.started.wait()
    if how == "down":
        broker.down.add("renew")
    elif how == "hangs":
        broker.hold("renew")
    else:
        broker.fail("renew", error=ZeroDivisionError(), times=100)
    event = await recorder.wait_for(TaskCancelled)
    assert (event.id, event.reason) == (job.id, "its lease was lost")
    assert 29 < anyio.current_time() - began < 35
    assert log.ran[0] == 1
    log.finish.set()
    broker.down.clear()


async def test_leases_bear_with_an_outage(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, log: Log
) -> None:
    handler = jobs.handler(name="h")(log.wait)
    await jobs.start(manager)
    job = await handler.enqueue()
    await log.started.wait()
    for _ in range(3):
        await anyio.sleep(10)
        broker.down.add("renew")
        await anyio.sleep(20)
        broker.down.clear()
    log.finish.set()
    assert await job.result() == 1


async def test_a_job_whose_lease_was_lost_runs_elsewhere_meanwhile(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, recorder: RecordingObserver
) -> None:
    """Here in the same worker, where the first run takes its time to end."""
    ran: list[int] = []

    @jobs.handler(name="h")
    async def slow() -> int:
        ran.append(attempt := JobContext.current().attempt)
        if attempt == 1:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(100)
        return attempt

    await jobs.start(manager)
    job = await slow.enqueue()
    broker.fail("renew", times=50)
    assert await job.result() == 2
    assert ran == [1, 2]
    event = await recorder.wait_for(TaskCancelled)
    assert event.reason == "its lease was lost"
    assert await job.result() == 2
    assert len(recorder.of(TaskSucceeded)) == 1


async def test_an_event_loop_that_was_blocked_is_noticed(
    jobs: JobQueue,
    manager: Manager,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler = jobs.handler(name="h")(log.wait)
    worker = await jobs.start(manager)
    await handler.enqueue()
    await log.started.wait()
    real = worker._loops._renewer._now
    late = iter([12.0])
    monkeypatch.setattr(worker._loops._renewer, "_now", lambda: real() + next(late, 0.0))
    await anyio.sleep(5)
    assert "leases are renewed 12.0 s late" in caplog.text
    log.finish.set()
