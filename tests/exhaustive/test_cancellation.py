"""Cancellation at every await point of every public coroutine, of tasks, and of services."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from support.cancellation.injection import (
    Act,
    How,
    Outcome,
    Scenario,
    Sweep,
    World,
    sweep_driven,
    sweep_steps,
)
from support.cancellation.stepping import When
from support.outcomes import TWICE, Flaky, broken, nap
from tenacity import wait_fixed
from trio._core import _run as trio_run

from background import (
    Manager,
    ManagerClosedError,
    ManagerFullError,
    ManagerState,
    Observer,
    Task,
    TaskCancelledError,
    TaskHandle,
    TaskKind,
    TaskStatus,
    every,
)
from background.observers import StallObserver

LOOP = TaskKind.LOOP
BACKENDS = ["asyncio", "trio"]
Body = Callable[[World], Awaitable[object]]


class Hooked(Observer):
    """Has an `async def` hook that takes its time, and a service that never ends by itself."""

    async def on_task_started(self, event: object) -> None:
        await anyio.sleep(0.25)

    async def watch(self, manager: Manager) -> None:
        await anyio.sleep_forever()


async def cleans_up(seconds: float = 1) -> None:
    try:
        await nap(3)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(seconds)


def sync() -> str:
    return "fine"


def returns_a_coroutine() -> Awaitable[None]:
    return nap(1)


def ended_at_once(world: World, outcome: Outcome) -> None:
    """Check that what was cancelled has ended by that, unless it was through with waiting."""
    if world.injected_at is not None and world.point is not None:
        assert world.ended_at == world.injected_at
        waited = world.point.when is When.SUSPENDED or world.point.how is How.NATIVE
        assert outcome.cancelled or not waited


@pytest.fixture(autouse=True)
def same_order_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trio, which runs tasks in random order, repeat itself; as its Hypothesis plugin does."""
    monkeypatch.setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    monkeypatch.setattr(trio_run, "_r", Random())  # seeded anew for each run


# Blocks, which are entered, left, and all that is between


@dataclass
class Block:
    """A manager's block, and how long it may take to end once it is cancelled."""

    body: Body
    observers: Callable[[], list[Observer]] = list
    within: float = 0
    entangled: bool = False  # one of its tasks is some other's business
    errors: tuple[type[BaseException], ...] = ()
    options: dict[str, Any] | None = None


async def one_offs(world: World) -> None:
    world.start(nap, 3)
    world.start(nap, 2)
    world.start(cleans_up)
    await anyio.sleep(1)
    world.start(nap, 4)
    world.start(checkpoint).cancel()
    world.start(checkpoint)


async def loops(world: World) -> None:
    world.start(checkpoint, kind=LOOP, schedule=every(2))
    world.start(nap, 1, kind=LOOP)
    world.start(broken, kind=LOOP)
    world.start(broken, kind=LOOP, max_failures=2)
    world.start(broken, kind=LOOP, retry=TWICE)
    await anyio.sleep(3)


async def delayed(world: World) -> None:
    world.start(nap, 2, delay=1)
    world.start(nap, 2, delay=10)
    await anyio.sleep(2)


async def queued(world: World) -> None:
    for lifespan in (5, None, 5, None):
        world.start(nap, 2, lifespan=lifespan)
    await anyio.sleep(1)


async def backoff(world: World) -> None:
    world.start(Flaky(1).__call__, retry=TWICE)
    world.start(broken, retry=TWICE)
    world.start(nap, retry=TWICE, timeout=2)
    await anyio.sleep(1)


async def threads(world: World) -> None:
    await world.start(sync).wait()
    world.start(sync)
    world.start(returns_a_coroutine)


async def waits(world: World) -> None:
    manager = world.collector.manager
    await world.start(nap, 1).wait()
    world.start(nap, 1)
    await manager.wait()
    world.start(nap, 1, kind=LOOP)
    await anyio.sleep(0.5)
    await manager.stop_loops()
    await manager.close()


async def raises(world: World) -> None:
    world.start(nap, 2)
    world.start(nap, 1, kind=LOOP)
    await anyio.sleep(1)
    raise ValueError("of the body")


async def fails_critically(world: World) -> None:
    world.start(nap, 5)
    world.start(cleans_up)
    world.start(broken, critical=True, delay=1)
    await anyio.sleep(3)


async def is_asked_to_stop(world: World) -> None:
    world.start(nap, 5)
    world.start(nap, 1, kind=LOOP)
    await anyio.sleep(1)
    world.collector.manager.request_shutdown()
    await world.collector.manager.shutdown_requested()


async def is_closed_inside(world: World) -> None:
    world.start(nap, 2)
    world.start(world.collector.manager.close)
    world.start(world.collector.manager.wait)
    world.start(nap, 3, kind=LOOP)
    await anyio.sleep(1)


