"""Workers: how many jobs they take, in which order, and how they end."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any

import anyio
import pytest
from support.brokers.faulty import FaultyBroker
from support.job_events import told_of
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
from background.testing import RecordingObserver

S = JobState


class Meter:
    """Counts how many are inside at once, and lets them out together."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self.ran: list[Any] = []
        self.open = anyio.Event()
        self.cancelled = 0
        self._changed = anyio.Event()

    async def visit(self, what: Any = None) -> Any:
        self.ran.append(what)
        self.now += 1
        self.most = max(self.most, self.now)
        self._tell()
        try:
            await self.open.wait()
        except BaseException:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1
            self._tell()
        return what

    def _tell(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def reach(self, now: int) -> None:
        while self.now != now:
            await self._changed.wait()


@pytest.fixture
async def meter(anyio_backend: object) -> Meter:
    return Meter()


@pytest.fixture
def visit(jobs: JobQueue, meter: Meter) -> Handler[Any, Any, Any]:
    return jobs.handler(name="visit")(meter.visit)


async def has_ended(broker: FaultyBroker, id: str) -> tuple[JobState, int]:
    stored = await broker.real.get(id)
    assert stored is not None
    return stored.state, stored.attempt


# How many, and which


async def test_no_more_jobs_are_claimed_than_there_is_room_for(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, meter: Meter, visit: Any
) -> None:
    made = await visit.enqueue_many([(n,) for n in range(20)])
    worker = await jobs.start(manager, concurrency=3)
    await meter.reach(3)
    assert worker.in_flight == 3
    assert (await jobs.count(state=S.RUNNING), await jobs.count(state=S.READY)) == (3, 17)
    meter.open.set()
    for each in made:
        await each.wait()
    assert (meter.most, broker.most) == (3, 3)
    assert sorted(meter.ran) == [*range(20)]
    assert len(broker.claims) == 20


async def test_the_room_that_one_job_leaves_is_for_one(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker
) -> None:
    gates = [anyio.Event() for _ in range(6)]
    started = [anyio.Event() for _ in range(6)]

    @jobs.handler(name="pass")
    async def go_through(number: int) -> None:
        started[number].set()
        await gates[number].wait()

    made = await go_through.enqueue_many([(n,) for n in range(6)])
    worker = await jobs.start(manager, concurrency=3)
    for number in range(3):
        await started[number + 2].wait()
        gates[number].set()
        await made[number].wait()
        await started[number + 3].wait()
        assert (worker.in_flight, await jobs.count(state=S.RUNNING)) == (3, 3)
    for gate in gates:
        gate.set()
    for each in made:
        await each.wait()
    assert broker.most == 3


async def test_the_jobs_of_two_workers_are_twice_as_many(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, meter: Meter, visit: Any
) -> None:
    for _ in range(2):
        await jobs.start(manager, concurrency=2)
    async with Manager() as other:
        await jobs.start(other, concurrency=3)
        made = await visit.enqueue_many([(n,) for n in range(20)])
        await meter.reach(7)
        assert other.count() == 3
        meter.open.set()
        for each in made:
            await each.wait()
    assert meter.most == 7
    assert sorted(meter.ran) == [*range(20)]


async def test_the_first_queue_comes_first(jobs: JobQueue, manager: Manager) -> None:
    ran: list[str] = []

    @jobs.handler(name="low", queue="low")
    async def note(what: str) -> None:
        ran.append(what)

    @jobs.handler(name="high", queue="high")
    async def note_too(what: str) -> None:
        ran.append(what)

    await note.enqueue_many([("a",), ("b",)])
    await note_too.enqueue_many([("c",), ("d",)])
    last = await note.enqueue("e")
    worker = await jobs.start(manager, Ordered("high", "low"), concurrency=1)
    await last.wait()
    assert ran == ["c", "d", "a", "b", "e"]
    await worker.close()
    ran.clear()
    await note_too.enqueue_many([("c",), ("d",)])
    await note.enqueue("a")
    last = await note_too.enqueue("b")
    await jobs.start(manager, concurrency=1)  # in the order in which they were declared
    await last.wait()
    assert ran == ["a", "c", "d", "b"]


async def test_queues_that_are_not_named_are_left_alone(
    jobs: JobQueue, manager: Manager, meter: Meter, visit: Any
) -> None:
    other = await visit.options(queue="other").enqueue("other")
    mine = await visit.enqueue("mine")
    await jobs.start(manager, Ordered("default"))
    meter.open.set()
    assert await mine.result() == "mine"
    info = await other.info()
    assert info.state is S.READY


async def test_heavier_queues_come_first_more_often(jobs: JobQueue, manager: Manager) -> None:
    ran: list[str] = []
    half = anyio.Event()

    @jobs.handler(name="note")
    async def note(queue: str) -> None:
        ran.append(queue)
        if len(ran) == 100:
            half.set()

    for queue in ("high", "low"):
        await note.options(queue=queue).enqueue_many([(queue,)] * 100)
    seed = 20
    weighted = Weighted({"high": 3, "low": 1}, random=Random(seed))
    await jobs.start(manager, weighted, concurrency=1)
    await half.wait()
    assert 60 < ran[:100].count("high") < 90, seed


async def test_sync_handlers_run_beside_each_other(jobs: JobQueue, manager: Manager) -> None:
    together = threading.Barrier(2, timeout=SOON)

    @jobs.handler(name="meet")
    def meet() -> int:
        return together.wait()

    await jobs.start(manager, concurrency=2)
    made = await meet.enqueue_many([(), ()])
    assert {await each.result() for each in made} == {0, 1}


async def test_a_timeout_ends_an_attempt(jobs: JobQueue, manager: Manager) -> None:
    @jobs.handler(name="hangs", timeout=0.01)
    async def hangs() -> None:
        await anyio.sleep_forever()

    await jobs.start(manager)
    with pytest.raises(
        JobFailedError, match=r"TimeoutError: an attempt of task 'hangs' took longer"
    ):
        await (await hangs.enqueue()).result()


async def test_a_managers_limit_holds_for_jobs_and_its_capacity_does_not(
    broker: FaultyBroker, meter: Meter
) -> None:
    async with Manager(limit=2, capacity=1) as manager, JobQueue(broker) as jobs:
        visit = jobs.handler(name="visit")(meter.visit)
        made = await visit.enqueue_many([(n,) for n in range(6)])
        worker = await jobs.start(manager, concurrency=4)
        await meter.reach(2)
        assert (worker.in_flight, manager.count()) == (4, 4)
        with pytest.raises(ManagerFullError):
            manager.run(anyio.sleep, 0)
        meter.open.set()
        assert [await each.result() for each in made] == [*range(6)]
    assert meter.most == 2


async def test_a_task_with_the_id_of_a_job_is_in_nobodys_way(
    jobs: JobQueue, manager: Manager, meter: Meter, visit: Any
) -> None:
    from background import Task

    busy = manager.run_task(Task(anyio.sleep_forever, id="taken"))
    await jobs.start(manager)
    job = await visit.options(id="taken").enqueue("job")
    await meter.reach(1)
    meter.open.set()
    assert await job.result() == "job"
    busy.cancel()


async def test_what_cannot_be_started(jobs: JobQueue, manager: Manager, visit: Any) -> None:
    for concurrency in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="concurrency"):
            await jobs.start(manager, concurrency=concurrency)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="manager"):
        await jobs.start("manager")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="queues"):
        await jobs.start(manager, "default")  # type: ignore[arg-type]
    with pytest.raises(ManagerNotRunningError):
        await jobs.start(Manager())
    async with Manager() as other:
        other.request_shutdown()
        with pytest.raises(LoopsStoppedError):
            await jobs.start(other)
    with pytest.raises(LoopsStoppedError):
        await jobs.start(other)


