"""Tasks and jobs with every possible outcome, for the tests of observers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import anyio
from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt, wait_fixed

import background
from background import (
    CloseReport,
    Manager,
    ManagerClosed,
    ManagerClosing,
    Observer,
    Task,
    TaskHandle,
    TaskKind,
    every,
)
from background.queues import JobHandle, JobQueue, JobState, Worker
from background.queues.memory import MemoryBroker
from background.testing import RecordingObserver

LOOP = TaskKind.LOOP
TWICE = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(5))


async def fine() -> str:
    return "fine"


async def broken() -> None:
    raise ValueError("broken")


async def nap(seconds: float = 10) -> None:
    await anyio.sleep(seconds)


class Flaky:
    """Fails its first `failures` calls."""

    def __init__(self, failures: int) -> None:
        self.left = failures

    async def __call__(self) -> None:
        self.left -= 1
        if self.left >= 0:
            raise ValueError("flaky")


Act = Callable[[Manager, TaskHandle[Any]], object]


def cancel(manager: Manager, handle: TaskHandle[Any]) -> None:
    assert handle.cancel("enough")


def close(manager: Manager, handle: TaskHandle[Any]) -> Awaitable[CloseReport]:
    return manager.close(timeout=1)


def stop_loops(manager: Manager, handle: TaskHandle[Any]) -> Awaitable[None]:
    return manager.stop_loops()


def report_stall(manager: Manager, handle: TaskHandle[Any]) -> None:
    manager.report_stall(handle.id, elapsed=1)


@dataclass
class Scenario:
    """A task with a certain outcome.

    Args:
        make: Makes the task.
        order: The names of its events.
        at: Seconds between the submission and `act`.
        act: What is done to the task.
        queued: Whether the task is queued behind another one-off that takes up `limit`.
    """

    make: Callable[[], Task[Any]]
    order: str
    at: float = 0
    act: Act | None = None
    queued: bool = False


ONE_OFFS = {
    "succeeds": Scenario(lambda: Task(fine), "added started succeeded"),
    "starts late": Scenario(lambda: Task(fine, delay=5), "added started succeeded"),
    "fails": Scenario(lambda: Task(broken), "added started failed"),
    "times out": Scenario(lambda: Task(nap, timeout=1), "added started failed"),
    "succeeds at last": Scenario(
        lambda: Task(Flaky(1), retry=TWICE), "added started retrying succeeded"
    ),
    "fails at last": Scenario(lambda: Task(broken, retry=TWICE), "added started retrying failed"),
    "refused results": Scenario(
        lambda: Task(
            fine,
            retry=AsyncRetrying(stop=stop_after_attempt(3), retry=retry_if_result(bool)),
        ),
        "added started retrying retrying failed",
    ),
    "cancelled before its first step": Scenario(lambda: Task(nap), "added cancelled", 0, cancel),
    "cancelled while delayed": Scenario(lambda: Task(nap, delay=5), "added cancelled", 1, cancel),
    "cancelled while queued": Scenario(
        lambda: Task(nap), "added cancelled", 1, cancel, queued=True
    ),
    "cancelled while running": Scenario(lambda: Task(nap), "added started cancelled", 1, cancel),
    "cancelled in backoff": Scenario(
        lambda: Task(broken, retry=TWICE), "added started retrying cancelled", 1, cancel
    ),
    "cancelled in its second attempt": Scenario(
        lambda: Task(nap, retry=TWICE, timeout=1),
        "added started retrying cancelled",
        6.5,
        cancel,
    ),
    "expires while queued": Scenario(lambda: Task(nap, lifespan=5), "added expired", queued=True),
    "expires while running": Scenario(lambda: Task(nap, lifespan=5), "added started expired"),
    "expires in backoff": Scenario(
        lambda: Task(broken, retry=TWICE, lifespan=3), "added started retrying expired"
    ),
    "delayed at close": Scenario(lambda: Task(nap, delay=50), "added cancelled", 1, close),
    "running at close": Scenario(lambda: Task(nap), "added started cancelled", 1, close),
    "stalls": Scenario(lambda: Task(nap), "added started stalled succeeded", 1, report_stall),
}

LOOPS = {
    "stopped in an iteration": Scenario(
        lambda: Task(nap, kind=LOOP),
        "added started succeeded started succeeded cancelled",
        15,
        stop_loops,
    ),
    "stopped between iterations": Scenario(
        lambda: Task(fine, kind=LOOP, schedule=every(10)),
        "added started succeeded started succeeded cancelled",
        15,
        stop_loops,
    ),
    "stopped before its first iteration": Scenario(
        lambda: Task(fine, kind=LOOP, delay=5), "added cancelled", 1, stop_loops
    ),
    "stopped before its first step": Scenario(
        lambda: Task(fine, kind=LOOP), "added cancelled", 0, stop_loops
    ),
    "stopped in backoff": Scenario(
        lambda: Task(broken, kind=LOOP, retry=TWICE),
        "added started retrying failed cancelled",
        1,
        stop_loops,
    ),
    "stopped while it fails": Scenario(
        lambda: Task(nap, kind=LOOP, timeout=5, retry=TWICE),
        "added started failed cancelled",
        1,
        stop_loops,
    ),
    "goes on after a failure": Scenario(
        lambda: Task(Flaky(1), kind=LOOP, schedule=every(10)),
        "added started failed started succeeded cancelled",
        15,
        stop_loops,
    ),
    "retries each iteration": Scenario(
        lambda: Task(broken, kind=LOOP, schedule=every(10), retry=TWICE),
        "added started retrying failed started retrying failed cancelled",
        18,
        stop_loops,
    ),
    "too many failures": Scenario(
        lambda: Task(broken, kind=LOOP, schedule=every(10), max_failures=2),
        "added started failed started failed",
    ),
    "cancelled in an iteration": Scenario(
        lambda: Task(nap, kind=LOOP), "added started succeeded started cancelled", 15, cancel
    ),
    "cancelled between iterations": Scenario(
        lambda: Task(fine, kind=LOOP, schedule=every(10)),
        "added started succeeded cancelled",
        5,
        cancel,
    ),
    "cancelled before its first step": Scenario(
        lambda: Task(fine, kind=LOOP), "added cancelled", 0, cancel
    ),
    "expires in an iteration": Scenario(
        lambda: Task(nap, kind=LOOP, lifespan=15), "added started succeeded started expired"
    ),
    "expires between iterations": Scenario(
        lambda: Task(fine, kind=LOOP, schedule=every(10), lifespan=15),
        "added started succeeded started succeeded expired",
    ),
    "between iterations at close": Scenario(
        lambda: Task(fine, kind=LOOP, schedule=every(10)),
        "added started succeeded cancelled",
        5,
        close,
    ),
    "in an iteration at close": Scenario(
        lambda: Task(nap, kind=LOOP), "added started cancelled", 5, close
    ),
    "stalls": Scenario(
        lambda: Task(nap, kind=LOOP),
        "added started stalled succeeded started cancelled",
        1,
        report_stall,
    ),
}

SCENARIOS = {f"one-off {name}": scenario for name, scenario in ONE_OFFS.items()}
SCENARIOS |= {f"loop {name}": scenario for name, scenario in LOOPS.items()}


async def play(scenario: Scenario, recorder: RecordingObserver, *own: Observer) -> TaskHandle[Any]:
    """Run a task to its outcome, observed by `recorder` and by the task's own observers."""
    async with Manager(observers=[recorder], limit=1) as manager:
        return await play_in(manager, scenario, *own)


