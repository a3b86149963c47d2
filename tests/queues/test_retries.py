"""Retries of jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from support.brokers.faulty import FaultyBroker
from support.brokers.kinds import elapse
from support.job_events import events_of_attempts
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    RetryError,
    TryAgain,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    stop_after_delay,
    wait_fixed,
    wait_none,
)

from background import (
    JobDead,
    Manager,
    TaskCancelled,
    TaskFailed,
    TaskRetrying,
    TaskStarted,
    TaskSucceeded,
)
from background.queues import JobContext, JobFailedError, JobHandle, JobQueue, JobState
from background.queues.memory import MemoryBroker
from background.testing import RecordingObserver, drain

S = JobState
ENDS = (TaskSucceeded, TaskFailed, TaskCancelled)


def policy(attempts: int, **options: Any) -> AsyncRetrying:
    return AsyncRetrying(stop=stop_after_attempt(attempts), wait=wait_none(), **options)


class Shaky:
    """A handler that raises its errors in turn, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.attempts: list[int] = []

    async def __call__(self) -> int:
        attempt = JobContext.current().attempt
        self.attempts.append(attempt)
        if self.errors:
            raise self.errors.pop(0)
        return attempt


def ends(recorder: RecordingObserver, job: JobHandle[Any]) -> list[Any]:
    """Return the events with which a job's attempts ended, in order."""
    return [
        event
        for event in recorder.events
        if isinstance(event, (*ENDS, TaskRetrying)) and event.id == job.id
    ]


async def test_retry_until_success(
    jobs: JobQueue, manager: Manager, recorder: RecordingObserver
) -> None:
    """A job is retried until an attempt succeeds, with events for every attempt."""
    errors = ValueError("1"), KeyError("2")
    shaky = Shaky(*errors)
    handler = jobs.handler(name="h", retry=policy(5))(shaky)
    await jobs.start(manager)
    job = await handler.options(meta={"m": 1}).enqueue()
    assert await job.result() == 3
    await recorder.wait_for(TaskSucceeded)
    assert shaky.attempts == [1, 2, 3]
    assert events_of_attempts(recorder, job.id) == [
        *["added", "started", "retrying"] * 2,
        *["added", "started", "succeeded"],
    ]
    events = ends(recorder, job)
    for number, event in enumerate(events, 1):
        assert (event.job.id, event.job.attempt, event.attempt) == (job.id, number, number)
        assert (event.job.handler, event.meta) == ("h", {"m": 1})
    assert [event.error for event in events[:2]] == [*errors]
    assert [event.delay for event in events[:2]] == [0, 0]
    info = await job.info()
    assert info is not None
    assert (info.attempt, info.state, info.result) == (3, S.SUCCEEDED, 3)
    assert info.error is not None
    assert info.error.type == "KeyError"


async def test_retry_until_stop(
    jobs: JobQueue, manager: Manager, recorder: RecordingObserver
) -> None:
    """A job is dead when its policy stops retrying."""
    shaky = Shaky(*[ValueError(str(n)) for n in range(9)])
    handler = jobs.handler(name="h", retry=policy(3))(shaky)
    await jobs.start(manager)
    job = await handler.enqueue()
    with pytest.raises(JobFailedError, match="ValueError: 2"):
        await job.result()
    dead = await recorder.wait_for(JobDead)
    assert dead.job.attempt == 3
    assert [type(event) for event in ends(recorder, job)] == [
        TaskRetrying,
        TaskRetrying,
        TaskFailed,
    ]
    assert recorder.names().count("dead") == 1


async def test_number_of_attempts(jobs: JobQueue) -> None:
    """`retry` can be a number of attempts, and a job's number overrides its handler's."""
    handler = jobs.handler(name="h", retry=2)(Shaky(*[ValueError()] * 9))
    for overridden in (handler, handler.options(retry=1), handler.options(retry=3)):
        await overridden.enqueue()
    ended = await drain(jobs, scheduled=True)
    assert [(job.attempt, job.state) for job in ended] == [(1, S.DEAD), (2, S.DEAD), (3, S.DEAD)]


