"""Outages of brokers, and lost leases."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio
import pytest
from opentelemetry import propagate
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from support.brokers.faulty import FaultyBroker, MemoryResults
from support.job_events import events_of_attempts
from support.outcomes import fine
from support.time import Clock, ages
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from background import JobEnqueued, Manager, TaskCancelled, TaskSucceeded, every
from background.observers import LoggingObserver
from background.queues import (
    BrokerUnavailableError,
    JobContext,
    JobFailedError,
    JobQueue,
    JobState,
    Ordered,
    PayloadTooLargeError,
    QueueError,
    Snooze,
)
from background.queues._backoff import Outage, Outages
from background.queues.abc import Claim, LeaseStatus, Message, Settlement
from background.testing import RecordingObserver

S = JobState
TWICE = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(0.2))


class Log:
    """Handlers that record their attempts."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.cancelled = anyio.Event()
        self.started = anyio.Event()
        self.finish = anyio.Event()

    async def record(self) -> int:
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


@pytest.mark.parametrize("lost", [False, True], ids=["call lost", "answer lost"])
@pytest.mark.parametrize("options", [{}, {"id": "custom"}, {"delay": 0.01}], ids=str)
async def test_enqueue_retry(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    recorder: RecordingObserver,
    log: Log,
    lost: bool,
    options: Any,
) -> None:
    """A job is stored once, although enqueueing is retried."""
    handler = jobs.handler(name="h")(log.record)
    await jobs.start(manager)
    (broker.lose if lost else broker.fail)("enqueue", times=3)
    job = await handler.options(**options).enqueue()
    assert broker.calls["enqueue"] == 4
    assert await job.result() == 1
    assert await jobs.count() == 1
    assert len([event for event in recorder.events if isinstance(event, JobEnqueued)]) == 1


async def test_enqueue_many_retry(jobs: JobQueue, broker: FaultyBroker, log: Log) -> None:
    """enqueue_many() stores every job once, although the first answer is lost."""
    handler = jobs.handler(name="h")(log.record)
    broker.lose("enqueue")
    assert len(await handler.enqueue_many([()] * 5)) == await jobs.count() == 5


async def test_duplicate_id_after_lost_answer(
    jobs: JobQueue, broker: FaultyBroker, log: Log
) -> None:
    """A duplicate id is rejected, although the first answer is lost."""
    handler = jobs.handler(name="h")(log.record)
    await handler.options(id="custom").enqueue()
    broker.lose("enqueue")
    with pytest.raises(QueueError, match="'custom'"):
        await handler.options(id="custom").enqueue()


async def test_long_outage(
    jobs: JobQueue, broker: FaultyBroker, recorder: RecordingObserver, log: Log
) -> None:
    """Calls raise BrokerUnavailableError in a long outage, enqueue() after five tries."""
    handler = jobs.handler(name="h")(log.record)
    job = await handler.enqueue()
    broker.down |= {"enqueue", "get", "cancel", "requeue", "count", "purge"}
    with pytest.raises(BrokerUnavailableError):
        await handler.enqueue()
    assert broker.calls["enqueue"] == 5
    for ask in (job.info, job.cancel, jobs.count, partial(jobs.purge, older_than=0)):
        with pytest.raises(BrokerUnavailableError):
            await ask()
    broker.down.clear()
    assert await jobs.count() == 1


# Waiting


async def test_wait_during_outage(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, log: Log
) -> None:
    """result() retries during a short outage, unless its timeout is zero."""
    job = await jobs.handler(name="h")(log.record).enqueue()
    await jobs.start(manager)
    broker.fail("wait", times=3)
    assert await job.result() == 1
    broker.fail("wait")
    with pytest.raises(BrokerUnavailableError):
        await job.result(timeout=0)


async def test_wait_during_long_outage(jobs: JobQueue, broker: FaultyBroker, log: Log) -> None:
    """result() and wait() raise BrokerUnavailableError after 30 seconds or their timeout."""
    job = await jobs.handler(name="h")(log.record).enqueue()
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


# Claims and settlements