async def play_in(manager: Manager, scenario: Scenario, *own: Observer) -> TaskHandle[Any]:
    """Run a task to its outcome in a manager with `limit=1`, and close the manager."""
    if scenario.queued:
        manager.run(nap, 1000)
        await anyio.sleep(1)
    handle = manager.run_task(replace(scenario.make(), observers=own))
    if scenario.at:
        await anyio.sleep(scenario.at)
    if scenario.act is not None:
        result = scenario.act(manager, handle)
        if isinstance(result, Awaitable):
            await result
    if scenario.act is report_stall:
        await anyio.sleep(15)
        handle.cancel("enough")
    await handle.wait()
    await manager.close(timeout=0)
    return handle


JobAct = Callable[[JobQueue, Worker, JobHandle[Any]], Awaitable[object]]


async def cancel_job(jobs: JobQueue, worker: Worker, job: JobHandle[Any]) -> None:
    assert await jobs.cancel(job.id)


async def release(jobs: JobQueue, worker: Worker, job: JobHandle[Any]) -> None:
    await worker.close(timeout=0)


@dataclass
class JobScenario:
    """A job with a certain outcome.

    Args:
        make: Makes the job's function.
        order: The names of its events.
        state: The job's state at the end.
        retry: The handler's retry policy.
        act: What is done to the job after a second.
        queued: Whether the job is queued behind a one-off that takes up `limit`.
    """

    make: Callable[[], Callable[[], Any]]
    order: str
    state: JobState
    retry: AsyncRetrying | None = None
    act: JobAct | None = None
    queued: bool = False