@pytest.mark.parametrize("source", ["handler", "options", "enqueue", "manager"])
async def test_waits(anyio_backend: object, source: str) -> None:
    """The waits between a number of attempts grow fourfold from five seconds to an hour."""
    recorder, began = RecordingObserver(), anyio.current_time()
    shaky = Shaky(*[ValueError()] * 9)
    attempts = 8 if source == "handler" else 4
    retry = dict.fromkeys(["handler", "options", "manager"]) | {source: attempts}
    async with (
        Manager(observers=recorder, retry=retry["manager"]) as manager,
        JobQueue(MemoryBroker()) as jobs,
    ):
        handler = jobs.handler(name="h", retry=retry["handler"])(shaky)
        await jobs.start(manager)
        if source == "enqueue":
            job = await jobs.enqueue("h", retry=attempts)
        else:
            job = await handler.options(retry=retry["options"]).enqueue()
        assert await job.wait() is S.DEAD
        took = anyio.current_time() - began
    waits = [event.delay for event in recorder.of(TaskRetrying)]
    expected = [5, 20, 80, 320, 1280, 3600, 3600][: attempts - 1]
    assert waits == [pytest.approx(wait, rel=0.2) for wait in expected]
    assert waits != expected
    assert took == pytest.approx(sum(waits), rel=0.01)


async def test_manager_policy(broker: FaultyBroker, anyio_backend: object) -> None:
    """The manager's policy applies to jobs whose handlers have none."""
    shaky, limited_shaky = Shaky(*[ValueError()] * 9), Shaky(*[ValueError()] * 9)
    async with Manager(retry=policy(3)) as manager, JobQueue(broker) as jobs:
        handler = jobs.handler(name="h")(shaky)
        limited = jobs.handler(name="limited", retry=2)(limited_shaky)
        await jobs.start(manager)
        assert await (await handler.enqueue()).wait() is S.DEAD
        assert await (await limited.options(retry=1).enqueue()).wait() is S.DEAD
        assert await (await limited.enqueue()).wait() is S.DEAD
    assert shaky.attempts == [1, 2, 3]
    assert limited_shaky.attempts == [1, 1, 2]


async def test_retry_on_some_errors(jobs: JobQueue) -> None:
    """A job is dead after the first error that its policy doesn't retry."""
    shaky = Shaky(ValueError(), KeyError("no"), ValueError())
    selective = policy(9, retry=retry_if_exception_type(ValueError))
    await jobs.handler(name="h", retry=selective)(shaky).enqueue()
    (job,) = await drain(jobs, scheduled=True)
    assert (job.attempt, job.state) == (2, S.DEAD)
    assert "KeyError" in str(job.error)


async def test_retry_on_result(
    jobs: JobQueue, manager: Manager, recorder: RecordingObserver
) -> None:
    """A policy can retry on a result; the last refused result is a RetryError."""

    @jobs.handler(name="h", retry=policy(3, retry=retry_if_result(lambda value: value < 3)))
    async def attempt(limit: int) -> int:
        return min(JobContext.current().attempt, limit)

    await jobs.start(manager)
    job = await attempt.enqueue(9)
    assert await job.result() == 3
    assert [event.error for event in ends(recorder, job)[:2]] == [None, None]
    with pytest.raises(JobFailedError, match="RetryError"):
        await (await attempt.enqueue(1)).result()
    failed = await recorder.wait_for(TaskFailed)
    assert isinstance(failed.error, RetryError)


async def test_try_again(jobs: JobQueue) -> None:
    """A job that raises TryAgain is retried, regardless of the policy's errors."""
    shaky = Shaky(TryAgain(), TryAgain())
    selective = policy(9, retry=retry_if_exception_type(ValueError))
    await jobs.handler(name="h", retry=selective)(shaky).enqueue()
    (job,) = await drain(jobs, scheduled=True)
    assert job.result == 3


