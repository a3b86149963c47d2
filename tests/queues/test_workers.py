"""Workers: concurrency, queues, closing and cancellation."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any

import anyio
import pytest
from support.brokers.faulty import FaultyBroker
from support.job_events import events_of_attempts
from support.time import SOON

from background import (
    CloseReport,
    LoopsStoppedError,
    Manager,
    ManagerFullError,
    ManagerNotRunningError,
    Observer,
    TaskAdded,
    TaskCancelled,
    TaskFailed,
    TaskSucceeded,
    every,
)
from background.queues import (
    Handler,
    JobContext,
    JobFailedError,
    JobHandle,
    JobQueue,
    JobState,
    Ordered,
    Weighted,
)
from background.queues._worker.completer import Completer
from background.queues.memory import MemoryBroker
from background.testing import RecordingObserver, virtual_wall_clock

S = JobState


class Meter:
    """A handler that counts its concurrent calls, and blocks until `open` is set."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self.ran: list[Any] = []
        self.open = anyio.Event()
        self.cancelled = 0
        self._changed = anyio.Event()

    async def work(self, label: Any = None) -> Any:
        self.ran.append(label)
        self.now += 1
        self.most = max(self.most, self.now)
        self._notify()
        try:
            await self.open.wait()
        except BaseException:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1
            self._notify()
        return label

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def reach(self, now: int) -> None:
        while self.now != now:
            await self._changed.wait()


@pytest.fixture
async def meter(anyio_backend: object) -> Meter:
    return Meter()


@pytest.fixture
def work(jobs: JobQueue, meter: Meter) -> Handler[Any, Any, Any]:
    return jobs.handler(name="work")(meter.work)


async def state_and_attempt(broker: FaultyBroker, id: str) -> tuple[JobState, int]:
    stored = await broker.real.get(id)
    assert stored is not None
    return stored.state, stored.attempt


# Concurrency and queues


async def test_concurrency(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, meter: Meter, work: Any
) -> None:
    """A worker claims no more jobs than its concurrency."""
    handles = await work.enqueue_many([(n,) for n in range(20)])
    worker = await jobs.start(manager, concurrency=3)
    await meter.reach(3)
    assert worker.in_flight == 3
    assert (await jobs.count(state=S.RUNNING), await jobs.count(state=S.READY)) == (3, 17)
    meter.open.set()
    for job in handles:
        await job.wait()
    assert (meter.most, broker.most) == (3, 3)
    assert sorted(meter.ran) == [*range(20)]
    assert len(broker.claims) == 20


async def test_refill(jobs: JobQueue, manager: Manager, broker: FaultyBroker) -> None:
    """A worker at its concurrency claims one job for every job that ends."""
    gates = [anyio.Event() for _ in range(6)]
    started = [anyio.Event() for _ in range(6)]

    @jobs.handler(name="pass")
    async def go_through(number: int) -> None:
        started[number].set()
        await gates[number].wait()

    handles = await go_through.enqueue_many([(n,) for n in range(6)])
    worker = await jobs.start(manager, concurrency=3)
    for number in range(3):
        await started[number + 2].wait()
        gates[number].set()
        await handles[number].wait()
        await started[number + 3].wait()
        assert (worker.in_flight, await jobs.count(state=S.RUNNING)) == (3, 3)
    for gate in gates:
        gate.set()
    for job in handles:
        await job.wait()
    assert broker.most == 3


async def test_several_workers(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, meter: Meter, work: Any
) -> None:
    """Workers of one or several managers have separate concurrencies, and share the jobs."""
    for _ in range(2):
        await jobs.start(manager, concurrency=2)
    async with Manager() as second_manager:
        await jobs.start(second_manager, concurrency=3)
        handles = await work.enqueue_many([(n,) for n in range(20)])
        await meter.reach(7)
        assert second_manager.count() == 3
        meter.open.set()
        for job in handles:
            await job.wait()
    assert meter.most == 7
    assert sorted(meter.ran) == [*range(20)]


