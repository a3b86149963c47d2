"""The tools for jobs in `background.testing`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from support.brokers.faulty import FaultyBroker
from support.time import Clock
from tenacity import AsyncRetrying, stop_after_delay, wait_fixed

from background import Manager, every
from background._support import clock as system_clock
from background.queues import (
    JobContext,
    JobFailedError,
    JobInfo,
    JobQueue,
    JobState,
    QueueError,
    Snooze,
    chain,
)
from background.queues.memory import MemoryBroker, MemoryResults
from background.queues.sqlite import SQLiteBroker
from background.testing import (
    RecordingObserver,
    drain,
    enqueued,
    jobs_memory,
    virtual_wall_clock,
)

__all__ = ["jobs_memory"]  # a fixture


def make_queue(**options: Any) -> JobQueue:
    """Return a queue whose broker must not be used."""
    return JobQueue(SQLiteBroker("/nonexistent/jobs.db"), **options)


def add_handlers(jobs: JobQueue) -> Any:
    @jobs.handler(name="divide", queue="maths")
    async def divide(a: int, b: int = 1) -> float:
        return a / b

    return divide


def results(ended: list[JobInfo]) -> list[Any]:
    return [job.result for job in ended]


# override()


async def test_override() -> None:
    """A queue uses another broker in the block, and its own one afterwards."""
    jobs = make_queue(results=MemoryResults())
    divide, shown = add_handlers(jobs), repr(jobs)
    with jobs.override(MemoryBroker()) as broker:
        async with jobs:
            await divide.enqueue(6, 3)
            assert results(await drain(jobs)) == [2]
        assert len(broker.messages()) == 1
        assert "MemoryBroker" in repr(jobs)
    assert repr(jobs) == shown


async def test_override_open_queue() -> None:
    """The broker of an open queue is not replaced, neither at the beginning nor at the end."""
    jobs = JobQueue(MemoryBroker())
    async with jobs:
        with pytest.raises(QueueError, match="close it before you enter override"):
            jobs.override(MemoryBroker()).__enter__()
    jobs = make_queue()
    with (
        pytest.raises(QueueError, match="close it before you leave override"),
        jobs.override(MemoryBroker()),
    ):
        await jobs.open()
    await jobs.close()
    assert "SQLiteBroker" in repr(jobs)


def test_override_bad_broker() -> None:
    """Only a broker replaces a broker."""
    with pytest.raises(ValueError, match="broker must be of type Broker"):
        make_queue().override("memory://").__enter__()  # type: ignore[type-var]


def test_override_after_error() -> None:
    """An error in the block is raised, and the broker is restored."""
    jobs = make_queue()
    with pytest.raises(ZeroDivisionError), jobs.override(MemoryBroker()):
        raise ZeroDivisionError
    assert "SQLiteBroker" in repr(jobs)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_override_in_sync_code(backend: str) -> None:
    """Sync code enqueues in the new broker, and an event loop runs these jobs when they are due."""
    jobs = make_queue()
    divide = add_handlers(jobs)

    async def main() -> None:
        async with jobs:
            began = anyio.current_time()
            ended = results(await drain(jobs))
            ended += results(await drain(jobs, scheduled=True))
            assert ended == [3, 4]
            assert anyio.current_time() - began < 5

    with jobs.override(MemoryBroker()):
        divide.options(expires=60).enqueue_sync(6, 2)
        divide.options(delay=0.05).enqueue_sync(8, 2)
        assert [job.args for job in enqueued(jobs)] == [(6, 2), (8, 2)]
        anyio.run(main, backend=backend)
        divide.enqueue_sync(1)
    assert "not open" in repr(jobs)
    assert "SQLiteBroker" in repr(jobs)


async def test_memory_fixture(jobs_memory: Callable[[JobQueue], MemoryBroker]) -> None:
    """The fixture replaces the brokers of queues until the end of the test."""
    jobs, more = make_queue(), make_queue()
    assert jobs_memory(jobs) is not jobs_memory(more)
    divide = add_handlers(jobs)
    async with jobs, more:
        await divide.enqueue(6, b=3)
        assert results(await drain(jobs)) == [2]
        assert await drain(more) == []


# drain()


@pytest.fixture
def memory() -> JobQueue:
    """A queue in memory."""
    return JobQueue(MemoryBroker())


async def test_drain_order_and_states(memory: JobQueue) -> None:
    """The jobs that ended are returned in the order of their ends, without earlier ones."""
    divide = add_handlers(memory)

    @memory.handler(name="wait")
    async def wait(seconds: float) -> float:
        await anyio.sleep(seconds)
        return seconds

    async with memory:
        await divide.enqueue(6, 3)
        assert results(await drain(memory)) == [2]
        await wait.enqueue_many([(200,), (100,)])
        await divide.enqueue(1, 0)
        began = anyio.current_time()
        ended = await drain(memory)
        assert anyio.current_time() - began == pytest.approx(200)
        assert [job.state for job in ended] == [JobState.DEAD, *[JobState.SUCCEEDED] * 2]
        assert results(ended) == [None, 100, 200]
        assert isinstance(ended[0].error, JobFailedError)
        assert await drain(memory) == []


class UnluckyBroker(MemoryBroker):
    """Counts no jobs, as if each one changed its state between two counts."""

    async def count(self, *, queue: str | None = None, state: JobState | None = None) -> int:
        return 0


async def test_drain_between_counts(anyio_backend: object) -> None:
    """A job that is in none of the states when they are counted is waited for."""
    jobs = JobQueue(UnluckyBroker())
    divide = add_handlers(jobs)
    async with jobs:
        await divide.enqueue(6, 3)
        assert results(await drain(jobs)) == [2]
        assert await drain(jobs) == []


async def test_drain_chain(memory: JobQueue) -> None:
    """The jobs of a chain, and those that jobs enqueue, are run, too."""
    divide = add_handlers(memory)

    @memory.handler(name="outer", queue="outer")
    async def outer() -> str:
        inner = await divide.options(queue="elsewhere").enqueue(6, 3)
        return f"{await inner} {JobContext.current().previous}"

    async with memory:
        job = await memory.enqueue(chain(divide.job(1, 1), outer.job()))
        ended = await drain(memory)
        assert len(ended) == 4
        assert await job.result(timeout=0) == "2.0 1.0"


async def test_drain_without_retries(memory: JobQueue) -> None:
    """A retry stays scheduled, and runs when scheduled jobs are asked for."""
    attempts: list[int] = []

    @memory.handler(name="fail", retry=3)
    async def fail() -> None:
        attempts.append(JobContext.current().attempt)
        raise ConnectionError("busy")

    async with memory:
        await fail.enqueue()
        later = await fail.options(delay=3600).enqueue()
        assert await drain(memory) == []
        assert attempts == [1]
        ended = await drain(memory, scheduled=True)
        assert attempts == [1, 2, 3, 1, 2, 3]
        assert [job.state for job in ended] == [JobState.DEAD] * 2
        assert ended[-1].id == later.id


@pytest.mark.parametrize("is_served", [True, False])
async def test_drain_with_manager(
    memory: JobQueue, manager: Manager, recorder: RecordingObserver, is_served: bool
) -> None:
    """The worker of a manager runs the jobs of its queues, and observers have got all events."""
    divide = add_handlers(memory)
    async with memory:
        worker = await memory.start(manager, ["maths" if is_served else "other"])
        job = await divide.enqueue(6, 3)
        assert results(await drain(memory)) == [2]
        assert recorder.names(job.id) == [
            "enqueued",
            *(["added", "started", "succeeded"] if is_served else []),
        ]
        await worker.close()
        await divide.enqueue(9, 3)
        assert results(await drain(memory)) == [3]


async def test_drain_ignores_schedules(memory: JobQueue) -> None:
    """The jobs of schedules are not enqueued."""
    divide = add_handlers(memory)
    memory.schedule(every(0.1), divide.job(6, 3))
    async with memory:
        await divide.options(delay=60).enqueue(1, 1)
        assert results(await drain(memory, scheduled=True)) == [1]


async def test_drain_endless_job(
    memory: JobQueue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that does not end is cancelled and released after the timeout."""
    monkeypatch.setattr("background.testing._jobs._VIRTUAL", 120.0)  # instead of a day
    caplog.set_level(logging.ERROR)

    @memory.handler(name="hang")
    async def hang() -> None:
        await anyio.sleep_forever()

    async with memory:
        job = await hang.enqueue()
        began = anyio.current_time()
        with pytest.raises(TimeoutError, match=f"after 90 s: {job.id} of hang is ready"):
            await drain(memory, timeout=90)
        assert anyio.current_time() - began == pytest.approx(90)
        with pytest.raises(TimeoutError, match="after 120 s"):
            await drain(memory)
        info = await job.info()
        assert info is not None
        assert info.state is JobState.READY
    assert caplog.records == []


