"""Cancellation and shutdown at every suspension, with durable jobs under way.

Afterwards no job is lost or done by halves, and whatever was cancelled can be used again.
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
from support.cancellation.injection import How, Point, World, play
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
Body = Callable[[World, FaultyBroker], Awaitable[None]]


@pytest.fixture(autouse=True)
def same_order_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trio, which runs tasks in random order, repeat itself; as its Hypothesis plugin does."""
    monkeypatch.setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    monkeypatch.setattr(trio_run, "_r", Random())  # seeded anew for each run


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


async def all_end(broker: FaultyBroker) -> None:
    """Check that every job is done, or is done by whoever comes next, and that there is room."""
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


def scenario(body: Body, store: str) -> Callable[[World], Any]:
    async def play_it(world: World) -> None:
        async with world.manager():
            pass  # the one that is looked at
        kind = KINDS[store]
        with TemporaryDirectory() as folder:
            async with kind.opened(kind.make(Path(folder))) as real:
                broker = FaultyBroker(real)
                await body(world, broker)
                await all_end(broker)

    return play_it


def sweep(body: Body, store: str, backend: str, *, again: bool = False) -> None:
    """Cancel what is driven at each of its suspensions, on asyncio also once more soon after."""
    it = scenario(body, store)
    undisturbed = play(it, backend)
    assert not undisturbed.problems, undisturbed.problems
    assert undisturbed.suspensions
    hows = [*How] if backend == "asyncio" else [How.SCOPE]
    points = [Point(*each) for each in product(range(1, undisturbed.suspensions + 1), When, hows)]
    if again and backend == "asyncio":
        points += [each._replace(again=each.number + n) for each in points for n in (1, 2)]
    reached = 0
    for point in points:
        world = play(it, backend, point)
        assert not world.problems, (point, "".join(world.problems))
        reached += world.injected_at is not None
    assert reached


# What people call


async def enqueue(world: World, broker: FaultyBroker) -> None:
    async with queue(broker) as jobs:
        await world.drive(jobs.enqueue("fast", id="mine"))
        with suppress(QueueError):
            await jobs.enqueue("fast", id="mine")
        assert await jobs.count() == 1


async def enqueue_many(world: World, broker: FaultyBroker) -> None:
    async with queue(broker) as jobs:
        outcome = await world.drive(jobs._handlers["fast"].enqueue_many([(n,) for n in range(3)]))
        assert await jobs.count() in ((0, 3) if outcome.cancelled else (3,))


async def enqueue_a_composite(world: World, broker: FaultyBroker) -> None:
    async with queue(broker) as jobs:
        fast = jobs._handlers["fast"]
        step = chain(fast.job(), group(fast.job(), fast.job()))
        outcome = await world.drive(jobs.enqueue(step, id="mine"))
        assert await jobs.count() in ((0, 4) if outcome.cancelled else (4,))


async def result(world: World, broker: FaultyBroker) -> None:
    async with Manager() as manager, queue(broker) as jobs:
        await jobs.start(manager)
        job = await jobs.enqueue("slow")
        outcome = await world.drive(job.result())
        assert outcome.cancelled or outcome.value == "slept"
        assert await job.result() == "slept"


async def dequeue(world: World, broker: FaultyBroker) -> None:
    async with Manager() as manager, queue(broker) as jobs:
        await jobs.start(manager)
        job = await jobs.enqueue("slow", [50])
        await anyio.sleep(1)
        outcome = await world.drive(jobs.cancel(job.id))
        await jobs.cancel(job.id)
        assert await job.wait() is S.CANCELLED
        assert outcome.cancelled or outcome.value is True


async def start(world: World, broker: FaultyBroker) -> None:
    async with Manager() as manager, queue(broker) as jobs:
        job = await jobs.enqueue("fast", [3])
        outcome = await world.drive(jobs.start(manager))
        if outcome.cancelled:
            await jobs.start(manager)
        assert await job.result() == 3