@pytest.mark.parametrize("name", ["claim", "wait_for_work", "maintain"])
async def test_worker_after_outage(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    log: Log,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    """A worker continues after an outage, and logs its beginning and its end."""
    caplog.set_level(logging.INFO, "background")
    handler = jobs.handler(name="h")(log.record)
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


async def test_one_record_of_outage(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    log: Log,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An outage has one record, whichever calls fail, and another one soon after its end."""
    caplog.set_level(logging.INFO, "background")
    calls = {"claim", "wait_for_work", "maintain", "renew", "settle", "enqueue"}
    handler = jobs.handler(name="h")(log.wait)
    jobs.schedule(every(20), jobs.handler(name="tick")(log.record).job())
    await jobs.start(manager)
    job = await handler.enqueue()
    await log.started.wait()
    caplog.clear()
    for _ in range(2):
        broker.down |= calls
        await anyio.sleep(10)
        log.finish.set()
        await anyio.sleep(10)
        assert len(caplog.messages) == 1
        assert "no broker; trying again" in caplog.messages[0]
        broker.down.clear()
        await anyio.sleep(5)
        assert len(caplog.messages) == 2
        assert re.search(r"works again after \d+\.\d s$", caplog.messages[1])
        caplog.clear()
        await anyio.sleep(30)
    assert await job.wait() is S.SUCCEEDED


async def test_outage_until_last_job(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    log: Log,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The end of an outage is logged at once, although its calls are not made any more."""
    caplog.set_level(logging.INFO, "background")
    job = await jobs.handler(name="h")(log.wait).enqueue()
    await jobs.start(manager)
    await log.started.wait()
    broker.down.add("renew")
    await anyio.sleep(3)
    broker.down.clear()
    log.finish.set()
    await job.wait()
    await anyio.sleep(3)
    assert "renewing leases: works again after" in caplog.text


async def test_outage_after_another(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls that still fail after the outage of others are logged then."""
    broker.down |= {"claim", "wait_for_work", "maintain"}
    await jobs.start(manager, ["q"])
    caplog.clear()
    await anyio.sleep(20)
    assert len(caplog.messages) == 1
    broker.down.discard("maintain" if "maintain" in caplog.text else "claim")
    broker.down.discard("wait_for_work")
    await anyio.sleep(20)
    assert [text for text in caplog.messages if "claiming" in text]
    assert [text for text in caplog.messages if "maintaining" in text]
    assert len(caplog.messages) == 2


async def test_outage_of_ended_calls(caplog: pytest.LogCaptureFixture, anyio_backend: Any) -> None:
    """The end of an outage is logged by other calls if the first ones are not made any more."""
    caplog.set_level(logging.INFO, "background")
    outages = Outages()
    ended, going_on = Outage("renewing", outages), Outage("claiming", outages)
    ended.failed(BrokerUnavailableError("down"))
    ended.ended()
    going_on.failed(BrokerUnavailableError("down"))
    await anyio.sleep(5)
    going_on.succeeded()
    assert caplog.messages == ["renewing: down; trying again", "claiming: works again after 5.0 s"]


async def test_outage_besides_another_error(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that is no outage does not hide the outage of other calls."""
    broker.fail("maintain", error=ZeroDivisionError("odd"), times=100)
    await jobs.start(manager, ["q"])
    await broker.called("maintain")
    broker.down |= {"claim", "wait_for_work"}
    await anyio.sleep(60)
    assert "maintaining jobs: odd; trying again" in caplog.text
    assert "no broker; trying again" in caplog.text


async def test_outage_of_results(broker: FaultyBroker, caplog: pytest.LogCaptureFixture) -> None:
    """An outage of the store of results is logged once for all jobs."""
    caplog.set_level(logging.INFO, "background")
    results = MemoryResults()
    jobs = JobQueue(broker, results=results)
    handler = jobs.handler(name="h")(fine)
    async with Manager() as manager, jobs:
        results.down = True
        await jobs.start(manager, concurrency=20)
        handles = await handler.enqueue_many([()] * 20)
        await anyio.sleep(10)
        results.down = False
        for handle in handles:
            await handle.wait()
    logged = [text for text in caplog.messages if "storing results" in text]
    assert len(logged) == 2


async def test_error_while_waiting(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the wait for jobs that is no outage is logged at once, with its traceback."""
    broker.fail("wait_for_work", error=ZeroDivisionError("odd"))
    await jobs.start(manager, ["q"])
    await broker.called("wait_for_work", 2)
    assert "waiting for jobs: odd; trying again" in caplog.text
    assert "Traceback" in caplog.text


async def test_unexpected_broker_error(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    log: Log,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker logs a broker's unexpected error with its traceback, and continues."""
    handler = jobs.handler(name="h")(log.record)
    for name in ("claim", "maintain", "settle"):
        broker.fail(name, error=ZeroDivisionError(name))
    await jobs.start(manager)
    assert await (await handler.enqueue()).result() == 1
    await broker.called("maintain", 2)
    assert caplog.text.count("ZeroDivisionError") >= 3
    assert "Traceback" in caplog.text


async def test_rejected_settlement(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, log: Log
) -> None:
    """A job is dead if the broker rejects its settlement; its batch is settled as usual."""
    handler = jobs.handler(name="h")(log.record)
    handles = await handler.enqueue_many([(), ()])
    # The first call has both settlements, the second only one of them.
    broker.fail("settle", error=PayloadTooLargeError("no room for this"), times=2)
    await jobs.start(manager, concurrency=2)
    by_state = {await job.wait(): job for job in handles}
    assert by_state.keys() == {S.DEAD, S.SUCCEEDED}
    with pytest.raises(JobFailedError, match="no room for this") as failed:
        await by_state[S.DEAD].result()
    assert failed.value.type.endswith("PayloadTooLargeError")
    assert await (await handler.enqueue()).result() == 3


async def test_rejected_dead_settlement(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, recorder: RecordingObserver, log: Log
) -> None:
    """A job that can't be settled as dead either stays running until its lease expires."""
    handler = jobs.handler(name="h")(log.record)
    broker.fail("settle", error=PayloadTooLargeError("no room for this"), times=2)
    await jobs.start(manager)
    job = await handler.enqueue()
    event = await recorder.wait_for(TaskCancelled)
    assert event.reason == "its settlement may not have arrived"
    info = await job.info()
    assert info is not None
    assert info.state is S.RUNNING


class BrokenPropagator(TraceContextTextMapPropagator):
    """A propagator that can't read a stored trace context."""

    def extract(self, *args: Any, **kwargs: Any) -> Any:
        raise ArithmeticError("unknown format")


async def test_start_error(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job that can't be started is logged, and claimed again after its lease has expired."""
    jobs.handler(name="h")(log.record)
    body = b'{"args":[],"trace":{"traceparent":"?"}}'
    await broker.enqueue(
        [Message(id="one", handler="h", queue="q", body=body, retention=60, dead_retention=60)]
    )
    with monkeypatch.context() as patch:
        patch.setattr(propagate, "extract", BrokenPropagator().extract)
        worker = await jobs.start(manager, Ordered("q"))
        await broker.called("claim")
        await anyio.sleep(1)
        assert worker.in_flight == 0
    assert "job one can't be started" in caplog.text
    assert await jobs.handle("one").result() == 1
    assert log.ran == [2]


async def test_claim_after_lease_expiry(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, log: Log
) -> None:
    """A job isn't started if the claim took longer than its lease."""
    handler = jobs.handler(name="h")(log.record)
    job = await handler.enqueue()
    resume = broker.hold("claim")
    await jobs.start(manager)
    await broker.called("claim")
    await anyio.sleep(31)
    resume.set()
    assert await job.result() == 1
    assert log.ran == [1]
    assert [claim.attempt for claim in broker.claims] == [1, 1]


@pytest.mark.parametrize("lost", [False, True], ids=["call lost", "answer lost"])
async def test_settlement_retry(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    recorder: RecordingObserver,
    log: Log,
    lost: bool,
) -> None:
    """A settlement is retried, and the job runs once."""
    handler = jobs.handler(name="h")(log.record)
    (broker.lose if lost else broker.fail)("settle", times=2)
    await jobs.start(manager)
    job = await handler.enqueue()
    assert await job.result() == 1
    await recorder.wait_for(TaskSucceeded)
    assert log.ran == [1]
    assert events_of_attempts(recorder, job.id) == ["added", "started", "succeeded"]


async def test_lost_settlement_answers(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, recorder: RecordingObserver
) -> None:
    """Every attempt is settled once, although the first answer to its settlement is lost.

    After a failure, the next attempt may begin before the settlement is repeated.
    """

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
    names = events_of_attempts(recorder, job.id)
    assert sorted(names) == ["added", "added", "retrying", "started", "started", "succeeded"]


@pytest.mark.parametrize("seconds", [0, 60])
async def test_snooze_with_lost_answer(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    recorder: RecordingObserver,
    seconds: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job snoozes, although the answer is lost."""

    @jobs.handler(name="h")
    async def handler() -> None:
        if len(broker.claims) == 1:
            broker.lose("settle")
            raise Snooze(seconds)

    worker = await jobs.start(manager)
    job = await handler.enqueue()
    assert await job.wait() is S.SUCCEEDED
    await worker.close()
    (event,) = recorder.of(TaskCancelled)
    assert event.reason == f"snoozed for {seconds} s"
    assert "lease was lost" not in caplog.text


async def test_release_with_lost_answer(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, log: Log
) -> None:
    """A closing worker releases its job, although the answer is lost."""
    job = await jobs.handler(name="h")(log.wait).enqueue()
    worker = await jobs.start(manager)
    await log.started.wait()
    broker.lose("settle")
    await worker.close(timeout=0)
    stored = await broker.get(job.id)
    assert stored is not None
    assert (stored.state, stored.attempt) == (S.READY, 0)


async def test_settlement_without_retention(
    broker: FaultyBroker, manager: Manager, recorder: RecordingObserver, log: Log
) -> None:
    """A job with a retention of zero succeeds, although the answer is lost."""
    async with JobQueue(broker, retention=0) as jobs:
        handler = jobs.handler(name="h")(log.record)
        await jobs.start(manager)
        broker.lose("settle")
        job = await handler.enqueue()
        await recorder.wait_for(TaskSucceeded)
        assert events_of_attempts(recorder, job.id) == ["added", "started", "succeeded"]


async def test_shutdown_during_outage(
    broker: FaultyBroker, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """A manager's shutdown ends the retries of settlements, and the job stays running."""
    observers = [recorder := RecordingObserver(), LoggingObserver()]
    async with Manager(observers=observers, grace=0.05) as manager, JobQueue(broker) as jobs:
        handler = jobs.handler(name="h")(log.record)
        await jobs.start(manager)
        broker.down.add("settle")
        job = await handler.enqueue()
        await broker.called("settle", 2)
        manager.request_shutdown()
    assert events_of_attempts(recorder, job.id) == ["added", "started", "cancelled"]
    assert recorder.of(TaskCancelled)[0].reason == "its settlement may not have arrived"
    assert f"the settlements of 1 jobs may not have arrived ({job.id}): " in caplog.text
    (record,) = [record for record in caplog.messages if record.startswith("job ")]
    assert re.fullmatch(r"job 'h' \(.*\) ended after .* s: its settlement may not .*", record)
    broker.down.clear()
    stored = await broker.get(job.id)
    assert stored is not None
    assert stored.state is S.RUNNING


# Leases


@pytest.mark.usefixtures("renewing_often")
async def test_lost_lease_cancels_job(
    broker: FaultyBroker, manager: Manager, recorder: RecordingObserver, log: Log
) -> None:
    """A job whose lease is lost is cancelled, and can't change the stored result."""
    async with JobQueue(broker) as jobs:
        handler = jobs.handler(name="h")(log.wait)
        worker = await jobs.start(manager, concurrency=1)
        job = await handler.enqueue()
        await log.started.wait()
        (claim,) = broker.claims
        log.finish = anyio.Event()
        foreign = Settlement(id=job.id, token=claim.token, state=S.SUCCEEDED, result=b"7")
        assert await broker.real.settle([foreign]) == [True]
        await log.cancelled.wait()
        event = await recorder.wait_for(TaskCancelled)
        assert (event.id, event.reason) == (job.id, "its lease was lost")
        assert await job.result() == 7
        assert worker.in_flight == 0


async def test_settlement_after_lost_lease(
    broker: FaultyBroker, manager: Manager, recorder: RecordingObserver, log: Log
) -> None:
    """A job whose lease is lost is reported as cancelled, although it has succeeded."""
    async with JobQueue(broker) as jobs:
        handler = jobs.handler(name="h")(log.wait)
        await jobs.start(manager)
        job = await handler.enqueue()
        await log.started.wait()
        (claim,) = broker.claims
        foreign = Settlement(id=job.id, token=claim.token, state=S.SUCCEEDED, result=b"7")
        assert await broker.real.settle([foreign]) == [True]
        log.finish.set()
        event = await recorder.wait_for(TaskCancelled)
        assert event.reason == "its lease was lost"
        assert await job.result() == 7


@pytest.mark.usefixtures("renewing_often")
async def test_lost_lease_before_start(
    broker: FaultyBroker, recorder: RecordingObserver, log: Log
) -> None:
    """A job isn't started if its lease is lost while it waits for the manager's limit."""
    async with (
        Manager(limit=1, observers=[recorder]) as manager,
        JobQueue(broker) as jobs,
    ):
        handler = jobs.handler(name="h")(log.wait)
        first, second = await handler.enqueue_many([(), ()])
        await jobs.start(manager)
        await log.started.wait()
        claim = broker.claims[1]
        foreign = Settlement(id=second.id, token=claim.token, state=S.SUCCEEDED, result=b"7")
        assert await broker.real.settle([foreign]) == [True]
        event = await recorder.wait_for(TaskCancelled)
        assert (event.id, event.reason) == (second.id, "its lease was lost")
        log.finish.set()
        assert await first.result() == 1
        assert await second.result() == 7
    assert log.ran == [1]


@pytest.mark.usefixtures("renewing_often")
async def test_settlement_during_renewal(
    broker: FaultyBroker, manager: Manager, recorder: RecordingObserver, log: Log
) -> None:
    """A job that ends during the renewal of its lease is settled as usual."""
    async with JobQueue(broker) as jobs:
        handler = jobs.handler(name="h")(log.wait)
        await jobs.start(manager)
        job = await handler.enqueue()
        await log.started.wait()
        resume = broker.hold("renew")
        await broker.called("renew")
        log.finish.set()
        assert await job.result() == 1
        resume.set()
        await broker.called("renew", 1)
    assert recorder.of(TaskCancelled) == []
    assert events_of_attempts(recorder, job.id) == ["added", "started", "succeeded"]


@pytest.mark.usefixtures("renewing_often")
async def test_renewal_during_settlement(
    broker: FaultyBroker, manager: Manager, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """A lease isn't lost if the job's own settlement has ended it before a renewal."""
    async with JobQueue(broker) as jobs:
        handler = jobs.handler(name="h")(log.record)
        await jobs.start(manager)
        broker.lose("settle")
        job = await handler.enqueue()
        await broker.called("settle")
        resume = broker.hold("settle")
        await broker.called("settle", 2)
        renewed = broker.calls["renew"]
        await broker.called("renew", renewed + 2)
        resume.set()
        assert await job.result() == 1
    assert "lease was lost" not in caplog.text


@pytest.mark.parametrize("failure", ["down", "hangs", "error"])
async def test_renewal_failure(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    recorder: RecordingObserver,
    log: Log,
    failure: str,
) -> None:
    """A lease that can't be renewed is lost when it has expired, and no earlier."""
    handler = jobs.handler(name="h")(log.wait)
    await jobs.start(manager)
    began = anyio.current_time()
    job = await handler.enqueue()
    await log.started.wait()
    if failure == "down":
        broker.down.add("renew")
    elif failure == "hangs":
        broker.hold("renew")
    else:
        broker.fail("renew", error=ZeroDivisionError(), times=100)
    event = await recorder.wait_for(TaskCancelled)
    assert (event.id, event.reason) == (job.id, "its lease was lost")
    assert 29 < anyio.current_time() - began < 35
    assert log.ran[0] == 1
    log.finish.set()
    broker.down.clear()


async def test_renewal_in_parts(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    log: Log,
    recorder: RecordingObserver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the leases of the calls that fail are lost, not those that other calls renewed."""
    monkeypatch.setattr("background.queues._worker.heartbeat._PART", 2)
    renew, failing = broker.renew, set[str]()

    async def renew_some(claims: Sequence[Claim], *, lease: float) -> list[LeaseStatus]:
        failing.update(failing or {claim.message.id for claim in claims})
        assert len(claims) <= 2
        if any(claim.message.id in failing for claim in claims):
            await anyio.sleep_forever()
        return await renew(claims, lease=lease)

    monkeypatch.setattr(broker, "renew", renew_some)
    handler = jobs.handler(name="h")(log.wait)
    stored = [await handler.enqueue() for _ in range(5)]
    await jobs.start(manager)
    await recorder.wait_for(TaskCancelled)
    await anyio.sleep(1)
    log.finish.set()
    for job in stored:
        await job.result()
    assert len(failing) == 2
    assert {event.id for event in recorder.of(TaskCancelled)} == failing
    assert len(log.ran) == 7  # the two lost jobs ran twice


async def test_slow_renewal(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    recorder: RecordingObserver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker runs no more jobs than it can renew the leases of, and warns once."""
    monkeypatch.setattr("background.queues._worker.heartbeat._PART", 10)
    renew, claim, running, most = broker.renew, broker.claim, 0, 0

    async def renew_slowly(claims: Sequence[Claim], *, lease: float) -> list[LeaseStatus]:
        await anyio.sleep(0.075 * len(claims))  # 100 in a quarter of the lease
        return await renew(claims, lease=lease)

    async def claim_slowly(queues: Sequence[str], room: int, *, lease: float) -> list[Claim]:
        claims = await claim(queues, min(room, 5), lease=lease)
        await anyio.sleep(0.05 * len(claims))
        return claims

    @jobs.handler()
    async def nap() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(60)
        running -= 1

    monkeypatch.setattr(broker, "renew", renew_slowly)
    monkeypatch.setattr(broker, "claim", claim_slowly)
    stored = await nap.enqueue_many([()] * 300)
    await jobs.start(manager, concurrency=300)
    for job in stored:
        await job.result()
    assert len(recorder.of(TaskSucceeded)) == 300
    assert not recorder.of(TaskCancelled)
    assert 100 < most <= 160
    assert caplog.text.count("is the most whose leases of 30 s it renews in time") == 1


async def test_renewal_after_outage(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, log: Log
) -> None:
    """A job continues if its lease is renewed after an outage."""
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


async def test_second_run_after_lost_lease(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, recorder: RecordingObserver
) -> None:
    """A job whose lease is lost runs again while its cancelled attempt is still ending.

    The same worker runs both attempts.
    """
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


async def test_blocked_event_loop(
    jobs: JobQueue,
    manager: Manager,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker logs that it renews leases late because the event loop was blocked."""
    handler = jobs.handler(name="h")(log.wait)
    worker = await jobs.start(manager)
    await handler.enqueue()
    await log.started.wait()
    now = worker._loops._renewer._now
    delays = iter([12.0])
    monkeypatch.setattr(worker._loops._renewer, "_now", lambda: now() + next(delays, 0.0))
    await anyio.sleep(5)
    assert "leases are renewed 12.0 s late" in caplog.text
    log.finish.set()


# Shutdown


@pytest.mark.parametrize(
    ("held", "longest"), [("settle", 22), ("claim", 22), ("renew", 22), ("close", 23)]
)
async def test_shutdown_without_answers(
    broker: FaultyBroker, clock: Clock, held: str, longest: float
) -> None:
    """A shutdown takes at most the grace and `cancel_timeout`, if a broker never answers."""
    started, released = anyio.Event(), anyio.Event()
    jobs = JobQueue(broker, lease=3)

    @jobs.handler(name="short")
    async def short() -> None:
        started.set()
        await released.wait()

    @jobs.handler(name="endless")
    async def endless() -> None:
        await ages()

    async with Manager(grace=20, cancel_timeout=2) as manager, jobs:
        await jobs.enqueue("short")
        await jobs.enqueue("endless")
        await jobs.start(manager)
        await started.wait()
        held_until = broker.hold(held)
        released.set()
        await anyio.sleep(1)
        began = clock.now
        manager.request_shutdown()
    assert clock.now - began <= longest
    held_until.set()