async def test_queues_must_be_given_where_no_handlers_tell_them(
    jobs: JobQueue, manager: Manager
) -> None:
    async def visit() -> None: ...

    with pytest.raises(ValueError, match="queues must be given"):
        await jobs.start(manager)
    with pytest.raises(ValueError, match="must be a list, Ordered"):
        await jobs.start(manager, "mail")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="write @jobs"):
        jobs.handler(visit)  # type: ignore[arg-type]
    await jobs.start(manager, Ordered("q"))


# Closing a worker


async def test_a_worker_that_closes_waits_for_its_jobs(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, meter: Meter, visit: Any
) -> None:
    first = await visit.enqueue(1)
    worker = await jobs.start(manager, concurrency=2)
    await meter.reach(1)
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(worker.close)
        await anyio.wait_all_tasks_blocked()
        late = await visit.enqueue(2)
        meter.open.set()
    assert await has_ended(broker, first.id) == (S.SUCCEEDED, 1)
    assert await has_ended(broker, late.id) == (S.READY, 0)
    claims = broker.asked["claim"]
    await worker.close()
    await worker.close(timeout=0)
    assert (broker.asked["claim"], worker.in_flight) == (claims, 0)
    with pytest.raises(ValueError, match="timeout"):
        await worker.close(timeout=-1)