async def test_ordered_queues(jobs: JobQueue, manager: Manager) -> None:
    """A worker claims from its queues in the given order, or in that of their declaration."""
    ran: list[str] = []

    @jobs.handler(name="low", queue="low")
    async def run_low(label: str) -> None:
        ran.append(label)

    @jobs.handler(name="high", queue="high")
    async def run_high(label: str) -> None:
        ran.append(label)

    await run_low.enqueue_many([("a",), ("b",)])
    await run_high.enqueue_many([("c",), ("d",)])
    last = await run_low.enqueue("e")
    worker = await jobs.start(manager, Ordered("high", "low"), concurrency=1)
    await last.wait()
    assert ran == ["c", "d", "a", "b", "e"]
    await worker.close()
    ran.clear()
    await run_high.enqueue_many([("c",), ("d",)])
    await run_low.enqueue("a")
    last = await run_high.enqueue("b")
    await jobs.start(manager, concurrency=1)  # in the order of their declaration
    await last.wait()
    assert ran == ["a", "c", "d", "b"]


async def test_unlisted_queue(jobs: JobQueue, manager: Manager, meter: Meter, work: Any) -> None:
    """A worker doesn't claim from a queue that is not one of its own."""
    unlisted = await work.options(queue="other").enqueue("other")
    listed = await work.enqueue("default")
    await jobs.start(manager, Ordered("default"))
    meter.open.set()
    assert await listed.result() == "default"
    info = await unlisted.info()
    assert info.state is S.READY


async def test_weighted_queues(jobs: JobQueue, manager: Manager) -> None:
    """A worker claims more often from a queue with a greater weight."""
    ran: list[str] = []
    half = anyio.Event()

    @jobs.handler(name="record")
    async def record(queue: str) -> None:
        ran.append(queue)
        if len(ran) == 100:
            half.set()

    for queue in ("high", "low"):
        await record.options(queue=queue).enqueue_many([(queue,)] * 100)
    seed = 20
    weighted = Weighted({"high": 3, "low": 1}, random=Random(seed))
    await jobs.start(manager, weighted, concurrency=1)
    await half.wait()
    assert 60 < ran[:100].count("high") < 90, seed


async def test_concurrent_sync_handlers(jobs: JobQueue, manager: Manager) -> None:
    """Sync handlers run concurrently, in threads."""
    together = threading.Barrier(2, timeout=SOON)

    @jobs.handler(name="meet")
    def meet() -> int:
        return together.wait()

    await jobs.start(manager, concurrency=2)
    handles = await meet.enqueue_many([(), ()])
    assert {await job.result() for job in handles} == {0, 1}


async def test_timeout(jobs: JobQueue, manager: Manager) -> None:
    """An attempt that exceeds its timeout fails with TimeoutError."""

    @jobs.handler(name="hangs", timeout=0.01)
    async def hangs() -> None:
        await anyio.sleep_forever()

    await jobs.start(manager)
    with pytest.raises(
        JobFailedError, match=r"TimeoutError: an attempt of task 'hangs' took longer"
    ):
        await (await hangs.enqueue()).result()


async def test_manager_limit(broker: FaultyBroker, meter: Meter) -> None:
    """A manager's limit applies to jobs, and its capacity only to its own tasks."""
    async with Manager(limit=2, capacity=1) as manager, JobQueue(broker) as jobs:
        work = jobs.handler(name="work")(meter.work)
        handles = await work.enqueue_many([(n,) for n in range(6)])
        worker = await jobs.start(manager, concurrency=4)
        await meter.reach(2)
        assert (worker.in_flight, manager.count()) == (4, 4)
        with pytest.raises(ManagerFullError):
            manager.run(anyio.sleep, 0)
        meter.open.set()
        assert [await job.result() for job in handles] == [*range(6)]
    assert meter.most == 2


async def test_task_with_same_id(jobs: JobQueue, manager: Manager, meter: Meter, work: Any) -> None:
    """A job runs although one of the manager's tasks has its id."""
    from background import Task

    busy = manager.run_task(Task(anyio.sleep_forever, id="taken"))
    await jobs.start(manager)
    job = await work.options(id="taken").enqueue("job")
    await meter.reach(1)
    meter.open.set()
    assert await job.result() == "job"
    busy.cancel()