async def test_drain_jobs_that_enqueue_jobs(
    memory: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that enqueue each other for ever are bounded by real time."""
    monkeypatch.setattr("background.testing._jobs._REAL", 0.1)

    @memory.handler(name="again")
    async def again() -> None:
        await again.enqueue()

    async with memory:
        await again.enqueue()
        with pytest.raises(TimeoutError, match=r"left after 0\.1 s of real time: .*; end them$"):
            await drain(memory)


async def test_drain_until_stop_after_delay(memory: JobQueue) -> None:
    """A policy's time from the first attempt on is virtual, too."""

    @memory.handler(name="h", retry=AsyncRetrying(stop=stop_after_delay(60), wait=wait_fixed(10)))
    async def handler() -> None:
        raise ValueError

    async with memory:
        await handler.enqueue()
        (job,) = await drain(memory, scheduled=True)
    assert (job.state, job.attempt) == (JobState.DEAD, 7)
    assert job.finished_at is not None
    assert job.finished_at - job.enqueued_at == pytest.approx(60)


async def test_drain_unknown_handler() -> None:
    """A job that no worker can run is dead after `unknown_for` seconds of virtual time."""
    real = system_clock.wall
    async with JobQueue(MemoryBroker(), unknown_for=100) as jobs:
        jobs.handler(name="h", queue="default")(anyio.sleep)
        await jobs.enqueue("unknown")
        (job,) = await drain(jobs, scheduled=True)
    assert job.state is JobState.DEAD
    assert job.finished_at is not None
    assert 100 < job.finished_at - job.enqueued_at < 130
    assert system_clock.wall is real


async def test_drain_with_wall_clock(memory: JobQueue) -> None:
    """The test's own wall clock is used during the call."""
    start = datetime(2030, 1, 1, tzinfo=UTC)

    @memory.handler(name="h")
    async def handler() -> float:
        return system_clock.wall()

    with virtual_wall_clock(start):
        async with memory:
            await handler.options(delay=600).enqueue()
            (job,) = await drain(memory, scheduled=True)
    assert job.result == pytest.approx(start.timestamp() + 600)


async def test_drain_snoozing_job(memory: JobQueue) -> None:
    """A job that snoozes for ever is bounded in virtual time."""

    @memory.handler(name="snooze")
    async def snooze() -> None:
        raise Snooze(60)

    async with memory:
        await snooze.enqueue()
        assert await drain(memory) == []
        with pytest.raises(TimeoutError, match="of snooze is scheduled"):
            await drain(memory, scheduled=True, timeout=630)


async def test_drain_in_job(memory: JobQueue) -> None:
    """A job can't wait for its own end."""

    @memory.handler(name="drain_all")
    async def drain_all() -> None:
        await drain(memory)

    async with memory:
        await drain_all.enqueue()
        (job,) = await drain(memory)
        assert "would wait for the job that calls it" in str(job.error)


async def test_drain_bad_calls(memory: JobQueue) -> None:
    """A queue that is not open, and arguments of other types, are refused."""
    with pytest.raises(QueueError, match="the queue is not open"):
        await drain(memory)
    with pytest.raises(ValueError, match="jobs must be of type JobQueue"):
        await drain(MemoryBroker())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scheduled must be of type bool"):
        await drain(memory, scheduled=60)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout must be"):
        await drain(memory, timeout=-1)


async def test_drain_any_broker(broker: FaultyBroker) -> None:
    """Jobs of every broker are run."""
    jobs = JobQueue(broker)
    divide = add_handlers(jobs)
    async with jobs:
        await divide.options(delay=0.1).enqueue(6, 3)
        await divide.enqueue(8, 2)
        assert results(await drain(jobs, scheduled=True)) == [4, 2]


@pytest.mark.realtime
async def test_drain_in_real_time(memory: JobQueue) -> None:
    """In real time, the default timeout is a minute, and scheduled jobs are awaited."""

    @memory.handler(name="sync")
    def sync(number: int) -> int:
        return number

    async with memory:
        await sync.options(delay=0.02).enqueue(1)
        await sync.enqueue(2)
        assert sorted(results(await drain(memory, scheduled=True))) == [1, 2]


# enqueued()


async def test_enqueued(memory: JobQueue) -> None:
    """The jobs of one handler or of all are listed in order, before and after they run."""
    divide = add_handlers(memory)

    @memory.handler(name="greet", aliases=["hello"])
    async def greet(names: set[str]) -> None: ...

    async with memory:
        await divide.options(meta={"k": 1}, delay=5).enqueue(6, b=3)
        await memory.enqueue(chain(greet.job({"ada"}), divide.job(1, 2)))
        await memory.enqueue("hello", [{"eve"}])
        await memory.enqueue("unknown", [[1]])
        for _ in range(2):
            first, second = enqueued(memory, divide)
            assert (first.args, first.kwargs, first.meta) == ((6,), {"b": 3}, {"k": 1})
            assert (first.handler, first.queue, first.delay, first.at) == (
                "divide",
                "maths",
                5,
                None,
            )
            assert (second.args, second.kwargs) == ((1, 2), {})
            assert [job.args for job in enqueued(memory, "greet")] == [({"ada"},), ({"eve"},)]
            assert [job.args for job in enqueued(memory, "unknown")] == [([1],)]
            assert len({job.id for job in enqueued(memory)}) == 5
            await drain(memory)
    assert len(enqueued(memory)) == 5


def test_enqueued_bad_calls(memory: JobQueue) -> None:
    """Only a queue in memory can list its jobs."""
    with pytest.raises(QueueError, match=r"needs a MemoryBroker, not <SQLiteBroker .*override"):
        enqueued(make_queue())
    with pytest.raises(ValueError, match="jobs must be of type JobQueue"):
        enqueued(MemoryBroker())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="handler must be a handler or its name, not int"):
        enqueued(memory, 5)  # type: ignore[arg-type]


