"""Short-lived managers of the soak test, closed in different ways while tasks run."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable
from random import Random

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint
from tenacity import wait_random

from background import Manager, ManagerState, Task
from background.observers import StallObserver
from support.soak.ledger import Ledger, Totals
from support.soak.load import Load, broken, busy
from support.soak.observers import Broken, HookCalls, Slow, SoakError

PATIENCE = 20.0  # seconds until a wait times out
CLEAN_UP = 0.3  # seconds; some observers need more, and the manager does not wait for them

live_managers: weakref.WeakSet[Manager] = weakref.WeakSet()


class Session:
    """A manager with its observers, its ledger and its cancel scope."""

    def __init__(self, totals: Totals, seed: str, cancel_timeout: float = CLEAN_UP) -> None:
        self.random = random = Random(seed)
        self.totals = totals
        self.ledger = Ledger(totals)
        self.hook_calls = HookCalls()
        self.broken = Broken(random)
        stalls = StallObserver(after=0.015)
        self.manager = Manager(
            observers=[self.ledger, Slow(random, self.hook_calls), self.broken, stalls],
            limit=random.choice([None, 10]),
            capacity=random.choice([None, 20]),
            threads=random.choice([2, 40]),
            loop_backoff=random.choice([None, wait_random(0, 0.005)]),
            grace=random.choice([None, 0.05]),
            cancel_timeout=cancel_timeout,
        )
        self.scope = anyio.CancelScope()
        live_managers.add(self.manager)

    def load(self, seed: str) -> Load:
        return Load(self.manager, self.ledger, self.totals, self.hook_calls, seed)

    async def check_closed(self) -> None:
        """Check the ledger, the report and the health of a manager that was closed."""
        manager, totals = self.manager, self.totals
        report = await manager.close()
        totals.stuck += len(report.stuck)
        with anyio.move_on_after(PATIENCE):
            for handle in report.stuck:
                await handle.wait()
        self.ledger.balance()
        health = manager.health()
        totals.dropped += health.events_dropped
        totals.hook_errors += health.hook_errors
        emitted = self.ledger.additions + self.ledger.successes + self.ledger.task_observer_calls
        for invariant, holds in {
            "closing and closed are emitted once": self.ledger.closings == ["closing", "closed"],
            "the manager is closed": manager.state is ManagerState.CLOSED and not manager.count(),
            "errors of hooks are counted": health.hook_errors == self.broken.raised,
            "contexts are exited": self.broken.entered == 0,
            "dropped events of async hooks are counted": (
                bool(report.stuck) or self.hook_calls.finished + health.events_dropped == emitted
            ),
        }.items():
            if not holds:
                totals.fault(
                    f"not true: {invariant}; {health}, {emitted=} {self.hook_calls.finished=}"
                )


async def leave(session: Session) -> None:
    """Leave the block while tasks run."""


async def close(session: Session) -> None:
    """Call `close()` several times, once in a task."""
    session.ledger.accepted.append(await session.manager.submit(Task(session.manager.close)))
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(session.manager.close)


async def close_at_once(session: Session) -> None:
    await session.manager.close(timeout=session.random.choice([0, 0.01]))


async def request(session: Session) -> None:
    """Request a shutdown from a thread, and leave after a while."""
    await to_thread.run_sync(session.manager.request_shutdown)
    await session.manager.shutdown_requested()
    await session.manager.stop_loops()
    await anyio.sleep(session.random.uniform(0, 0.02))


async def request_again(session: Session) -> None:
    """Request a shutdown twice, which cancels the tasks."""
    for _ in range(session.random.choice([2, 3])):
        session.manager.request_shutdown()
    await anyio.sleep(session.random.uniform(0, 0.02))


async def cancel(session: Session) -> None:
    session.scope.cancel()
    await checkpoint()


async def fail(session: Session) -> None:
    raise SoakError("in the body")


async def fail_critically(session: Session) -> None:
    while True:  # the load may cancel the task before it fails
        handle = await session.manager.submit(Task(broken, critical=True))
        session.ledger.accepted.append(handle)
        await handle.wait()


async def get_stuck(session: Session) -> None:
    session.ledger.accepted.append(await session.manager.submit(Task(busy, args=(0.1,))))
    await session.manager.close(timeout=0.01)


CLOSINGS: list[Callable[[Session], Awaitable[None]]] = [
    leave,
    close,
    close_at_once,
    request,
    request_again,
    cancel,
    fail,
    fail_critically,
    get_stuck,
]
ERRORS = {fail: SoakError, fail_critically: ExceptionGroup}


async def run_session(totals: Totals, seed: str) -> None:
    """Enter a manager, put load on it, and close it in a random way."""
    closing = Random(seed).choice(CLOSINGS)
    totals.managers[closing.__name__] += 1
    session = Session(totals, seed, 0.01 if closing is get_stuck else CLEAN_UP)
    load = session.load(seed)
    threads = []
    expected = ERRORS.get(closing)
    caught: Exception | None = None
    async with anyio.create_task_group() as producers:
        with session.scope:
            try:
                async with session.manager:
                    threads.append(load.start_thread(0))
                    producers.start_soon(load.produce, 1)
                    await anyio.sleep(session.random.uniform(0, 0.15))
                    await closing(session)
            except (SoakError, ExceptionGroup) as error:
                caught = error
        load.stop()
    for thread in threads:
        await to_thread.run_sync(thread.join)
    if type(caught) is not (expected or type(None)):
        totals.fault(f"{closing.__name__} left with {caught!r}")
    await session.check_closed()