async def test_what_a_closing_worker_cannot_wait_for_is_handed_back(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, meter: Meter, visit: Any
) -> None:
    """At once, and as if it had not been tried."""
    made = await visit.enqueue_many([(n,) for n in range(3)])
    worker = await jobs.start(manager, concurrency=2)
    await meter.reach(2)
    await worker.close(timeout=0.01)
    assert meter.cancelled == 2
    for each in made:
        assert await has_ended(broker, each.id) == (S.READY, 0)
    meter.open.set()
    await jobs.start(manager)
    assert [await each.result() for each in made] == [0, 1, 2]
    assert await has_ended(broker, made[0].id) == (S.SUCCEEDED, 1)


async def test_a_job_closes_its_own_worker(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, meter: Meter, visit: Any
) -> None:
    """It waits for the others, and then ends itself."""

    @jobs.handler(name="closes")
    async def closes(timeout: float | None) -> str:
        await worker.close(timeout=timeout)
        return "closed"

    for timeout, fate in ((None, (S.SUCCEEDED, 1)), (0, (S.READY, 0))):
        other = await visit.enqueue("other")
        worker = await jobs.start(manager)
        await meter.reach(1)
        closing = await closes.enqueue(timeout)
        if timeout is None:
            await broker.called("renew")  # while both run
            meter.open.set()
        assert await closing.result() == "closed"
        assert await has_ended(broker, other.id) == fate
        meter.open = anyio.Event()
        claims = broker.asked["claim"]
        await worker.close()
        assert broker.asked["claim"] == claims


async def test_jobs_that_close_their_worker_do_not_wait_for_each_other(
    jobs: JobQueue, manager: Manager
) -> None:
    @jobs.handler(name="closes")
    async def closes() -> str:
        await worker.close()
        return "closed"

    made = await closes.enqueue_many([(), ()])
    worker = await jobs.start(manager, concurrency=2)
    assert [await each.result() for each in made] == ["closed", "closed"]


# Leaving the blocks


@asynccontextmanager
async def entered(
    broker: FaultyBroker, queue_first: bool, **options: Any
) -> AsyncIterator[tuple[Manager, JobQueue]]:
    manager, jobs = Manager(**options), JobQueue(broker)
    async with AsyncExitStack() as stack:
        for each in (jobs, manager) if queue_first else (manager, jobs):
            await stack.enter_async_context(each)
        yield manager, jobs


ORDERS = pytest.mark.parametrize("queue_first", [False, True], ids=["inside", "outside"])


@ORDERS
async def test_jobs_that_run_are_waited_for_when_the_blocks_are_left(
    broker: FaultyBroker, meter: Meter, queue_first: bool
) -> None:
    async with entered(broker, queue_first) as (manager, jobs):
        visit = jobs.handler(name="visit")(meter.visit)
        job, later = await visit.enqueue_many([(1,), (2,)])
        await jobs.start(manager, concurrency=1)
        await meter.reach(1)
        manager.run(_open_soon, meter)
    assert await has_ended(broker, job.id) == (S.SUCCEEDED, 1)
    assert (await has_ended(broker, later.id))[1] == 0


async def _open_soon(meter: Meter) -> None:
    await anyio.sleep(0.01)
    meter.open.set()


