"""Tasks of every fate, for the tests of what observers are told of them."""

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
    """Fails the first `failures` times that it is called."""

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
class Fate:
    """A task, what is done to it `at` so many seconds after its submission, and its events."""

    make: Callable[[], Task[Any]]
    order: str
    at: float = 0
    act: Act | None = None
    queued: bool = False  # behind another one-off that takes all there is of `limit`


ONE_OFFS = {
    "succeeds": Fate(lambda: Task(fine), "added started succeeded"),
    "starts late": Fate(lambda: Task(fine, delay=5), "added started succeeded"),
    "fails": Fate(lambda: Task(broken), "added started failed"),
    "times out": Fate(lambda: Task(nap, timeout=1), "added started failed"),
    "succeeds at last": Fate(
        lambda: Task(Flaky(1), retry=TWICE), "added started retrying succeeded"
    ),
    "fails at last": Fate(lambda: Task(broken, retry=TWICE), "added started retrying failed"),
    "refused results": Fate(
        lambda: Task(
            fine,
            retry=AsyncRetrying(stop=stop_after_attempt(3), retry=retry_if_result(bool)),
        ),
        "added started retrying retrying failed",
    ),
    "cancelled before its first step": Fate(lambda: Task(nap), "added cancelled", 0, cancel),
    "cancelled while delayed": Fate(lambda: Task(nap, delay=5), "added cancelled", 1, cancel),
    "cancelled while queued": Fate(lambda: Task(nap), "added cancelled", 1, cancel, queued=True),
    "cancelled while running": Fate(lambda: Task(nap), "added started cancelled", 1, cancel),
    "cancelled in backoff": Fate(
        lambda: Task(broken, retry=TWICE), "added started retrying cancelled", 1, cancel
    ),
    "cancelled in its second attempt": Fate(
        lambda: Task(nap, retry=TWICE, timeout=1),
        "added started retrying cancelled",
        6.5,
        cancel,
    ),
    "expires while queued": Fate(lambda: Task(nap, lifespan=5), "added expired", queued=True),
    "expires while running": Fate(lambda: Task(nap, lifespan=5), "added started expired"),
    "expires in backoff": Fate(
        lambda: Task(broken, retry=TWICE, lifespan=3), "added started retrying expired"
    ),
    "delayed at close": Fate(lambda: Task(nap, delay=50), "added cancelled", 1, close),
    "running at close": Fate(lambda: Task(nap), "added started cancelled", 1, close),
    "stalls": Fate(lambda: Task(nap), "added started stalled succeeded", 1, report_stall),
}

LOOPS = {
    "stopped in an iteration": Fate(
        lambda: Task(nap, kind=LOOP),
        "added started succeeded started succeeded cancelled",
        15,
        stop_loops,
    ),
    "stopped between iterations": Fate(
        lambda: Task(fine, kind=LOOP, schedule=every(10)),
        "added started succeeded started succeeded cancelled",
        15,
        stop_loops,
    ),
    "stopped before its first iteration": Fate(
        lambda: Task(fine, kind=LOOP, delay=5), "added cancelled", 1, stop_loops
    ),
    "stopped before its first step": Fate(
        lambda: Task(fine, kind=LOOP), "added cancelled", 0, stop_loops
    ),
    "stopped in backoff": Fate(
        lambda: Task(broken, kind=LOOP, retry=TWICE),
        "added started retrying failed cancelled",
        1,
        stop_loops,
    ),
    "stopped while it fails": Fate(
        lambda: Task(nap, kind=LOOP, timeout=5, retry=TWICE),
        "added started failed cancelled",
        1,
        stop_loops,
    ),
    "goes on after a failure": Fate(
        lambda: Task(Flaky(1), kind=LOOP, schedule=every(10)),
        "added started failed started succeeded cancelled",
        15,
        stop_loops,
    ),
    "retries each iteration": Fate(
        lambda: Task(broken, kind=LOOP, schedule=every(10), retry=TWICE),
        "added started retrying failed started retrying failed cancelled",
        18,
        stop_loops,
    ),
    "too many failures": Fate(
        lambda: Task(broken, kind=LOOP, schedule=every(10), max_failures=2),
        "added started failed started failed",
    ),
    "cancelled in an iteration": Fate(
        lambda: Task(nap, kind=LOOP), "added started succeeded started cancelled", 15, cancel
    ),
    "cancelled between iterations": Fate(
        lambda: Task(fine, kind=LOOP, schedule=every(10)),
        "added started succeeded cancelled",
        5,
        cancel,
    ),
    "cancelled before its first step": Fate(
        lambda: Task(fine, kind=LOOP), "added cancelled", 0, cancel
    ),
    "expires in an iteration": Fate(
        lambda: Task(nap, kind=LOOP, lifespan=15), "added started succeeded started expired"
    ),
    "expires between iterations": Fate(
        lambda: Task(fine, kind=LOOP, schedule=every(10), lifespan=15),
        "added started succeeded started succeeded expired",
    ),
    "between iterations at close": Fate(
        lambda: Task(fine, kind=LOOP, schedule=every(10)),
        "added started succeeded cancelled",
        5,
        close,
    ),
    "in an iteration at close": Fate(
        lambda: Task(nap, kind=LOOP), "added started cancelled", 5, close
    ),
    "stalls": Fate(
        lambda: Task(nap, kind=LOOP),
        "added started stalled succeeded started cancelled",
        1,
        report_stall,
    ),
}