async def test_start_errors(jobs: JobQueue, manager: Manager, work: Any) -> None:
    """start() rejects invalid arguments, and managers that don't run or are shutting down."""
    for concurrency in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="concurrency"):
            await jobs.start(manager, concurrency=concurrency)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="manager"):
        await jobs.start("manager")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="queues"):
        await jobs.start(manager, "default")  # type: ignore[arg-type]
    with pytest.raises(ManagerNotRunningError):
        await jobs.start(Manager())
    async with Manager() as stopped:
        stopped.request_shutdown()
        with pytest.raises(LoopsStoppedError):
            await jobs.start(stopped)
    with pytest.raises(LoopsStoppedError):
        await jobs.start(stopped)


async def test_start_without_handlers(jobs: JobQueue, manager: Manager) -> None:
    """start() requires queues if there are no handlers."""
    with pytest.raises(ValueError, match="queues must be given"):
        await jobs.start(manager)
    with pytest.raises(ValueError, match="must be a list, Ordered"):
        await jobs.start(manager, "mail")  # type: ignore[arg-type]
    await jobs.start(manager, Ordered("q"))


# Closing a worker


async def test_close(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, meter: Meter, work: Any
) -> None:
    """close() waits for running jobs, and the worker claims no further ones."""
    first = await work.enqueue(1)
    worker = await jobs.start(manager, concurrency=2)
    await meter.reach(1)
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(worker.close)
        await anyio.wait_all_tasks_blocked()
        late = await work.enqueue(2)
        meter.open.set()
    assert await state_and_attempt(broker, first.id) == (S.SUCCEEDED, 1)
    assert await state_and_attempt(broker, late.id) == (S.READY, 0)
    claims = broker.calls["claim"]
    await worker.close()
    await worker.close(timeout=0)
    assert (broker.calls["claim"], worker.in_flight) == (claims, 0)
    with pytest.raises(ValueError, match="timeout"):
        await worker.close(timeout=-1)


async def test_close_timeout(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, meter: Meter, work: Any
) -> None:
    """close() releases jobs at its timeout immediately, and doesn't count their attempts."""
    handles = await work.enqueue_many([(n,) for n in range(3)])
    worker = await jobs.start(manager, concurrency=2)
    await meter.reach(2)
    await worker.close(timeout=0.01)
    assert meter.cancelled == 2
    for job in handles:
        assert await state_and_attempt(broker, job.id) == (S.READY, 0)
    meter.open.set()
    await jobs.start(manager)
    assert [await job.result() for job in handles] == [0, 1, 2]
    assert await state_and_attempt(broker, handles[0].id) == (S.SUCCEEDED, 1)


async def test_close_by_job(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, meter: Meter, work: Any
) -> None:
    """A job that closes its own worker waits for the remaining jobs, and then ends."""

    @jobs.handler(name="closes")
    async def closes(timeout: float | None) -> str:
        await worker.close(timeout=timeout)
        return "closed"

    for timeout, expected in ((None, (S.SUCCEEDED, 1)), (0, (S.READY, 0))):
        running = await work.enqueue("running")
        worker = await jobs.start(manager)
        await meter.reach(1)
        closing = await closes.enqueue(timeout)
        if timeout is None:
            await broker.called("renew")  # while both jobs run
            meter.open.set()
        assert await closing.result() == "closed"
        assert await state_and_attempt(broker, running.id) == expected
        meter.open = anyio.Event()
        claims = broker.calls["claim"]
        await worker.close()
        assert broker.calls["claim"] == claims


async def test_close_by_two_jobs(jobs: JobQueue, manager: Manager) -> None:
    """Two jobs that close their worker don't wait for each other."""

    @jobs.handler(name="closes")
    async def closes() -> str:
        await worker.close()
        return "closed"

    handles = await closes.enqueue_many([(), ()])
    worker = await jobs.start(manager, concurrency=2)
    assert [await job.result() for job in handles] == ["closed", "closed"]


# Exits of the manager and the queue


