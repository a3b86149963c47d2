"""Cancellation at every suspension of public coroutines, tasks and services."""

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
    InjectedRun,
    Outcome,
    Scenario,
    Sweep,
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
Body = Callable[[InjectedRun], Awaitable[object]]


class Hooked(Observer):
    """Has a slow `async def` hook, and a service that never ends by itself."""

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


def check_ended_at_once(run: InjectedRun, outcome: Outcome) -> None:
    """Check that the cancelled call has ended immediately, unless it had already been woken."""
    if run.injected_at is not None and run.point is not None:
        assert run.ended_at == run.injected_at
        waited = run.point.when is When.SUSPENDED or run.point.how is How.NATIVE
        assert outcome.cancelled or not waited


@pytest.fixture(autouse=True)
def same_order_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the order of trio's tasks repeatable, as trio's Hypothesis plugin does."""
    monkeypatch.setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    monkeypatch.setattr(trio_run, "_r", Random())  # `play()` seeds it for each run


# Blocks of managers


@dataclass
class Block:
    """A manager's block.

    Args:
        body: The body of the block.
        observers: Makes the manager's observers.
        within: Seconds within which the block ends when it is cancelled.
        entangled: Whether tasks of the block affect each other.
        errors: Errors that the block raises.
        options: Options of the manager.
    """

    body: Body
    observers: Callable[[], list[Observer]] = list
    within: float = 0
    entangled: bool = False
    errors: tuple[type[BaseException], ...] = ()
    options: dict[str, Any] | None = None


async def one_offs(run: InjectedRun) -> None:
    run.start(nap, 3)
    run.start(nap, 2)
    run.start(cleans_up)
    await anyio.sleep(1)
    run.start(nap, 4)
    run.start(checkpoint).cancel()
    run.start(checkpoint)


async def loops(run: InjectedRun) -> None:
    run.start(checkpoint, kind=LOOP, schedule=every(2))
    run.start(nap, 1, kind=LOOP)
    run.start(broken, kind=LOOP)
    run.start(broken, kind=LOOP, max_failures=2)
    run.start(broken, kind=LOOP, retry=TWICE)
    await anyio.sleep(3)


async def delayed(run: InjectedRun) -> None:
    run.start(nap, 2, delay=1)
    run.start(nap, 2, delay=10)
    await anyio.sleep(2)


async def queued(run: InjectedRun) -> None:
    for lifespan in (5, None, 5, None):
        run.start(nap, 2, lifespan=lifespan)
    await anyio.sleep(1)


async def backoff(run: InjectedRun) -> None:
    run.start(Flaky(1).__call__, retry=TWICE)
    run.start(broken, retry=TWICE)
    run.start(nap, retry=TWICE, timeout=2)
    await anyio.sleep(1)


async def threads(run: InjectedRun) -> None:
    await run.start(sync).wait()
    run.start(sync)
    run.start(returns_a_coroutine)


async def waits(run: InjectedRun) -> None:
    manager = run.collector.manager
    await run.start(nap, 1).wait()
    run.start(nap, 1)
    await manager.wait()
    run.start(nap, 1, kind=LOOP)
    await anyio.sleep(0.5)
    await manager.stop_loops()
    await manager.close()


async def raises(run: InjectedRun) -> None:
    run.start(nap, 2)
    run.start(nap, 1, kind=LOOP)
    await anyio.sleep(1)
    raise ValueError("in the body")


async def fails_critically(run: InjectedRun) -> None:
    run.start(nap, 5)
    run.start(cleans_up)
    run.start(broken, critical=True, delay=1)
    await anyio.sleep(3)


async def is_asked_to_stop(run: InjectedRun) -> None:
    run.start(nap, 5)
    run.start(nap, 1, kind=LOOP)
    await anyio.sleep(1)
    run.collector.manager.request_shutdown()
    await run.collector.manager.shutdown_requested()


async def is_closed_inside(run: InjectedRun) -> None:
    run.start(nap, 2)
    run.start(run.collector.manager.close)
    run.start(run.collector.manager.wait)
    run.start(nap, 3, kind=LOOP)
    await anyio.sleep(1)


async def contains_another(run: InjectedRun) -> None:
    async with Manager() as inner:
        inner.run(nap, 2)
        run.start(inner.close)
        await anyio.sleep(1)


BLOCKS = {
    "nothing outstanding": Block(lambda run: checkpoint()),
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
    """A scenario that drives a block."""

    block: Block

    async def __call__(self, run: InjectedRun) -> None:
        async def run_block() -> None:
            observers = self.block.observers()
            async with run.manager(*observers, **self.block.options or {}):
                await self.block.body(run)

        outcome = await run.drive(run_block(), *self.block.errors, ManagerClosedError)
        if run.injected_at is not None:
            assert run.ended_at - run.injected_at <= self.block.within
        elif self.block.errors and not run.steps.acted:
            assert isinstance(outcome.error, self.block.errors)

    def compare(self, undisturbed: InjectedRun, run: InjectedRun) -> Iterator[str]:
        """Yield the effects of a cancelled task or service on other tasks."""
        late = run.ended_at - undisturbed.ended_at
        if late > 5:
            yield f"it ended {late} seconds late"
        if run.hit and run.hit != "background closing" and not self.block.entangled:
            expected, actual = (
                {handle.name: handle.status for handle in played.handles.values()}
                for played in (undisturbed, run)
            )
            for name, status in expected.items():
                if name != run.hit and actual.get(name) is not status:
                    yield f"without {run.hit!r}, {name!r} has {actual.get(name)}"


@pytest.fixture(scope="module", autouse=True)
def tally(pytestconfig: pytest.Config) -> Iterator[Counter[str]]:
    """Count the injected cancellations, and print the counts at the end."""
    tally: Counter[str] = Counter()
    yield tally
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        figures = ", ".join(f"{name} {tally[name]}" for name in sorted(tally))
        print(f"\ncancellation injected: {figures}")


Record = Callable[[Sweep, int], None]


@pytest.fixture
def record(tally: Counter[str], backend: str) -> Record:
    """Count the points of a sweep; fail if one failed, too many were missed, or too few exist."""

    def count(sweep: Sweep, minimum: int) -> None:
        tally[f"{backend} points"] += sweep.points
        tally[f"{backend} failed"] += len(sweep.failed)
        for at, problems in sweep.failed.items():
            print(at, *problems, sep="\n   ")
        assert not sweep.failed
        assert sweep.points >= minimum
        assert sweep.missed <= sweep.points / 10

    return count


def cancel_by_scope(run: InjectedRun, task: Any, name: str) -> None:
    run.inject(How.SCOPE)


def cancel_natively(run: InjectedRun, task: Any, name: str) -> None:
    run.inject(How.NATIVE)


def cancel_task(run: InjectedRun, task: Any, name: str) -> None:
    run.hit = name
    task.cancel()


def cancel_handle(run: InjectedRun, task: Any, name: str) -> None:
    for handle in run.handles.values():
        if handle.name == name:
            run.hit = name
            handle.cancel()


def request_shutdown_twice(run: InjectedRun, task: Any, name: str) -> None:
    manager = run.collector.manager
    if manager.state not in (ManagerState.NEW, ManagerState.CLOSED):
        manager.request_shutdown()
        manager.request_shutdown()


def cancel_all_tasks(run: InjectedRun, task: Any, name: str) -> None:
    """Cancel all tasks, as an event loop does when it shuts down."""
    run.inject(How.NATIVE)
    for native in asyncio.all_tasks():
        if native is not run.host:
            native.cancel()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_block(block: Block, backend: str, record: Record) -> None:
    """A block that is cancelled at any suspension ends in time and leaks nothing."""
    record(sweep_driven(InBlock(block), backend), 20 if backend == "asyncio" else 6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("act", [cancel_by_scope, cancel_handle, request_shutdown_twice])
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_block_at_task_steps(block: Block, act: Act, backend: str, record: Record) -> None:
    """A cancellation at any step of any task affects only that task or its block."""
    record(sweep_steps(InBlock(block), backend, act, InBlock(block).compare), 10)


@pytest.mark.parametrize("backend", ["asyncio"])
@pytest.mark.parametrize("act", [cancel_natively, cancel_task, cancel_all_tasks])
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_block_at_task_steps_natively(block: Block, act: Act, backend: str, record: Record) -> None:
    """Services survive a native cancellation, and a cancelled task affects no other task."""
    record(sweep_steps(InBlock(block), backend, act, InBlock(block).compare), 10)


# Single coroutines

SINGLES: dict[str, Scenario] = {}


def single(scenario: Scenario) -> Scenario:
    SINGLES[scenario.__name__.replace("_", " ")] = scenario
    return scenario


async def call_later(fn: Callable[[], Awaitable[object]]) -> None:
    await anyio.sleep(1)
    await fn()


async def check_capacity_of_one(run: InjectedRun) -> None:
    manager = run.collector.manager
    await manager.wait()
    manager.run(nap, 1)
    with pytest.raises(ManagerFullError):
        manager.run(nap, 1)


def all_succeeded(run: InjectedRun) -> bool:
    return {handle.status for handle in run.handles.values()} == {TaskStatus.SUCCEEDED}


@single
async def submit_with_room(run: InjectedRun) -> None:
    async with run.manager(capacity=1) as manager:
        outcome = await run.drive(manager.submit(Task(nap, args=(1,))))
        check_ended_at_once(run, outcome)
        assert list(run.handles.values()) == [outcome.value] * (not outcome.cancelled)
        await check_capacity_of_one(run)


@single
async def submit_without_room(run: InjectedRun) -> None:
    async with run.manager(capacity=1) as manager:
        first = manager.run(nap, 2)
        outcome = await run.drive(manager.submit(Task(nap, args=(1,))))
        check_ended_at_once(run, outcome)
        assert [*run.handles.values()][1:] == [outcome.value] * (not outcome.cancelled)
        await check_capacity_of_one(run)
    assert first.status is TaskStatus.SUCCEEDED


@single
async def submit_in_queue(run: InjectedRun) -> None:
    """Cancel a `submit()` between two others, which keep their places in the queue."""
    async with run.manager(capacity=1) as manager, anyio.create_task_group() as group:
        submit = partial(manager.submit, Task(nap, args=(1,)))
        manager.run(nap, 2)
        group.start_soon(submit)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(call_later, submit)
        outcome = await run.drive(submit())
        check_ended_at_once(run, outcome)
        await anyio.sleep(10)
        assert len(run.handles) == 4 - outcome.cancelled
        await check_capacity_of_one(run)
    assert all_succeeded(run)


@single
async def submit_until_closing(run: InjectedRun) -> None:
    async with run.manager(capacity=1) as manager, anyio.create_task_group() as group:
        manager.run(nap, 2)
        group.start_soon(call_later, manager.close)
        outcome = await run.drive(manager.submit(Task(nap)), ManagerClosedError)
        check_ended_at_once(run, outcome)
        assert outcome.cancelled or outcome.error
    assert len(run.handles) == 1
    assert all_succeeded(run)


@single
async def submit_while_closing(run: InjectedRun) -> None:
    """Cancel a `submit()` of a task for which the closing waits."""

    async def work() -> bool:
        outcome = await run.drive(manager.submit(Task(nap, args=(1,))))
        check_ended_at_once(run, outcome)
        return outcome.cancelled

    async with run.manager(capacity=2) as manager:
        manager.run(nap, 2)
        handle = manager.run(work)
        await anyio.sleep(1)
        await manager.close()
    assert len(run.handles) == 3 - await handle
    assert all_succeeded(run)


@single
async def submit_a_loop(run: InjectedRun) -> None:
    async with run.manager(capacity=1) as manager:
        outcome = await run.drive(manager.submit(Task(nap, args=(1,), kind=LOOP)))
        check_ended_at_once(run, outcome)
        assert manager.count() == (not outcome.cancelled)
        await check_capacity_of_one(run)


@single
async def wait(run: InjectedRun) -> None:
    async with run.manager() as manager:
        handle = manager.run(nap, 2)
        loop = manager.loop(nap, 1)
        outcome = await run.drive(manager.wait())
        check_ended_at_once(run, outcome)
        assert outcome.cancelled or manager.tasks() == [loop]
        await manager.wait()
        assert manager.tasks() == [loop]
    assert handle.status is TaskStatus.SUCCEEDED


@single
async def wait_inside_a_task(run: InjectedRun) -> None:
    async def work() -> None:
        check_ended_at_once(run, await run.drive(run.collector.manager.wait()))
        await anyio.sleep(5)

    async with run.manager() as manager:
        manager.run(nap, 2)
        manager.run(work)
        await manager.wait()
        assert manager.count() == 0
    assert all_succeeded(run)


@single
async def stop_loops(run: InjectedRun) -> None:
    async with run.manager() as manager:
        manager.loop(nap, 2)
        manager.every(2, nap, 1)
        one_off = manager.run(nap, 4)
        await anyio.sleep(0.5)
        outcome = await run.drive(manager.stop_loops())
        check_ended_at_once(run, outcome)
        assert outcome.cancelled or manager.tasks() == [one_off]
        await manager.stop_loops()
        assert manager.tasks() == [one_off]


@single
async def stop_loops_inside_a_loop(run: InjectedRun) -> None:
    async def work() -> None:
        await anyio.sleep(0.5)
        check_ended_at_once(run, await run.drive(run.collector.manager.stop_loops()))

    async with run.manager() as manager:
        handle = manager.loop(work)
        manager.loop(nap, 1)
        await handle.wait()
        await manager.stop_loops()
        assert manager.count() == 0
    assert handle.iteration == 1


@single
async def close(run: InjectedRun) -> None:
    """Cancel a `close()`; the closing continues without a waiter."""
    async with run.manager() as manager:
        manager.run(nap, 2)
        outcome = await run.drive(manager.close())
        check_ended_at_once(run, outcome)
        with pytest.raises(ManagerClosedError):
            manager.run(nap)
        report = await manager.close()
        assert outcome.cancelled or outcome.value is report
    assert all_succeeded(run)


@single
async def close_with_a_timeout(run: InjectedRun) -> None:
    async with run.manager() as manager:
        handle = manager.run(cleans_up)
        manager.after(5, nap)
        await anyio.sleep(1)
        outcome = await run.drive(manager.close(timeout=1))
        check_ended_at_once(run, outcome)
        report = await manager.close()
        assert report.cancelled == (handle,)
        assert len(report.not_started) == 1


@single
async def close_inside_a_task(run: InjectedRun) -> None:
    async def work() -> bool:
        outcome = await run.drive(run.collector.manager.close())
        check_ended_at_once(run, outcome)
        still_open = manager.state is not ManagerState.CLOSED
        await anyio.sleep(5)
        return still_open

    async with run.manager() as manager:
        manager.run(nap, 2)
        handle = manager.run(work)
        await anyio.sleep(1)
    assert all_succeeded(run)
    report = await manager.close()
    assert (handle in report.succeeded) is await handle


@single
async def close_twice_at_once(run: InjectedRun) -> None:
    async with run.manager() as manager, anyio.create_task_group() as group:
        manager.run(nap, 2)
        group.start_soon(manager.close)
        check_ended_at_once(run, await run.drive(manager.close()))
    assert all_succeeded(run)


@single
async def open_without_block(run: InjectedRun) -> None:
    async with run.manager():
        opened = Manager()
        outcome = await run.drive(opened.open())
        check_ended_at_once(run, outcome)
        expected = ManagerState.NEW if outcome.cancelled else ManagerState.RUNNING
        assert opened.state is expected
        await opened.close()


@single
async def close_without_block(run: InjectedRun) -> None:
    """Cancel a `close()` of a manager that was opened; the closing ends it without a waiter."""
    async with run.manager():
        opened = Manager()
        await opened.open()
        handle = opened.run(nap, 2)
        outcome = await run.drive(opened.close())
        check_ended_at_once(run, outcome)
        await anyio.sleep(3)
        assert (await opened.close()).succeeded == (handle,)


@single
async def close_before_entering(run: InjectedRun) -> None:
    unused = Manager()
    check_ended_at_once(run, await run.drive(unused.close()))
    async with run.manager():
        assert (await unused.close()).succeeded == ()
    with pytest.raises(ManagerClosedError):
        await unused.__aenter__()


@single
async def shutdown_requested(run: InjectedRun) -> None:
    async with run.manager() as manager, anyio.create_task_group() as group:

        async def request() -> None:
            manager.request_shutdown()

        manager.run(nap, 2)
        group.start_soon(call_later, request)
        check_ended_at_once(run, await run.drive(manager.shutdown_requested()))
        await manager.shutdown_requested()
    assert all_succeeded(run)


async def awaits(handle: TaskHandle[Any]) -> Any:
    return await handle


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", [TaskHandle.result, TaskHandle.wait, awaits])
@pytest.mark.parametrize("fn", [nap, broken, cleans_up], ids=["fine", "fails", "cancelled"])
@pytest.mark.parametrize("ended", [False, True], ids=["outstanding", "ended"])
def test_waiting_for_task(
    method: Callable[..., Any],
    fn: Callable[..., Any],
    ended: bool,
    backend: str,
    record: Record,
) -> None:
    """A cancelled wait affects neither the task nor its other waiters."""

    async def scenario(run: InjectedRun) -> None:
        async with run.manager() as manager, anyio.create_task_group() as group:
            handle = manager.run_task(Task(fn, args=() if fn is broken else (2,), delay=1))
            group.start_soon(handle.wait)
            group.start_soon(call_later, partial(cancel_or_not, handle))
            if ended:
                await handle.wait()
            outcome = await run.drive(method(handle), ValueError, TaskCancelledError)
            check_ended_at_once(run, outcome)
            status = await handle.wait()
        assert status == {nap: "succeeded", broken: "failed"}.get(fn, "cancelled")

    async def cancel_or_not(handle: TaskHandle[Any]) -> None:
        await anyio.sleep(1)
        if fn is cleans_up:
            handle.cancel()

    record(sweep_driven(scenario, backend), 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_failure_with_cancelled_waiter(
    backend: str, record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure is raised in its only waiter, or logged if that was cancelled."""

    async def scenario(run: InjectedRun) -> None:
        caplog.clear()
        async with run.manager():
            pass  # the manager that is checked after the run; it logs nothing
        async with Manager() as manager:
            handle = manager.run_task(Task(broken, delay=1))
            outcome = await run.drive(handle.result(), ValueError)
            check_ended_at_once(run, outcome)
            await anyio.sleep(2)
        assert (len(caplog.records), outcome.error is None) in ((0, False), (1, True))

    record(sweep_driven(scenario, backend), 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scenario", SINGLES.values(), ids=SINGLES)
def test_single_coroutine(scenario: Scenario, backend: str, record: Record) -> None:
    """A single coroutine that is cancelled at any suspension ends immediately."""
    record(sweep_driven(scenario, backend), 2)
