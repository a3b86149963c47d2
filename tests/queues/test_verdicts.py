"""Handlers that snooze, discard or cancel their job, and the attempts of a job."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import anyio
import pytest
from support.brokers.faulty import FaultyBroker, MemoryResults
from support.brokers.kinds import elapse
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from background import Manager, TaskCancelled, TaskFailed
from background.queues import (
    Cancel,
    Discard,
    JobCancelledError,
    JobContext,
    JobFailedError,
    JobQueue,
    JobState,
    Snooze,
)
from background.queues._attempts import attempts_of
from background.queues._codec.errors import earlier_attempts
from background.testing import RecordingObserver

S = JobState


async def test_snooze(jobs: JobQueue, manager: Manager, recorder: RecordingObserver) -> None:
    """A snoozed job runs again after the delay, and the attempt does not count."""
    times: list[float] = []

    @jobs.handler(name="h", retry=2)
    async def handler() -> int:
        times.append(anyio.current_time())
        if len(times) < 4:
            raise Snooze(60)
        return JobContext.current().attempt

    await jobs.start(manager)
    job = await handler.enqueue()
    assert await job.result() == 1
    assert [round(after - before) for before, after in pairwise(times)] == [60, 60, 60]
    reasons = [event.reason for event in recorder.events if isinstance(event, TaskCancelled)]
    assert reasons == ["snoozed for 60 s"] * 3
    info = await job.info()
    assert info is not None
    assert [attempt.outcome for attempt in info.attempts] == ["succeeded"]


async def test_snooze_of_thread(jobs: JobQueue, manager: Manager) -> None:
    """A sync handler snoozes its job, too."""
    runs: list[int] = []

    @jobs.handler(name="h")
    def handler() -> int:
        runs.append(1)
        if len(runs) == 1:
            raise Snooze(0)
        return len(runs)

    await jobs.start(manager)
    assert await (await handler.enqueue()).result() == 2


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "1", None])
def test_invalid_snooze(seconds: Any) -> None:
    """Snooze takes a finite number of seconds that is not negative."""
    with pytest.raises(ValueError, match=r"^seconds must be"):
        Snooze(seconds)


async def test_discard(jobs: JobQueue, manager: Manager, recorder: RecordingObserver) -> None:
    """A discarded job is dead without further attempts."""

    @jobs.handler(name="h", retry=5)
    async def handler() -> None:
        raise Discard("no such account")

    await jobs.start(manager)
    job = await handler.enqueue()
    with pytest.raises(JobFailedError, match=r"background\.queues\.Discard: no such account"):
        await job.result()
    info = await job.info()
    assert info is not None
    assert (info.state, info.attempt) == (S.DEAD, 1)
    assert [type(event.error) for event in recorder.events if isinstance(event, TaskFailed)] == [
        Discard
    ]
    assert recorder.names().count("dead") == 1


async def test_cancel_by_handler(
    jobs: JobQueue, manager: Manager, recorder: RecordingObserver
) -> None:
    """A handler cancels its job, and its reason is stored."""

    @jobs.handler(name="h", retry=5)
    async def handler() -> None:
        raise Cancel("the account was closed")

    await jobs.start(manager)
    job = await handler.enqueue()
    with pytest.raises(JobCancelledError):
        await job.result()
    info = await job.info()
    assert info is not None
    assert (info.state, info.attempt) == (S.CANCELLED, 1)
    assert info.error is not None
    assert info.error.message == "the account was closed"
    assert [(attempt.outcome, attempt.error) for attempt in info.attempts] == [
        ("cancelled", "background.queues.Cancel: the account was closed")
    ]
    reasons = [event.reason for event in recorder.events if isinstance(event, TaskCancelled)]
    assert reasons == ["the account was closed"]


@pytest.mark.parametrize(
    ("verdict", "state", "runs"),
    [(Snooze(60), S.SUCCEEDED, 2), (Discard("no"), S.DEAD, 1), (Cancel("no"), S.CANCELLED, 1)],
)
async def test_verdict_in_task_group(
    jobs: JobQueue, manager: Manager, verdict: Exception, state: JobState, runs: int
) -> None:
    """A verdict that is the only error of nested task groups decides about the job."""
    attempts: list[int] = []

    async def decide() -> None:
        if len(attempts) == 1:
            raise verdict

    @jobs.handler(name="h", retry=5)
    async def handler() -> None:
        attempts.append(JobContext.current().attempt)
        async with anyio.create_task_group() as outer, anyio.create_task_group() as inner:
            outer.start_soon(anyio.sleep, 1)
            inner.start_soon(decide)

    await jobs.start(manager)
    job = await handler.enqueue()
    assert await job.wait() is state
    assert attempts == [1] * runs
    if state is S.DEAD:
        with pytest.raises(JobFailedError, match=r"background\.queues\.Discard: no"):
            await job.result()


async def test_verdict_with_another_error(jobs: JobQueue, manager: Manager) -> None:
    """A verdict in a group with another error is an ordinary failure."""

    @jobs.handler(name="h", retry=2)
    async def handler() -> int:
        if JobContext.current().attempt == 1:
            raise ExceptionGroup("several", [Discard("no"), ValueError("no")])
        return 2

    await jobs.start(manager)
    assert await (await handler.enqueue()).result() == 2


async def test_attempts(manager: Manager, broker: FaultyBroker) -> None:
    """A job's info has its latest attempts, with their workers and errors."""
    async with JobQueue(broker) as jobs:
        policy = AsyncRetrying(stop=stop_after_attempt(9), wait=wait_fixed(1))

        @jobs.handler(name="h", retry=policy)
        async def handler() -> int:
            attempt = JobContext.current().attempt
            if attempt < 5:
                raise ValueError(f"number {attempt}" + "!" * 1000)
            return attempt

        job = await handler.enqueue()
        for confirmed in (True, False):
            claims = await broker.real.claim(["default"], 1, lease=1)
            if confirmed:
                await broker.real.renew(claims, lease=1)
            await elapse(broker.real, 2)
        worker = await jobs.start(manager)
        assert await job.result() == 5
        info = await job.info()
        assert info is not None
        assert [(attempt.number, attempt.outcome) for attempt in info.attempts] == [
            *((1, "crashed"), (2, "lost"), (3, "failed"), (4, "failed"), (5, "succeeded"))
        ]
        failed = info.attempts[2]
        assert failed.error is not None
        assert failed.error.startswith("ValueError: number 3!!!")
        assert len(failed.error) < 600
        times = [attempt.started_at for attempt in info.attempts]
        assert times == sorted(times)
        assert all(attempt.finished_at for attempt in info.attempts)
        assert info.worker is not None
        assert {attempt.worker for attempt in info.attempts} == {info.worker}
        await worker.close()