JOBS = {
    "succeeds": JobScenario(lambda: fine, "enqueued added started succeeded", JobState.SUCCEEDED),
    "succeeds at last": JobScenario(
        lambda: Flaky(1),
        "enqueued added started retrying added started succeeded",
        JobState.SUCCEEDED,
        TWICE,
    ),
    "gives up": JobScenario(lambda: broken, "enqueued added started failed dead", JobState.DEAD),
    "gives up at last": JobScenario(
        lambda: broken,
        "enqueued added started retrying added started failed dead",
        JobState.DEAD,
        TWICE,
    ),
    "refused results": JobScenario(
        lambda: fine,
        "enqueued added started retrying added started failed dead",
        JobState.DEAD,
        AsyncRetrying(stop=stop_after_attempt(2), retry=retry_if_result(bool)),
    ),
    "cancelled while queued": JobScenario(
        lambda: nap, "enqueued added cancelled", JobState.CANCELLED, None, cancel_job, queued=True
    ),
    "cancelled while running": JobScenario(
        lambda: nap, "enqueued added started cancelled", JobState.CANCELLED, None, cancel_job
    ),
    "released while queued": JobScenario(
        lambda: nap, "enqueued added cancelled", JobState.READY, None, release, queued=True
    ),
    "released while running": JobScenario(
        lambda: nap, "enqueued added started cancelled", JobState.READY, None, release
    ),
}


async def play_job(
    scenario: JobScenario, *observers: Observer, own: tuple[Observer, ...] = ()
) -> str:
    """Run a job to its outcome, observed by the manager's and its own observers; return its id."""
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="job", queue="mail", retry=scenario.retry, observers=own)(
        scenario.make()
    )
    async with Manager(observers=observers, limit=1, cancel_timeout=1) as manager, jobs:
        if scenario.queued:
            manager.run(nap, 1000)
        worker = await jobs.start(manager)
        job = await handler.enqueue()
        await anyio.sleep(1)
        if scenario.act is not None:
            await scenario.act(jobs, worker, job)
        if scenario.act is not release:
            await job.wait()
        info = await job.info()
        assert info is not None
        assert info.state is scenario.state
        await worker.close()
        await manager.close(timeout=0)
    return job.id


EVENTS: list[Any] = [
    value
    for value in vars(background).values()
    if isinstance(value, type)
    and (value.__module__ == "background._events" or value in (ManagerClosing, ManagerClosed))
]

HOOKS = [name for name in vars(Observer) if name.startswith("on_")]


async def call_every_hook(*observers: Observer) -> Manager:
    """Call every hook at least once, always in the same order."""
    async with Manager(observers=observers, cancel_timeout=1) as manager:
        running = manager.run(nap, 3)
        await anyio.sleep(1)
        manager.report_stall(running.id, elapsed=1)
        await running.wait()
        await manager.run_task(Task(Flaky(1), retry=TWICE)).wait()
        await manager.run(broken).wait()
        manager.run(nap).cancel()
        await manager.run_task(Task(nap, lifespan=1)).wait()
        await run_dying_job(manager)
    return manager


async def run_dying_job(manager: Manager, *own: Observer) -> None:
    """Run a job that fails without a retry in a worker of the manager."""
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="dies", observers=own)(broken)
    async with jobs:
        await jobs.start(manager)
        await (await handler.enqueue()).wait()