async def contains_another(world: World) -> None:
    async with Manager() as inner:
        inner.run(nap, 2)
        world.start(inner.close)
        await anyio.sleep(1)


BLOCKS = {
    "nothing outstanding": Block(lambda world: checkpoint()),
    "one-offs": Block(one_offs, within=1),
    "loops": Block(loops, options={"loop_backoff": wait_fixed(1)}),
    "delayed one-offs": Block(delayed),
    "one-offs behind the limit": Block(queued, entangled=True, options={"limit": 1}),
    "backoff": Block(backoff),
    "sync functions": Block(threads),
    "async hooks and services": Block(one_offs, lambda: [Hooked(), StallObserver(1)], within=4),
    "waiting": Block(waits),
    "an error of the body": Block(raises, errors=(ValueError,)),
    "a critical failure": Block(
        fails_critically, within=1, entangled=True, errors=(ExceptionGroup,)
    ),
    "a shutdown request": Block(is_asked_to_stop, options={"grace": 2}),
    "signals": Block(one_offs, within=1, options={"signals": [signal.SIGTERM, signal.SIGINT]}),
    "closing inside a task": Block(is_closed_inside),
    "another block": Block(contains_another),
}


@dataclass
class InBlock:
    """A scenario: a block, cancelled as a whole."""

    block: Block

    async def __call__(self, world: World) -> None:
        async def stay() -> None:
            observers = self.block.observers()
            async with world.manager(*observers, **self.block.options or {}):
                await self.block.body(world)

        outcome = await world.drive(stay(), *self.block.errors, ManagerClosedError)
        if world.injected_at is not None:
            assert world.ended_at - world.injected_at <= self.block.within
        elif self.block.errors and not world.steps.acted:
            assert isinstance(outcome.error, self.block.errors)

    def compare(self, undisturbed: World, world: World) -> Iterator[str]:
        """Tell what a cancelled task or service has done to the other tasks."""
        late = world.ended_at - undisturbed.ended_at
        if late > 5:
            yield f"it ended {late} seconds late"
        if world.hit and world.hit != "background closing" and not self.block.entangled:
            fates = [
                {handle.name: handle.status for handle in each.handles.values()}
                for each in (undisturbed, world)
            ]
            for name, status in fates[0].items():
                if name != world.hit and fates[1].get(name) is not status:
                    yield f"without {world.hit!r}, {name!r} has {fates[1].get(name)}"


@pytest.fixture(scope="module", autouse=True)
def tally(pytestconfig: pytest.Config) -> Iterator[Counter[str]]:
    """Add up what has been tried, and print it in the end."""
    tally: Counter[str] = Counter()
    yield tally
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        figures = ", ".join(f"{name} {tally[name]}" for name in sorted(tally))
        print(f"\ncancellation injected: {figures}")


Record = Callable[[Sweep, int], None]


@pytest.fixture
def record(tally: Counter[str], backend: str) -> Record:
    """Count points, and fail if there are too few, or any of them failed or was out of reach."""

    def count(done: Sweep, least: int) -> None:
        tally[f"{backend} points"] += done.points
        tally[f"{backend} failed"] += len(done.failed)
        for at, problems in done.failed.items():
            print(at, *problems, sep="\n   ")
        assert not done.failed
        assert done.points >= least
        assert done.missed <= done.points / 10

    return count


def by_scope(world: World, task: Any, name: str) -> None:
    world.inject(How.SCOPE)


def by_asyncio(world: World, task: Any, name: str) -> None:
    world.inject(How.NATIVE)


def of_task(world: World, task: Any, name: str) -> None:
    world.hit = name
    task.cancel()


def of_handle(world: World, task: Any, name: str) -> None:
    for handle in world.handles.values():
        if handle.name == name:
            world.hit = name
            handle.cancel()


def asked_twice(world: World, task: Any, name: str) -> None:
    manager = world.collector.manager
    if manager.state not in (ManagerState.NEW, ManagerState.CLOSED):
        manager.request_shutdown()
        manager.request_shutdown()


