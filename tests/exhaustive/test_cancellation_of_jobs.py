"""Cancellation and shutdown at every suspension of calls, blocks and workers of job queues.

Afterwards no job is lost or stored in part, and the cancelled queue or worker can be used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from support.brokers.faulty import FaultyBroker
from support.brokers.kinds import KINDS, elapse
from support.cancellation.injection import How, InjectedRun, Point, play
from support.cancellation.stepping import Step, When
from tenacity import AsyncRetrying, stop_after_attempt, wait_none
from trio._core import _run as trio_run

from background import LoopsStoppedError, Manager
from background.queues import JobContext, JobQueue, JobState, QueueError, chain, group
from background.queues._states import FINAL

S = JobState
BACKENDS = ["asyncio", "trio"]
STORES = ["memory", "sqlite"]
TWICE = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_none())
Body = Callable[[InjectedRun, FaultyBroker], Awaitable[None]]


@pytest.fixture(autouse=True)
def same_order_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the order of trio's tasks repeatable, as trio's Hypothesis plugin does."""
    monkeypatch.setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    monkeypatch.setattr(trio_run, "_r", Random())  # `play()` seeds it for each run


def declare(jobs: JobQueue) -> None:
    @jobs.handler(name="fast", retention=9999)
    async def fast(number: int = 0) -> int:
        return number

    @jobs.handler(name="slow", retention=9999)
    async def slow(seconds: float = 1) -> str:
        await anyio.sleep(seconds)
        return "slept"

    @jobs.handler(name="shaky", retention=9999, retry=TWICE)
    async def shaky() -> int:
        if (attempt := JobContext.current().attempt) == 1:
            raise ValueError
        return attempt


def queue(broker: FaultyBroker) -> JobQueue:
    jobs = JobQueue(broker)
    declare(jobs)
    return jobs


async def check_all_end(broker: FaultyBroker) -> None:
    """Check that another worker finishes all jobs, and then runs a new one."""
    if await broker.count(state=S.RUNNING):
        await elapse(broker.real, 31)
    async with Manager() as manager, queue(broker) as jobs:
        await jobs.start(manager)
        ids = [info.id async for info in jobs.list()]
        with anyio.fail_after(100):
            for id in ids:
                assert await jobs.handle(id).wait() in FINAL
            assert await (await jobs.enqueue("fast", [7])).result() == 7
    assert await broker.count(state=S.DEAD) == 0


def scenario(body: Body, store: str) -> Callable[[InjectedRun], Any]:
    async def run_scenario(run: InjectedRun) -> None:
        async with run.manager():
            pass  # the manager that is checked after the run
        kind = KINDS[store]
        with TemporaryDirectory() as folder:
            async with kind.opened(kind.make(Path(folder))) as real:
                broker = FaultyBroker(real)
                await body(run, broker)
                await check_all_end(broker)

    return run_scenario


def sweep(body: Body, store: str, backend: str, *, again: bool = False) -> None:
    """Cancel the driven call at each of its suspensions, on asyncio optionally once more."""
    tested = scenario(body, store)
    undisturbed = play(tested, backend)
    assert not undisturbed.problems, undisturbed.problems
    assert undisturbed.suspensions
    hows = [*How] if backend == "asyncio" else [How.SCOPE]
    numbers = range(1, undisturbed.suspensions + 1)
    points = [Point(*values) for values in product(numbers, When, hows)]
    if again and backend == "asyncio":
        points += [point._replace(again=point.number + n) for point in points for n in (1, 2)]
    reached = 0
    for point in points:
        run = play(tested, backend, point)
        assert not run.problems, (point, "".join(run.problems))
        reached += run.injected_at is not None
    assert reached


# Calls


async def enqueue(run: InjectedRun, broker: FaultyBroker) -> None:
    async with queue(broker) as jobs:
        await run.drive(jobs.enqueue("fast", id="job"))
        with suppress(QueueError):
            await jobs.enqueue("fast", id="job")
        assert await jobs.count() == 1


async def enqueue_many(run: InjectedRun, broker: FaultyBroker) -> None:
    async with queue(broker) as jobs:
        outcome = await run.drive(jobs._handlers["fast"].enqueue_many([(n,) for n in range(3)]))
        assert await jobs.count() in ((0, 3) if outcome.cancelled else (3,))


async def enqueue_chain(run: InjectedRun, broker: FaultyBroker) -> None:
    async with queue(broker) as jobs:
        fast = jobs._handlers["fast"]
        step = chain(fast.job(), group(fast.job(), fast.job()))
        outcome = await run.drive(jobs.enqueue(step, id="job"))
        assert await jobs.count() in ((0, 4) if outcome.cancelled else (4,))


async def result(run: InjectedRun, broker: FaultyBroker) -> None:
    async with Manager() as manager, queue(broker) as jobs:
        await jobs.start(manager)
        job = await jobs.enqueue("slow")
        outcome = await run.drive(job.result())
        assert outcome.cancelled or outcome.value == "slept"
        assert await job.result() == "slept"