async def test_policy_hooks(jobs: JobQueue, manager: Manager) -> None:
    """A policy's hooks are called with the number, arguments and error of every attempt."""
    seen: list[tuple[str, int, Any, Any]] = []

    def hook(name: str) -> Callable[[RetryCallState], None]:
        def call(state: RetryCallState) -> None:
            outcome = None if state.outcome is None else type(state.outcome.exception())
            seen.append((name, state.attempt_number, outcome, state.args))

        return call

    hooks = {name: hook(name) for name in ("before", "after", "before_sleep")}

    @jobs.handler(name="h", retry=policy(2, **hooks))
    async def fails(number: int) -> None:
        raise ValueError

    await jobs.start(manager)
    assert await (await fails.enqueue(7)).wait() is S.DEAD
    assert seen == [
        ("before", 1, None, (7,)),
        ("after", 1, ValueError, (7,)),
        ("before_sleep", 1, ValueError, (7,)),
        ("before", 2, None, (7,)),
        ("after", 2, ValueError, (7,)),
    ]


async def test_retry_error_callback(
    jobs: JobQueue, manager: Manager, recorder: RecordingObserver
) -> None:
    """The result of a policy's retry_error_callback is the job's result."""

    async def fallback(state: RetryCallState) -> int:
        return 100 + state.attempt_number

    handler = jobs.handler(name="h", retry=policy(2, retry_error_callback=fallback))(
        Shaky(*[ValueError()] * 9)
    )
    await jobs.start(manager)
    job = await handler.enqueue()
    assert await job.result() == 102
    await recorder.wait_for(TaskSucceeded)
    assert [type(event) for event in ends(recorder, job)] == [TaskRetrying, TaskSucceeded]


async def test_policy_error(jobs: JobQueue, manager: Manager) -> None:
    """A job is dead if its policy raises an error."""

    def broken(state: RetryCallState) -> Any:
        raise ZeroDivisionError("of the policy")

    for number, hook in enumerate(("before", "after", "before_sleep", "wait", "stop", "retry")):
        options: dict[str, Any] = {"wait": wait_none(), "stop": stop_after_attempt(2), hook: broken}
        handler = jobs.handler(name=f"h{number}", retry=AsyncRetrying(**options))(
            Shaky(ValueError(), ValueError())
        )
        if not number:
            await jobs.start(manager)
        with pytest.raises(JobFailedError, match="ZeroDivisionError: of the policy"):
            await (await handler.enqueue()).result()


async def test_next_attempt_in_second_worker(broker: FaultyBroker, anyio_backend: object) -> None:
    """A second worker makes the next attempt, with its own policy and observers."""
    ran: list[tuple[str, int]] = []
    observers = {name: RecordingObserver() for name in "ab"}

    def declare(jobs: JobQueue, name: str) -> Any:
        @jobs.handler(name="h", retry=policy(4))
        async def handler() -> str:
            ran.append((name, JobContext.current().attempt))
            if name == "a":
                raise ValueError("in a")
            return name

        return handler

    async with JobQueue(broker) as client:
        async with Manager(observers=[observers["a"]]) as manager, JobQueue(broker) as jobs:
            slow = AsyncRetrying(stop=stop_after_attempt(4), wait=wait_fixed(0.05))

            @jobs.handler(name="h", retry=slow)
            async def handler() -> None:
                ran.append(("a", JobContext.current().attempt))
                worker._loops.stop()
                raise ValueError("in a")

            worker = await jobs.start(manager)
            job = await client.enqueue("h")
            retrying = await observers["a"].wait_for(TaskRetrying)
            assert retrying.delay == 0.05
        info = await client.get(job.id)
        assert info is not None
        assert info.error is not None
        assert (info.attempt, info.error.message) == (1, "in a")
        async with Manager(observers=[observers["b"]]) as manager, JobQueue(broker) as jobs:
            declare(jobs, "b")
            await jobs.start(manager)
            assert await job.result() == "b"
    assert ran == [("a", 1), ("b", 2)]
    assert [type(event) for event in ends(observers["a"], job)] == [TaskRetrying]
    assert [type(event) for event in ends(observers["b"], job)] == [TaskSucceeded]