async def save(world: World, broker: FaultyBroker) -> None:
    async with Manager() as manager, queue(broker) as jobs:

        @jobs.handler(name="saves")
        async def saves() -> str:
            await world.drive(JobContext.current().save("so far"))
            return "end"

        await jobs.start(manager)
        assert await (await saves.enqueue()).result() == "end"


async def close_a_worker(world: World, broker: FaultyBroker) -> None:
    async with Manager() as manager, queue(broker) as jobs:
        worker = await jobs.start(manager)
        for seconds in (1, 50):
            await jobs.enqueue("slow", [seconds])
        await anyio.sleep(0.5)
        await world.drive(worker.close(timeout=2))
        await worker.close(timeout=0)
        assert await jobs.count(state=S.RUNNING) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    "body",
    [
        enqueue,
        enqueue_many,
        enqueue_a_composite,
        result,
        dequeue,
        start,
        save,
        close_a_worker,
    ],
    ids=lambda body: body.__name__,
)
def test_calls(body: Body, store: str, backend: str) -> None:
    sweep(body, store, backend)


# Blocks


async def leave_the_queue(world: World, broker: FaultyBroker) -> None:
    async with Manager() as manager:
        jobs = queue(broker)
        await jobs.__aenter__()
        await jobs.start(manager)
        for what in ("fast", "slow", "shaky"):
            await jobs.enqueue(what)
        await anyio.sleep(0.5)
        await world.drive(jobs.__aexit__(None, None, None))
        assert await broker.count(state=S.RUNNING) == 0
        async with jobs:  # as it has been left, however that went
            await jobs.start(manager)
            assert await (await jobs.enqueue("fast", [3])).result() == 3


async def inside_a_manager(world: World, broker: FaultyBroker) -> None:
    async def live() -> None:
        async with Manager() as manager, queue(broker) as jobs:
            await work(manager, jobs)

    await world.drive(live())
    assert await broker.count(state=S.RUNNING) == 0


async def around_a_manager(world: World, broker: FaultyBroker) -> None:
    async def live() -> None:
        async with queue(broker) as jobs, Manager() as manager:
            await work(manager, jobs)

    await world.drive(live())
    assert await broker.count(state=S.RUNNING) == 0


async def work(manager: Manager, jobs: JobQueue) -> None:
    await jobs.start(manager, concurrency=3)
    for what in ("fast", "slow", "shaky", "slow"):
        await jobs.enqueue(what)
    await anyio.sleep(0.5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    "body",
    [leave_the_queue, inside_a_manager, around_a_manager],
    ids=lambda body: body.__name__,
)
def test_blocks(body: Body, store: str, backend: str) -> None:
    sweep(body, store, backend, again=body is leave_the_queue)


# What workers do, while others interfere


async def interfere(world: World, broker: FaultyBroker) -> None:
    async with Manager() as manager, queue(broker) as jobs:
        world.host = manager
        with suppress(LoopsStoppedError):  # by a shutdown before they start
            await work(manager, jobs)
        await anyio.sleep(0.2)


def shut_down(world: World, task: Any, name: str) -> None:
    """Ask twice, which cancels what runs at once."""
    if world.host is not None:
        world.host.request_shutdown()
        world.host.request_shutdown()


def cancel_service(world: World, task: Any, name: str) -> None:
    """Do to one of the worker's services what an event loop does that cancels all its tasks."""
    if isinstance(task, asyncio.Task) and name.startswith("background "):
        task.cancel()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("act", [shut_down, cancel_service])
def test_workers(act: Any, backend: str) -> None:
    if act is cancel_service and backend == "trio":
        return  # nobody can
    it = scenario(interfere, "memory")
    undisturbed = play(it, backend)
    assert not undisturbed.problems, undisturbed.problems
    steps: list[Step] = [
        step
        for step in undisturbed.steps.reached
        if act is shut_down or step.name.startswith("background ")
    ]
    for step in steps[:400]:
        world = play(it, backend, step, act)
        assert not world.problems, (step, "".join(world.problems))