@asynccontextmanager
async def manager_and_queue(
    broker: FaultyBroker, queue_first: bool, **options: Any
) -> AsyncIterator[tuple[Manager, JobQueue]]:
    manager, jobs = Manager(**options), JobQueue(broker)
    async with AsyncExitStack() as stack:
        for block in (jobs, manager) if queue_first else (manager, jobs):
            await stack.enter_async_context(block)
        yield manager, jobs


ORDERS = pytest.mark.parametrize("queue_first", [False, True], ids=["inside", "outside"])


@ORDERS
async def test_exit(broker: FaultyBroker, meter: Meter, queue_first: bool) -> None:
    """The exit waits for running jobs, and starts no further ones."""
    async with manager_and_queue(broker, queue_first) as (manager, jobs):
        work = jobs.handler(name="work")(meter.work)
        job, later = await work.enqueue_many([(1,), (2,)])
        await jobs.start(manager, concurrency=1)
        await meter.reach(1)
        manager.run(_open_soon, meter)
    assert await state_and_attempt(broker, job.id) == (S.SUCCEEDED, 1)
    assert (await state_and_attempt(broker, later.id))[1] == 0


async def _open_soon(meter: Meter) -> None:
    await anyio.sleep(0.01)
    meter.open.set()


@ORDERS
@pytest.mark.parametrize("idle", [False, True])
async def test_exit_without_jobs(broker: FaultyBroker, queue_first: bool, idle: bool) -> None:
    """The exit ends a worker that has no jobs."""
    async with manager_and_queue(broker, queue_first) as (manager, jobs):
        worker = await jobs.start(manager, Ordered("q"))
        if idle:
            await broker.called("wait_for_work")
    assert worker.in_flight == 0
    assert await broker.count() == 0


@ORDERS
async def test_exit_during_claim(broker: FaultyBroker, meter: Meter, queue_first: bool) -> None:
    """Jobs claimed during the exit are released, and not started."""
    meter.open.set()
    async with manager_and_queue(broker, queue_first) as (manager, jobs):
        work = jobs.handler(name="work")(meter.work)
        job = await work.enqueue(1)
        resume = broker.hold("claim")
        await jobs.start(manager)
        await broker.called("claim")
        manager.request_shutdown()
        resume.set()
    assert await state_and_attempt(broker, job.id) == (S.READY, 0)
    assert meter.ran == []