async def test_stop_after_delay(broker: FaultyBroker, anyio_backend: object) -> None:
    """A policy's time begins with the job's first attempt in any worker, or with a requeue."""
    times: list[float] = []
    began = anyio.current_time()

    async def fails() -> None:
        times.append(round(anyio.current_time() - began))
        raise ValueError

    async def run_worker(job: JobHandle[Any] | None, seconds: float) -> JobHandle[Any]:
        async with Manager() as manager, JobQueue(broker) as jobs:
            patient = AsyncRetrying(stop=stop_after_delay(25), wait=wait_fixed(10))
            handler = jobs.handler(name="h", retry=patient)(fails)
            job = job or await handler.enqueue()
            await jobs.start(manager)
            await anyio.sleep(seconds)
        return job

    job = await run_worker(None, 5)
    await run_worker(job, 30)
    assert times == [0, 10, 20, 30]
    async with JobQueue(broker) as client:
        assert await client.handle(job.id).wait() is S.DEAD
        await elapse(broker.real, 65)
        assert await client.requeue(job.id)
        times.clear()
        await run_worker(job, 40)
        assert times == [100, 110, 120, 130]
        await elapse(broker.real, 60)
        assert await client.requeue(job.id)
        times.clear()
        claims = await broker.real.claim(["default"], 1, lease=1)  # by a worker that crashes
        assert len(claims) == 1
        await broker.real.renew(claims, lease=1)
        await elapse(broker.real, 5)
        await run_worker(job, 40)
        assert times == [205, 215, 225, 235]


async def test_backoff_frees_worker(jobs: JobQueue, manager: Manager) -> None:
    """A job in backoff takes neither the worker's nor the manager's capacity."""
    began = anyio.current_time()
    shaky = Shaky(ValueError())
    patient = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(60))
    handler = jobs.handler(name="h", retry=patient)(shaky)

    @jobs.handler(name="quick")
    async def quick() -> float:
        return anyio.current_time() - began

    worker = await jobs.start(manager, concurrency=1)
    job = await handler.enqueue()
    assert await (await quick.enqueue()).result() < 1
    info = await job.info()
    assert info is not None
    assert (info.state, info.attempt) == (S.SCHEDULED, 1)
    assert (worker.in_flight, manager.count()) == (0, 0)
    assert await job.result() == 2
    assert anyio.current_time() - began >= 60


async def test_cancel_during_backoff(
    jobs: JobQueue, manager: Manager, recorder: RecordingObserver
) -> None:
    """A job in backoff can be cancelled."""
    patient = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(60))
    handler = jobs.handler(name="h", retry=patient)(Shaky(ValueError()))
    await jobs.start(manager)
    job = await handler.enqueue()
    await recorder.wait_for(TaskRetrying)
    assert await job.cancel()
    assert await job.wait() is S.CANCELLED
    assert [type(event) for event in ends(recorder, job)] == [TaskRetrying]


async def test_timeout_per_attempt(
    jobs: JobQueue, manager: Manager, recorder: RecordingObserver
) -> None:
    """A timeout ends one attempt, and the next one has the same time again."""

    @jobs.handler(name="h", timeout=500, retry=policy(2))
    async def hangs() -> int:
        if JobContext.current().attempt == 1:
            await anyio.sleep_forever()
        return JobContext.current().attempt

    await jobs.start(manager)
    job = await hangs.options(timeout=0.01).enqueue()
    assert await job.result() == 2
    (retrying,) = recorder.of(TaskRetrying)
    assert isinstance(retrying.error, TimeoutError)
    assert len(recorder.of(TaskStarted)) == 2
    info = await job.info()
    assert info is not None
    assert info.error is not None
    assert "; it waited at test_retries.py:" in info.error.message
    assert info.error.message.endswith(".hangs")