@ORDERS
@pytest.mark.parametrize("idle", [False, True])
async def test_nothing_hangs_where_there_is_nothing_to_do(
    broker: FaultyBroker, queue_first: bool, idle: bool
) -> None:
    async with entered(broker, queue_first) as (manager, jobs):
        worker = await jobs.start(manager, Ordered("q"))
        if idle:
            await broker.called("wait_for_work")
    assert worker.in_flight == 0
    assert await broker.count() == 0


@ORDERS
async def test_jobs_that_are_just_claimed_are_handed_back(
    broker: FaultyBroker, meter: Meter, queue_first: bool
) -> None:
    """Without a single step, when the blocks are left at that very time."""
    meter.open.set()
    async with entered(broker, queue_first) as (manager, jobs):
        visit = jobs.handler(name="visit")(meter.visit)
        job = await visit.enqueue(1)
        going_on = broker.hold("claim")
        await jobs.start(manager)
        await broker.called("claim")
        manager.request_shutdown()
        going_on.set()
    assert await has_ended(broker, job.id) == (S.READY, 0)
    assert meter.ran == []


@ORDERS
async def test_jobs_that_are_just_claimed_are_left_behind_with_their_broker(
    broker: FaultyBroker,
    meter: Meter,
    queue_first: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing goes on trying to hand them back once the queue was left."""
    ended = anyio.Event()
    run = Completer.run

    async def watched(settler: Completer) -> None:
        try:
            await run(settler)
        finally:
            ended.set()

    monkeypatch.setattr(Completer, "run", watched)
    async with entered(broker, queue_first) as (manager, jobs):
        visit = jobs.handler(name="visit")(meter.visit)
        await visit.enqueue(1)
        going_on = broker.hold("claim")
        worker = await jobs.start(manager)
        await broker.called("claim")
        worker._loops.stop()
        broker.down.add("settle")
        going_on.set()
        await broker.called("settle", 2)
    with anyio.fail_after(10):
        await ended.wait()
    assert "1 jobs could not be settled" in caplog.text
    broker.down.clear()


@ORDERS
async def test_jobs_are_handed_back_at_once_when_the_body_is_cancelled(
    broker: FaultyBroker, meter: Meter, queue_first: bool
) -> None:
    with anyio.CancelScope() as scope:
        async with entered(broker, queue_first) as (manager, jobs):
            visit = jobs.handler(name="visit")(meter.visit)
            job = await visit.enqueue(1)
            await jobs.start(manager)
            await meter.reach(1)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert meter.cancelled == 1
    assert await has_ended(broker, job.id) == (S.READY, 0)


@ORDERS
async def test_jobs_go_on_when_the_body_fails(
    broker: FaultyBroker, meter: Meter, queue_first: bool
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with entered(broker, queue_first) as (manager, jobs):
            visit = jobs.handler(name="visit")(meter.visit)
            job = await visit.enqueue(1)
            await jobs.start(manager)
            await meter.reach(1)
            manager.run(_open_soon, meter)
            raise ZeroDivisionError
    assert await has_ended(broker, job.id) == (S.SUCCEEDED, 1)


@ORDERS
async def test_after_a_shutdown_request_nothing_is_claimed(
    broker: FaultyBroker, meter: Meter, queue_first: bool
) -> None:
    async with entered(broker, queue_first) as (manager, jobs):
        visit = jobs.handler(name="visit")(meter.visit)
        job = await visit.enqueue(1)
        await jobs.start(manager)
        await meter.reach(1)
        manager.request_shutdown()
        await manager.shutdown_requested()
        late = await visit.enqueue(2)
        meter.open.set()
    assert await has_ended(broker, job.id) == (S.SUCCEEDED, 1)
    assert await has_ended(broker, late.id) == (S.READY, 0)


@ORDERS
@pytest.mark.parametrize("requests", [1, 2])
async def test_jobs_are_handed_back_when_the_grace_time_is_over(
    broker: FaultyBroker, meter: Meter, queue_first: bool, requests: int
) -> None:
    """Or when a second request comes."""
    recorder = RecordingObserver()
    grace = 0.02 if requests == 1 else None
    async with entered(broker, queue_first, grace=grace, observers=[recorder]) as (manager, jobs):
        visit = jobs.handler(name="visit", retry=5)(meter.visit)
        made = await visit.enqueue_many([(1,), (2,)])
        await jobs.start(manager)
        await meter.reach(2)
        for _ in range(requests):
            manager.request_shutdown()
    assert meter.cancelled == 2
    for each in made:
        assert await has_ended(broker, each.id) == (S.READY, 0)
    assert [each.reason for each in recorder.of(TaskCancelled)] == ["shutdown"] * 2


async def test_a_queue_goes_on_with_another_manager(broker: FaultyBroker, meter: Meter) -> None:
    meter.open.set()
    async with JobQueue(broker) as jobs:
        visit = jobs.handler(name="visit")(meter.visit)
        for number in range(3):
            async with Manager() as manager:
                await jobs.start(manager)
                assert await (await visit.enqueue(number)).result() == number
    async with Manager() as manager:
        for number in range(2):
            async with jobs:
                await jobs.start(manager)
                assert await (await visit.enqueue(number)).result() == number


# What jobs do to workers


@pytest.mark.parametrize(
    ("error", "fate"), [(KeyboardInterrupt, (S.READY, 0)), (SystemExit, (S.DEAD, 1))]
)
async def test_a_job_that_ends_the_program(
    broker: FaultyBroker,
    error: type[BaseException],
    fate: tuple[JobState, int],
    meter: Meter,
) -> None:
    """An interrupt is not the job's doing; its own exit is, and must not end every worker."""
    recorder = RecordingObserver()

    async def exits() -> None:
        raise error

    with pytest.raises(error):
        async with Manager(observers=[recorder]) as manager, JobQueue(broker) as jobs:
            handler = jobs.handler(name="exits", retry=5)(exits)
            visit = jobs.handler(name="visit")(meter.visit)
            other = await visit.enqueue(1)
            await jobs.start(manager)
            await meter.reach(1)
            job = await handler.enqueue()
            await anyio.sleep_forever()
    assert await has_ended(broker, job.id) == fate
    assert await has_ended(broker, other.id) == (S.READY, 0)
    assert recorder.names().count("dead") == (fate[0] is S.DEAD)
    assert len(recorder.of(TaskFailed)) == 1


async def test_a_job_that_cannot_be_cancelled_holds_up_nobody(
    broker: FaultyBroker, meter: Meter
) -> None:
    release = anyio.Event()
    ended = anyio.Event()

    async def stuck() -> str:
        with anyio.CancelScope(shield=True):
            await release.wait()
        ended.set()
        return "late"

    async with Manager(cancel_timeout=3) as manager, JobQueue(broker) as jobs:
        handler = jobs.handler(name="stuck")(stuck)
        visit = jobs.handler(name="visit")(meter.visit)
        other = await visit.enqueue(1)
        job = await handler.enqueue()
        worker = await jobs.start(manager)
        await meter.reach(1)
        await anyio.wait_all_tasks_blocked()
        began = anyio.current_time()
        await worker.close(timeout=0)
        assert anyio.current_time() - began <= 3
        assert await has_ended(broker, other.id) == (S.READY, 0)
        assert worker.in_flight == 1
        report = await manager.close(timeout=0)
        assert isinstance(report, CloseReport)
        assert [each.id for each in report.stuck] == [job.id]
    assert anyio.current_time() - began < 20
    release.set()
    await ended.wait()
    await anyio.wait_all_tasks_blocked()
    assert worker.in_flight == 0
    await anyio.sleep(31)
    claims = await broker.real.claim(["default"], 5, lease=1)
    assert sorted(each.message.id for each in claims) == sorted([job.id, other.id])


async def test_a_running_job_is_cancelled_by_its_queue(
    jobs: JobQueue, manager: Manager, recorder: RecordingObserver, meter: Meter, visit: Any
) -> None:
    await jobs.start(manager)
    job = await visit.enqueue(1)
    await meter.reach(1)
    assert await jobs.cancel(job.id)
    assert await job.wait() is S.CANCELLED
    event = await recorder.wait_for(TaskCancelled)
    assert (event.id, event.reason) == (job.id, "the job was cancelled")
    assert told_of(recorder, job.id) == ["added", "started", "cancelled"]
    assert not await jobs.cancel(job.id)


@pytest.mark.usefixtures("renewing_often")
async def test_a_running_job_is_cancelled_from_elsewhere(
    broker: FaultyBroker, manager: Manager, recorder: RecordingObserver, meter: Meter
) -> None:
    async with JobQueue(broker) as jobs, JobQueue(broker) as front:
        visit = jobs.handler(name="visit", retry=9)(meter.visit)
        await jobs.start(manager)
        job = await visit.enqueue(1)
        await meter.reach(1)
        assert await front.cancel(job.id)
        assert await front.handle(job.id).wait() is S.CANCELLED
        event = await recorder.wait_for(TaskCancelled)
        assert event.reason == "the job was cancelled"
    assert meter.cancelled == 1


async def test_a_job_is_cancelled_as_the_task_that_it_is(
    jobs: JobQueue, manager: Manager, recorder: RecordingObserver, meter: Meter, visit: Any
) -> None:
    await jobs.start(manager)
    job = await visit.enqueue(1)
    await meter.reach(1)
    handle = manager.get(job.id)
    assert handle is not None
    assert handle.job is not None
    assert (handle.job.id, handle.name) == (job.id, "visit")
    assert manager.cancel(job.id, reason="enough")
    assert await job.wait() is S.CANCELLED
    event = await recorder.wait_for(TaskCancelled)
    assert event.reason == "enough"


async def test_a_job_that_succeeds_though_cancelled_has_succeeded(
    jobs: JobQueue, manager: Manager
) -> None:
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


class Cancels(Observer):
    """Cancels tasks before they can start."""

    def __init__(self, manager: Callable[[], Manager]) -> None:
        self._manager = manager

    def on_task_added(self, event: TaskAdded) -> None:
        if event.job is not None:
            self._manager().cancel(event.id, reason="not wanted")


async def test_an_observer_cancels_a_job_before_it_starts(
    broker: FaultyBroker, meter: Meter
) -> None:
    recorder = RecordingObserver()
    observers = [Cancels(lambda: manager), recorder]
    async with Manager(observers=observers) as manager, JobQueue(broker) as jobs:
        visit = jobs.handler(name="visit")(meter.visit)
        worker = await jobs.start(manager)
        job = await visit.enqueue(1)
        assert await job.wait() is S.CANCELLED
        await worker.close()
    assert meter.ran == []
    assert told_of(recorder, job.id) == ["added", "cancelled"]


async def test_a_worker_cancels_a_job_that_is_just_added(
    broker: FaultyBroker, meter: Meter
) -> None:
    class Tells(Observer):
        def on_task_added(self, event: TaskAdded) -> None:
            worker._loops.cancel_job(event.id)

    async with Manager(observers=[Tells()]) as manager, JobQueue(broker) as jobs:
        visit = jobs.handler(name="visit")(meter.visit)
        worker = await jobs.start(manager)
        job = await visit.enqueue(1)
        assert await job.wait() is S.CANCELLED
    assert meter.ran == []


async def test_a_closed_worker_serves_no_longer(
    jobs: JobQueue, manager: Manager, visit: Any
) -> None:
    """Also where the event loop has cancelled a service of its, which would begin again."""
    worker = await jobs.start(manager)
    await worker.close()
    served: list[str] = []

    async def serve() -> None:
        served.append("again")

    worker._loops._serve("late", serve)
    await anyio.wait_all_tasks_blocked()
    assert served == []


async def test_jobs_enqueue_jobs(jobs: JobQueue, manager: Manager) -> None:
    @jobs.handler(name="count")
    async def count(down: int) -> list[int]:
        if not down:
            return []
        job: JobHandle[list[int]] = await jobs.enqueue("count", [down - 1])
        return [JobContext.current().attempt, *await job.result()]

    await jobs.start(manager)
    assert await (await count.enqueue(3)).result() == [1, 1, 1]