@ORDERS
async def test_exit_during_outage(
    broker: FaultyBroker,
    meter: Meter,
    queue_first: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Attempts to release jobs during an outage end with the queue's exit."""
    ended = anyio.Event()
    run = Completer.run

    async def watched_run(completer: Completer) -> None:
        try:
            await run(completer)
        finally:
            ended.set()

    monkeypatch.setattr(Completer, "run", watched_run)
    async with manager_and_queue(broker, queue_first) as (manager, jobs):
        work = jobs.handler(name="work")(meter.work)
        await work.enqueue(1)
        resume = broker.hold("claim")
        worker = await jobs.start(manager)
        await broker.called("claim")
        worker._loops.stop()
        broker.down.add("settle")
        resume.set()
        await broker.called("settle", 2)
    with anyio.fail_after(10):
        await ended.wait()
    assert "the settlements of 1 jobs may not have arrived" in caplog.text
    broker.down.clear()


@ORDERS
async def test_exit_on_cancellation(broker: FaultyBroker, meter: Meter, queue_first: bool) -> None:
    """Running jobs are released immediately if the block is cancelled."""
    with anyio.CancelScope() as scope:
        async with manager_and_queue(broker, queue_first) as (manager, jobs):
            work = jobs.handler(name="work")(meter.work)
            job = await work.enqueue(1)
            await jobs.start(manager)
            await meter.reach(1)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert meter.cancelled == 1
    assert await state_and_attempt(broker, job.id) == (S.READY, 0)


@ORDERS
async def test_exit_on_error(broker: FaultyBroker, meter: Meter, queue_first: bool) -> None:
    """Running jobs are completed if the block raises an error."""
    with pytest.raises(ZeroDivisionError):
        async with manager_and_queue(broker, queue_first) as (manager, jobs):
            work = jobs.handler(name="work")(meter.work)
            job = await work.enqueue(1)
            await jobs.start(manager)
            await meter.reach(1)
            manager.run(_open_soon, meter)
            raise ZeroDivisionError
    assert await state_and_attempt(broker, job.id) == (S.SUCCEEDED, 1)


@ORDERS
async def test_shutdown_request(broker: FaultyBroker, meter: Meter, queue_first: bool) -> None:
    """After a shutdown request, running jobs are completed, and no further ones are claimed."""
    async with manager_and_queue(broker, queue_first) as (manager, jobs):
        work = jobs.handler(name="work")(meter.work)
        job = await work.enqueue(1)
        await jobs.start(manager)
        await meter.reach(1)
        manager.request_shutdown()
        await manager.shutdown_requested()
        late = await work.enqueue(2)
        meter.open.set()
    assert await state_and_attempt(broker, job.id) == (S.SUCCEEDED, 1)
    assert await state_and_attempt(broker, late.id) == (S.READY, 0)


@ORDERS
@pytest.mark.parametrize("requests", [1, 2])
async def test_grace(broker: FaultyBroker, meter: Meter, queue_first: bool, requests: int) -> None:
    """Running jobs are released after the grace period, or on a second shutdown request."""
    recorder = RecordingObserver()
    grace = 0.02 if requests == 1 else None
    async with manager_and_queue(broker, queue_first, grace=grace, observers=[recorder]) as (
        manager,
        jobs,
    ):
        work = jobs.handler(name="work", retry=5)(meter.work)
        handles = await work.enqueue_many([(1,), (2,)])
        await jobs.start(manager)
        await meter.reach(2)
        for _ in range(requests):
            manager.request_shutdown()
    assert meter.cancelled == 2
    for job in handles:
        assert await state_and_attempt(broker, job.id) == (S.READY, 0)
    assert [event.reason for event in recorder.of(TaskCancelled)] == ["shutdown"] * 2


async def test_restart(broker: FaultyBroker, meter: Meter) -> None:
    """A queue works with several managers in turn, and a manager with a queue entered twice."""
    meter.open.set()
    async with JobQueue(broker) as jobs:
        work = jobs.handler(name="work")(meter.work)
        for number in range(3):
            async with Manager() as manager:
                await jobs.start(manager)
                assert await (await work.enqueue(number)).result() == number
    async with Manager() as manager:
        for number in range(2):
            async with jobs:
                await jobs.start(manager)
                assert await (await work.enqueue(number)).result() == number


# Exits and cancellations of jobs


@pytest.mark.parametrize(
    ("error", "expected"), [(KeyboardInterrupt, (S.READY, 0)), (SystemExit, (S.DEAD, 1))]
)
async def test_job_ends_program(
    broker: FaultyBroker,
    error: type[BaseException],
    expected: tuple[JobState, int],
    meter: Meter,
) -> None:
    """A job that raises KeyboardInterrupt is released, and one that raises SystemExit is dead.

    The job doesn't cause the interrupt. It causes the exit, which must not end every worker.
    """
    recorder = RecordingObserver()

    async def exits() -> None:
        raise error

    with pytest.raises(error):
        async with Manager(observers=[recorder]) as manager, JobQueue(broker) as jobs:
            handler = jobs.handler(name="exits", retry=5)(exits)
            work = jobs.handler(name="work")(meter.work)
            running = await work.enqueue(1)
            await jobs.start(manager)
            await meter.reach(1)
            job = await handler.enqueue()
            await anyio.sleep_forever()
    assert await state_and_attempt(broker, job.id) == expected
    assert await state_and_attempt(broker, running.id) == (S.READY, 0)
    assert recorder.names().count("dead") == (expected[0] is S.DEAD)
    assert len(recorder.of(TaskFailed)) == 1


async def test_stuck_job(broker: FaultyBroker, meter: Meter) -> None:
    """A job that ignores its cancellation delays neither close() nor the release of jobs."""
    release = anyio.Event()
    ended = anyio.Event()

    async def stuck() -> str:
        with anyio.CancelScope(shield=True):
            await release.wait()
        ended.set()
        return "late"

    async with Manager(cancel_timeout=3) as manager, JobQueue(broker) as jobs:
        handler = jobs.handler(name="stuck")(stuck)
        work = jobs.handler(name="work")(meter.work)
        running = await work.enqueue(1)
        job = await handler.enqueue()
        worker = await jobs.start(manager)
        await meter.reach(1)
        await anyio.wait_all_tasks_blocked()
        began = anyio.current_time()
        await worker.close(timeout=0)
        assert anyio.current_time() - began <= 3
        assert await state_and_attempt(broker, running.id) == (S.READY, 0)
        assert worker.in_flight == 1
        report = await manager.close(timeout=0)
        assert isinstance(report, CloseReport)
        assert [task.id for task in report.stuck] == [job.id]
    assert anyio.current_time() - began < 20
    release.set()
    await ended.wait()
    await anyio.wait_all_tasks_blocked()
    assert worker.in_flight == 0
    await anyio.sleep(31)
    claims = await broker.real.claim(["default"], 5, lease=1)
    assert sorted(claim.message.id for claim in claims) == sorted([job.id, running.id])


async def test_close_with_stuck_job(broker: FaultyBroker) -> None:
    """A job that closes its worker is settled, although another job ignores its cancellation."""
    release, is_running = anyio.Event(), anyio.Event()

    async with Manager(cancel_timeout=3) as manager, JobQueue(broker) as jobs:

        @jobs.handler(name="stuck")
        async def stuck() -> None:
            is_running.set()
            with anyio.CancelScope(shield=True):
                await release.wait()

        @jobs.handler(name="closes")
        async def closes() -> None:
            await is_running.wait()
            await worker.close(timeout=0)

        await jobs.enqueue("stuck")
        job = await jobs.enqueue("closes")
        worker = await jobs.start(manager)
        assert await job.wait() is S.SUCCEEDED
        release.set()


async def test_cancel_by_queue(
    jobs: JobQueue, manager: Manager, recorder: RecordingObserver, meter: Meter, work: Any
) -> None:
    """A running job is cancelled by the queue whose worker runs it, but only once."""
    await jobs.start(manager)
    job = await work.enqueue(1)
    await meter.reach(1)
    assert await jobs.cancel(job.id)
    assert await job.wait() is S.CANCELLED
    event = await recorder.wait_for(TaskCancelled)
    assert (event.id, event.reason) == (job.id, "the job was cancelled")
    assert events_of_attempts(recorder, job.id) == ["added", "started", "cancelled"]
    assert not await jobs.cancel(job.id)


@pytest.mark.usefixtures("renewing_often")
async def test_cancel_by_second_queue(
    broker: FaultyBroker, manager: Manager, recorder: RecordingObserver, meter: Meter
) -> None:
    """A running job is cancelled by a second queue with the same broker."""
    async with JobQueue(broker) as jobs, JobQueue(broker) as client:
        work = jobs.handler(name="work", retry=9)(meter.work)
        await jobs.start(manager)
        job = await work.enqueue(1)
        await meter.reach(1)
        assert await client.cancel(job.id)
        assert await client.handle(job.id).wait() is S.CANCELLED
        event = await recorder.wait_for(TaskCancelled)
        assert event.reason == "the job was cancelled"
    assert meter.cancelled == 1


async def test_cancel_by_manager(
    jobs: JobQueue, manager: Manager, recorder: RecordingObserver, meter: Meter, work: Any
) -> None:
    """The manager cancels a job like a task, with a reason."""
    await jobs.start(manager)
    job = await work.enqueue(1)
    await meter.reach(1)
    handle = manager.get(job.id)
    assert handle is not None
    assert handle.job is not None
    assert (handle.job.id, handle.name) == (job.id, "work")
    assert manager.cancel(job.id, reason="enough")
    assert await job.wait() is S.CANCELLED
    event = await recorder.wait_for(TaskCancelled)
    assert event.reason == "enough"


async def test_success_after_cancellation(jobs: JobQueue, manager: Manager) -> None:
    """A job that returns in spite of its cancellation has succeeded."""
    started = anyio.Event()

    @jobs.handler(name="stubborn")
    async def stubborn() -> str:
        started.set()
        try:
            await anyio.sleep_forever()
        except BaseException:
            return "done"

    await jobs.start(manager)
    job = await stubborn.enqueue()
    await started.wait()
    manager.cancel(job.id)
    assert await job.result() == "done"


class CancellingObserver(Observer):
    """Cancels jobs before they start."""

    def __init__(self, manager: Callable[[], Manager]) -> None:
        self._manager = manager

    def on_task_added(self, event: TaskAdded) -> None:
        if event.job is not None:
            self._manager().cancel(event.id, reason="not wanted")


async def test_cancel_by_observer(broker: FaultyBroker, meter: Meter) -> None:
    """A job that an observer cancels before its start doesn't run."""
    recorder = RecordingObserver()
    observers = [CancellingObserver(lambda: manager), recorder]
    async with Manager(observers=observers) as manager, JobQueue(broker) as jobs:
        work = jobs.handler(name="work")(meter.work)
        worker = await jobs.start(manager)
        job = await work.enqueue(1)
        assert await job.wait() is S.CANCELLED
        await worker.close()
    assert meter.ran == []
    assert events_of_attempts(recorder, job.id) == ["added", "cancelled"]


async def test_cancel_when_added(broker: FaultyBroker, meter: Meter) -> None:
    """A job that its worker cancels when the task is added doesn't run."""

    class CancelsByWorker(Observer):
        def on_task_added(self, event: TaskAdded) -> None:
            worker._loops.cancel_job(event.id)

    async with Manager(observers=[CancelsByWorker()]) as manager, JobQueue(broker) as jobs:
        work = jobs.handler(name="work")(meter.work)
        worker = await jobs.start(manager)
        job = await work.enqueue(1)
        assert await job.wait() is S.CANCELLED
    assert meter.ran == []


async def test_closed_worker_services(jobs: JobQueue, manager: Manager, work: Any) -> None:
    """A closed worker doesn't restart a service that the event loop has cancelled."""
    worker = await jobs.start(manager)
    await worker.close()
    served: list[str] = []

    async def serve() -> None:
        served.append("again")

    worker._loops._serve("late", serve)
    await anyio.wait_all_tasks_blocked()
    assert served == []


async def test_nested_jobs(jobs: JobQueue, manager: Manager) -> None:
    """A job can enqueue a job and wait for its result."""

    @jobs.handler(name="count")
    async def count(down: int) -> list[int]:
        if not down:
            return []
        job: JobHandle[list[int]] = await jobs.enqueue("count", [down - 1])
        return [JobContext.current().attempt, *await job.result()]

    await jobs.start(manager)
    assert await (await count.enqueue(3)).result() == [1, 1, 1]


# Worker processes


class StopObserver(Observer):
    """Requests the shutdown of the manager that `work()` makes."""

    def __init__(self, requested: anyio.Event) -> None:
        self.requested = requested

    async def watch(self, manager: Manager) -> None:
        await self.requested.wait()
        manager.request_shutdown()


async def test_work() -> None:
    """`work()` processes jobs until a shutdown is requested."""
    jobs = JobQueue(MemoryBroker())
    requested = anyio.Event()

    @jobs.handler(queue="mail")
    async def stop() -> None:
        await anyio.sleep(1)
        requested.set()

    jobs.schedule(every(10), stop.job())
    recorder = RecordingObserver()
    with virtual_wall_clock(datetime(2030, 1, 1, tzinfo=UTC)), anyio.fail_after(60):
        await jobs.work(
            ["mail"], concurrency=2, signals=False, observers=[recorder, StopObserver(requested)]
        )
    ended = [event.job for event in recorder.of(TaskSucceeded) if event.job is not None]
    assert [job.queue for job in ended] == ["mail"]


async def test_shutdown_before_work() -> None:
    """`work()` returns if the shutdown is requested while it opens the broker."""
    requested = anyio.Event()

    class SlowBroker(MemoryBroker):
        async def open(self) -> None:
            requested.set()
            await anyio.sleep(1)
            await super().open()

    jobs = JobQueue(SlowBroker())
    jobs.handler()(anyio.sleep_forever)
    recorder = RecordingObserver()
    with anyio.fail_after(60):
        await jobs.work(signals=False, observers=[recorder, StopObserver(requested)])
    assert recorder.names() == ["closing", "closed"]