FATES = {f"one-off {name}": fate for name, fate in ONE_OFFS.items()}
FATES |= {f"loop {name}": fate for name, fate in LOOPS.items()}


async def meet(fate: Fate, recorder: RecordingObserver, *own: Observer) -> TaskHandle[Any]:
    """Have a task meet its fate, observed by `recorder` and by observers of its own."""
    async with Manager(observers=[recorder], limit=1) as manager:
        return await meet_in(manager, fate, *own)


async def meet_in(manager: Manager, fate: Fate, *own: Observer) -> TaskHandle[Any]:
    """Have a task meet its fate in a manager of `limit=1`, and close that."""
    if fate.queued:
        manager.run(nap, 1000)
        await anyio.sleep(1)
    handle = manager.run_task(replace(fate.make(), observers=own))
    if fate.at:
        await anyio.sleep(fate.at)
    if fate.act is not None:
        done = fate.act(manager, handle)
        if isinstance(done, Awaitable):
            await done
    if fate.act is report_stall:
        await anyio.sleep(15)
        handle.cancel("enough")
    await handle.wait()
    await manager.close(timeout=0)
    return handle


JobAct = Callable[[JobQueue, Worker, JobHandle[Any]], Awaitable[object]]


async def dequeue(jobs: JobQueue, worker: Worker, job: JobHandle[Any]) -> None:
    assert await jobs.cancel(job.id)


async def hand_back(jobs: JobQueue, worker: Worker, job: JobHandle[Any]) -> None:
    await worker.close(timeout=0)


@dataclass
class JobFate:
    """The function of a job, what is done after a second, its events, and its state in the end."""

    make: Callable[[], Callable[[], Any]]
    order: str
    state: JobState
    retry: AsyncRetrying | None = None
    act: JobAct | None = None
    queued: bool = False  # behind a one-off that takes all there is of `limit`


JOBS = {
    "succeeds": JobFate(lambda: fine, "enqueued added started succeeded", JobState.SUCCEEDED),
    "succeeds at last": JobFate(
        lambda: Flaky(1),
        "enqueued added started retrying added started succeeded",
        JobState.SUCCEEDED,
        TWICE,
    ),
    "gives up": JobFate(lambda: broken, "enqueued added started failed dead", JobState.DEAD),
    "gives up at last": JobFate(
        lambda: broken,
        "enqueued added started retrying added started failed dead",
        JobState.DEAD,
        TWICE,
    ),
    "refused results": JobFate(
        lambda: fine,
        "enqueued added started retrying added started failed dead",
        JobState.DEAD,
        AsyncRetrying(stop=stop_after_attempt(2), retry=retry_if_result(bool)),
    ),
    "cancelled while queued": JobFate(
        lambda: nap, "enqueued added cancelled", JobState.CANCELLED, None, dequeue, queued=True
    ),
    "cancelled while running": JobFate(
        lambda: nap, "enqueued added started cancelled", JobState.CANCELLED, None, dequeue
    ),
    "handed back while queued": JobFate(
        lambda: nap, "enqueued added cancelled", JobState.READY, None, hand_back, queued=True
    ),
    "handed back while running": JobFate(
        lambda: nap, "enqueued added started cancelled", JobState.READY, None, hand_back
    ),
}


async def meet_job(fate: JobFate, *observers: Observer, own: tuple[Observer, ...] = ()) -> str:
    """Have a job meet its fate, under observers of the manager's and of its own; return its id."""
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="job", queue="mail", retry=fate.retry, observers=own)(fate.make())
    async with Manager(observers=observers, limit=1, cancel_timeout=1) as manager, jobs:
        if fate.queued:
            manager.run(nap, 1000)
        worker = await jobs.start(manager)
        job = await handler.enqueue()
        await anyio.sleep(1)
        if fate.act is not None:
            await fate.act(jobs, worker, job)
        if fate.act is not hand_back:
            await job.wait()
        info = await job.info()
        assert info is not None
        assert info.state is fate.state
        await worker.close()
        await manager.close(timeout=0)
    return job.id


EVENTS: list[Any] = [
    each
    for each in vars(background).values()
    if isinstance(each, type)
    and (each.__module__ == "background._events" or each in (ManagerClosing, ManagerClosed))
]

HOOKS = [name for name in vars(Observer) if name.startswith("on_")]


async def everything_happens(*observers: Observer) -> Manager:
    """Have every hook called at least once, always in the same order."""
    async with Manager(observers=observers, cancel_timeout=1) as manager:
        running = manager.run(nap, 3)
        await anyio.sleep(1)
        manager.report_stall(running.id, elapsed=1)
        await running.wait()
        await manager.run_task(Task(Flaky(1), retry=TWICE)).wait()
        await manager.run(broken).wait()
        manager.run(nap).cancel()
        await manager.run_task(Task(nap, lifespan=1)).wait()
        await have_a_job_die(manager)
    return manager


async def have_a_job_die(manager: Manager, *own: Observer) -> None:
    """Enqueue a job that a worker of the manager's works off and that gives up at once."""
    jobs = JobQueue(MemoryBroker())
    dies = jobs.handler(name="dies", observers=own)(broken)
    async with jobs:
        await jobs.start(manager)
        await (await dies.enqueue()).wait()