def of_all_tasks(world: World, task: Any, name: str) -> None:
    """As an event loop that shuts down does."""
    world.inject(How.NATIVE)
    for each in asyncio.all_tasks():
        if each is not world.host:
            each.cancel()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_block(block: Block, backend: str, record: Record) -> None:
    record(sweep_driven(InBlock(block), backend), 20 if backend == "asyncio" else 6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("act", [by_scope, of_handle, asked_twice])
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_block_at_each_step_of_its_tasks(
    block: Block, act: Act, backend: str, record: Record
) -> None:
    record(sweep_steps(InBlock(block), backend, act, InBlock(block).compare), 10)


@pytest.mark.parametrize("backend", ["asyncio"])
@pytest.mark.parametrize("act", [by_asyncio, of_task, of_all_tasks])
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_block_at_each_step_of_its_tasks_natively(
    block: Block, act: Act, backend: str, record: Record
) -> None:
    """Services go on, and a task that asyncio cancels is no other task's business."""
    record(sweep_steps(InBlock(block), backend, act, InBlock(block).compare), 10)


# One coroutine at a time

SINGLES: dict[str, Scenario] = {}


def single(scenario: Scenario) -> Scenario:
    SINGLES[scenario.__name__.replace("_", " ")] = scenario
    return scenario


async def later(fn: Callable[[], Awaitable[object]]) -> None:
    await anyio.sleep(1)
    await fn()


async def takes_exactly_one(world: World) -> None:
    manager = world.collector.manager
    await manager.wait()
    manager.run(nap, 1)
    with pytest.raises(ManagerFullError):
        manager.run(nap, 1)


def all_succeeded(world: World) -> bool:
    return {handle.status for handle in world.handles.values()} == {TaskStatus.SUCCEEDED}


@single
async def submit_with_room(world: World) -> None:
    async with world.manager(capacity=1) as manager:
        outcome = await world.drive(manager.submit(Task(nap, args=(1,))))
        ended_at_once(world, outcome)
        assert list(world.handles.values()) == [outcome.value] * (not outcome.cancelled)
        await takes_exactly_one(world)


@single
async def submit_without_room(world: World) -> None:
    async with world.manager(capacity=1) as manager:
        first = manager.run(nap, 2)
        outcome = await world.drive(manager.submit(Task(nap, args=(1,))))
        ended_at_once(world, outcome)
        assert [*world.handles.values()][1:] == [outcome.value] * (not outcome.cancelled)
        await takes_exactly_one(world)
    assert first.status is TaskStatus.SUCCEEDED


@single
async def submit_among_others(world: World) -> None:
    """Neither those before it nor those after it lose their turns."""
    async with world.manager(capacity=1) as manager, anyio.create_task_group() as others:
        submit = partial(manager.submit, Task(nap, args=(1,)))
        manager.run(nap, 2)
        others.start_soon(submit)
        await anyio.wait_all_tasks_blocked()
        others.start_soon(later, submit)
        outcome = await world.drive(submit())
        ended_at_once(world, outcome)
        await anyio.sleep(10)
        assert len(world.handles) == 4 - outcome.cancelled
        await takes_exactly_one(world)
    assert all_succeeded(world)


@single
async def submit_until_closing(world: World) -> None:
    async with world.manager(capacity=1) as manager, anyio.create_task_group() as others:
        manager.run(nap, 2)
        others.start_soon(later, manager.close)
        outcome = await world.drive(manager.submit(Task(nap)), ManagerClosedError)
        ended_at_once(world, outcome)
        assert outcome.cancelled or outcome.error
    assert len(world.handles) == 1
    assert all_succeeded(world)


@single
async def submit_a_loop(world: World) -> None:
    async with world.manager(capacity=1) as manager:
        outcome = await world.drive(manager.submit(Task(nap, args=(1,), kind=LOOP)))
        ended_at_once(world, outcome)
        assert manager.count() == (not outcome.cancelled)
        await takes_exactly_one(world)


@single
async def wait(world: World) -> None:
    async with world.manager() as manager:
        handle = manager.run(nap, 2)
        loop = manager.loop(nap, 1)
        outcome = await world.drive(manager.wait())
        ended_at_once(world, outcome)
        assert outcome.cancelled or manager.tasks() == [loop]
        await manager.wait()
        assert manager.tasks() == [loop]
    assert handle.status is TaskStatus.SUCCEEDED


@single
async def wait_inside_a_task(world: World) -> None:
    async def work() -> None:
        ended_at_once(world, await world.drive(world.collector.manager.wait()))
        await anyio.sleep(5)

    async with world.manager() as manager:
        manager.run(nap, 2)
        manager.run(work)
        await manager.wait()
        assert manager.count() == 0
    assert all_succeeded(world)


@single
async def stop_loops(world: World) -> None:
    async with world.manager() as manager:
        manager.loop(nap, 2)
        manager.every(2, nap, 1)
        one_off = manager.run(nap, 4)
        await anyio.sleep(0.5)
        outcome = await world.drive(manager.stop_loops())
        ended_at_once(world, outcome)
        assert outcome.cancelled or manager.tasks() == [one_off]
        await manager.stop_loops()
        assert manager.tasks() == [one_off]


@single
async def stop_loops_inside_a_loop(world: World) -> None:
    async def work() -> None:
        await anyio.sleep(0.5)
        ended_at_once(world, await world.drive(world.collector.manager.stop_loops()))

    async with world.manager() as manager:
        handle = manager.loop(work)
        manager.loop(nap, 1)
        await handle.wait()
        await manager.stop_loops()
        assert manager.count() == 0
    assert handle.iteration == 1


@single
async def close(world: World) -> None:
    """It goes on though nobody waits for it any more."""
    async with world.manager() as manager:
        manager.run(nap, 2)
        outcome = await world.drive(manager.close())
        ended_at_once(world, outcome)
        with pytest.raises(ManagerClosedError):
            manager.run(nap)
        report = await manager.close()
        assert outcome.cancelled or outcome.value is report
    assert all_succeeded(world)


@single
async def close_with_a_timeout(world: World) -> None:
    async with world.manager() as manager:
        handle = manager.run(cleans_up)
        manager.after(5, nap)
        await anyio.sleep(1)
        outcome = await world.drive(manager.close(timeout=1))
        ended_at_once(world, outcome)
        report = await manager.close()
        assert report.cancelled == (handle,)
        assert len(report.not_started) == 1


@single
async def close_inside_a_task(world: World) -> None:
    async def work() -> bool:
        outcome = await world.drive(world.collector.manager.close())
        ended_at_once(world, outcome)
        to_be_waited_for = manager.state is not ManagerState.CLOSED
        await anyio.sleep(5)
        return to_be_waited_for

    async with world.manager() as manager:
        manager.run(nap, 2)
        handle = manager.run(work)
        await anyio.sleep(1)
    assert all_succeeded(world)
    report = await manager.close()
    assert (handle in report.succeeded) is await handle


@single
async def close_twice_at_once(world: World) -> None:
    async with world.manager() as manager, anyio.create_task_group() as others:
        manager.run(nap, 2)
        others.start_soon(manager.close)
        ended_at_once(world, await world.drive(manager.close()))
    assert all_succeeded(world)


@single
async def close_before_entering(world: World) -> None:
    unused = Manager()
    ended_at_once(world, await world.drive(unused.close()))
    async with world.manager():
        assert (await unused.close()).succeeded == ()
    with pytest.raises(ManagerClosedError):
        await unused.__aenter__()


@single
async def shutdown_requested(world: World) -> None:
    async with world.manager() as manager, anyio.create_task_group() as others:

        async def request() -> None:
            manager.request_shutdown()

        manager.run(nap, 2)
        others.start_soon(later, request)
        ended_at_once(world, await world.drive(manager.shutdown_requested()))
        await manager.shutdown_requested()
    assert all_succeeded(world)


async def awaits(handle: TaskHandle[Any]) -> Any:
    return await handle


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", [TaskHandle.result, TaskHandle.wait, awaits])
@pytest.mark.parametrize("fn", [nap, broken, cleans_up], ids=["fine", "fails", "cancelled"])
@pytest.mark.parametrize("ended", [False, True], ids=["outstanding", "ended"])
def test_waiting_for_a_task(
    method: Callable[..., Any],
    fn: Callable[..., Any],
    ended: bool,
    backend: str,
    record: Record,
) -> None:
    """Giving up does nothing to the task, nor to others who wait for it."""

    async def scenario(world: World) -> None:
        async with world.manager() as manager, anyio.create_task_group() as others:
            handle = manager.run_task(Task(fn, args=() if fn is broken else (2,), delay=1))
            others.start_soon(handle.wait)
            others.start_soon(later, partial(cancels, handle))
            if ended:
                await handle.wait()
            outcome = await world.drive(method(handle), ValueError, TaskCancelledError)
            ended_at_once(world, outcome)
            status = await handle.wait()
        assert status == {nap: "succeeded", broken: "failed"}.get(fn, "cancelled")

    async def cancels(handle: TaskHandle[Any]) -> None:
        await anyio.sleep(1)
        if fn is cleans_up:
            handle.cancel()

    record(sweep_driven(scenario, backend), 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failure_reaches_its_only_waiter_or_the_log(
    backend: str, record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        caplog.clear()
        async with world.manager():
            pass  # the one that is looked at, which logs nothing
        async with Manager() as manager:
            handle = manager.run_task(Task(broken, delay=1))
            outcome = await world.drive(handle.result(), ValueError)
            ended_at_once(world, outcome)
            await anyio.sleep(2)
        assert (len(caplog.records), outcome.error is None) in ((0, False), (1, True))

    record(sweep_driven(scenario, backend), 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scenario", SINGLES.values(), ids=SINGLES)
def test_single(scenario: Scenario, backend: str, record: Record) -> None:
    record(sweep_driven(scenario, backend), 2)