async def test_number_of_attempts(jobs: JobQueue, manager: Manager) -> None:
    """A job's info has the latest 20 attempts only."""
    policy = AsyncRetrying(stop=stop_after_attempt(30), wait=wait_fixed(1))

    @jobs.handler(name="h", retry=policy)
    async def handler() -> None:
        raise ValueError

    await jobs.start(manager)
    job = await handler.enqueue()
    assert await job.wait() is S.DEAD
    info = await job.info()
    assert info is not None
    assert [attempt.number for attempt in info.attempts] == [*range(11, 31)]
    assert {attempt.error for attempt in info.attempts} == {"ValueError"}


async def test_running_attempt(jobs: JobQueue, manager: Manager) -> None:
    """The attempt in progress has no end."""
    started, go_on = anyio.Event(), anyio.Event()

    @jobs.handler(name="h")
    async def handler() -> None:
        started.set()
        await go_on.wait()

    await jobs.start(manager)
    job = await handler.enqueue()
    await started.wait()
    info = await job.info()
    assert info is not None
    (attempt,) = info.attempts
    assert (attempt.number, attempt.outcome, attempt.finished_at) == (1, "running", None)
    go_on.set()
    assert await job.wait() is S.SUCCEEDED


@pytest.mark.parametrize(
    "attempts", [None, 5, "x", [5], [[]], [[1, 2, 3]], [["1", 1.0, 1.0, "t", "E", "m"]], {}]
)
async def test_unreadable_attempts(broker: FaultyBroker, attempts: Any) -> None:
    """Attempts of another format are ignored."""
    assert earlier_attempts({"attempts": attempts}) == []
    assert earlier_attempts(None) == []
    async with JobQueue(broker) as jobs:
        job = await jobs.enqueue("h")
        stored = await broker.get(job.id)
        assert stored is not None
        assert attempts_of(stored) == ()


@pytest.mark.parametrize("with_results", [False, True])
async def test_saved(manager: Manager, broker: FaultyBroker, with_results: bool) -> None:
    """A later attempt finds what an earlier one saved, wherever results are stored."""
    seen: list[Any] = []
    results = MemoryResults() if with_results else None
    async with JobQueue(broker, results=results) as jobs:

        @jobs.handler(name="h", retry=3)
        async def handler() -> str:
            context = JobContext.current()
            seen.append(context.saved)
            await context.save({"page": context.attempt})
            assert context.saved == {"page": context.attempt}
            if context.attempt < 3:
                raise ValueError
            return "done"

        await jobs.start(manager)
        job = await handler.enqueue()
        assert await job.result() == "done"
        await manager.close(timeout=0)
    assert seen == [None, {"page": 1}, {"page": 2}]