async def dequeue(run: InjectedRun, broker: FaultyBroker) -> None:
    async with Manager() as manager, queue(broker) as jobs:
        await jobs.start(manager)
        job = await jobs.enqueue("slow", [50])
        await anyio.sleep(1)
        outcome = await run.drive(jobs.cancel(job.id))
        await jobs.cancel(job.id)
        assert await job.wait() is S.CANCELLED
        assert outcome.cancelled or outcome.value is True


async def start(run: InjectedRun, broker: FaultyBroker) -> None:
    async with Manager() as manager, queue(broker) as jobs:
        job = await jobs.enqueue("fast", [3])
        outcome = await run.drive(jobs.start(manager))
        if outcome.cancelled:
            await jobs.start(manager)
        assert await job.result() == 3


async def save(run: InjectedRun, broker: FaultyBroker) -> None:
    async with Manager() as manager, queue(broker) as jobs:

        @jobs.handler(name="saves")
        async def saves() -> str:
            await run.drive(JobContext.current().save("so far"))
            return "end"

        await jobs.start(manager)
        assert await (await saves.enqueue()).result() == "end"


async def close_a_worker(run: InjectedRun, broker: FaultyBroker) -> None:
    async with Manager() as manager, queue(broker) as jobs:
        worker = await jobs.start(manager)
        for seconds in (1, 50):
            await jobs.enqueue("slow", [seconds])
        await anyio.sleep(0.5)
        await run.drive(worker.close(timeout=2))
        await worker.close(timeout=0)
        assert await jobs.count(state=S.RUNNING) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    "body",
    [
        enqueue,
        enqueue_many,
        enqueue_chain,
        result,
        dequeue,
        start,
        save,
        close_a_worker,
    ],
    ids=lambda body: body.__name__,
)
def test_calls(body: Body, store: str, backend: str) -> None:
    """A cancelled call is complete or without effect, and no job is lost."""
    sweep(body, store, backend)


# Blocks


async def leave_the_queue(run: InjectedRun, broker: FaultyBroker) -> None:
    async with Manager() as manager:
        jobs = queue(broker)
        await jobs.__aenter__()
        await jobs.start(manager)
        for name in ("fast", "slow", "shaky"):
            await jobs.enqueue(name)
        await anyio.sleep(0.5)
        await run.drive(jobs.__aexit__(None, None, None))
        assert await broker.count(state=S.RUNNING) == 0
        async with jobs:  # it was left, cancelled or not
            await jobs.start(manager)
            assert await (await jobs.enqueue("fast", [3])).result() == 3


async def inside_a_manager(run: InjectedRun, broker: FaultyBroker) -> None:
    async def run_block() -> None:
        async with Manager() as manager, queue(broker) as jobs:
            await work(manager, jobs)

    await run.drive(run_block())
    assert await broker.count(state=S.RUNNING) == 0


async def around_a_manager(run: InjectedRun, broker: FaultyBroker) -> None:
    async def run_block() -> None:
        async with queue(broker) as jobs, Manager() as manager:
            await work(manager, jobs)

    await run.drive(run_block())
    assert await broker.count(state=S.RUNNING) == 0


async def work(manager: Manager, jobs: JobQueue) -> None:
    await jobs.start(manager, concurrency=3)
    for name in ("fast", "slow", "shaky", "slow"):
        await jobs.enqueue(name)
    await anyio.sleep(0.5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    "body",
    [leave_the_queue, inside_a_manager, around_a_manager],
    ids=lambda body: body.__name__,
)
def test_blocks(body: Body, store: str, backend: str) -> None:
    """A cancelled block releases its jobs, and another worker finishes them."""
    sweep(body, store, backend, again=body is leave_the_queue)


# Workers


async def run_worker(run: InjectedRun, broker: FaultyBroker) -> None:
    async with Manager() as manager, queue(broker) as jobs:
        run.host = manager
        with suppress(LoopsStoppedError):  # after a shutdown before their start
            await work(manager, jobs)
        await anyio.sleep(0.2)


def shut_down(run: InjectedRun, task: Any, name: str) -> None:
    """Request a shutdown twice, which cancels running jobs immediately."""
    if run.host is not None:
        run.host.request_shutdown()
        run.host.request_shutdown()


def cancel_service(run: InjectedRun, task: Any, name: str) -> None:
    """Cancel a service of the worker natively, as an event loop does that cancels all tasks."""
    if isinstance(task, asyncio.Task) and name.startswith("background "):
        task.cancel()


@pytest.mark.parametrize(
    ("act", "backend"),
    # trio has no native cancellation of tasks.
    [(shut_down, "asyncio"), (shut_down, "trio"), (cancel_service, "asyncio")],
)
def test_workers(act: Any, backend: str) -> None:
    """A shutdown or a cancelled service at any step of a worker loses no job."""
    tested = scenario(run_worker, "memory")
    undisturbed = play(tested, backend)
    assert not undisturbed.problems, undisturbed.problems
    steps: list[Step] = [
        step
        for step in undisturbed.steps.reached
        if act is shut_down or step.name.startswith("background ")
    ]
    for step in steps[:400]:
        run = play(tested, backend, step, act)
        assert not run.problems, (step, "".join(run.problems))