async def test_drain_of_delayed_jobs(clock: Clock) -> None:
    """Delayed jobs run when they are due, and expire no earlier."""
    jobs = JobQueue(MemoryBroker())

    @jobs.handler(name="note", expires=3700)
    async def note() -> None:
        clock.note()

    async with jobs:
        for delay in (1000, 3600):
            await note.options(delay=delay).enqueue()
        ended = await drain(jobs, scheduled=True)
    assert [job.state for job in ended] == [JobState.SUCCEEDED] * 2
    assert clock.times == pytest.approx([1000, 3600], abs=0.1)


async def test_drain_of_other_queues() -> None:
    """A job can wait for a job that it enqueues in another queue."""
    jobs = JobQueue(MemoryBroker())

    @jobs.handler(name="inner", queue="inner")
    async def inner() -> int:
        return 7

    @jobs.handler(name="outer")
    async def outer() -> int:
        await anyio.sleep(52)
        return await (await inner.enqueue()).result(timeout=10)

    async with jobs:
        await outer.enqueue()
        ended = await drain(jobs)
    assert [job.result for job in ended] == [7, 7]


async def test_error_inside_override() -> None:
    """An error inside the block is raised, although the queue is open."""
    jobs = JobQueue(MemoryBroker())
    with pytest.raises(ZeroDivisionError), jobs.override(MemoryBroker()):
        await jobs.open()
        raise ZeroDivisionError
    await jobs.close()
