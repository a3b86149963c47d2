"""Managers that soak.py lets come and go, each closed in its own way, in the middle of its work."""

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
from support.soak.observers import Broken, Lag, Slow, SoakError

PATIENCE = 20.0  # seconds for what takes much less
CLEAN_UP = 0.3  # seconds; some observers need more, and are given up

alive: weakref.WeakSet[Manager] = weakref.WeakSet()


class Life:
    """One manager with its observers and accounts."""

    def __init__(self, totals: Totals, seed: str, cancel_timeout: float = CLEAN_UP) -> None:
        self.random = random = Random(seed)
        self.totals = totals
        self.ledger = Ledger(totals)
        self.lag = Lag()
        self.broken = Broken(random)
        stalls = StallObserver(after=0.015)
        self.manager = Manager(
            observers=[self.ledger, Slow(random, self.lag), self.broken, stalls],
            limit=random.choice([None, 10]),
            capacity=random.choice([None, 20]),
            threads=random.choice([2, 40]),
            loop_backoff=random.choice([None, wait_random(0, 0.005)]),
            grace=random.choice([None, 0.05]),
            cancel_timeout=cancel_timeout,
        )
        self.scope = anyio.CancelScope()
        alive.add(self.manager)

    def load(self, seed: str) -> Load:
        return Load(self.manager, self.ledger, self.totals, self.lag, seed)

    async def see_off(self) -> None:
        """Check the accounts of a manager that was left, and what it says of itself."""
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
        told = self.ledger.additions + self.ledger.successes + self.ledger.visits
        for what, is_right in {
            "closing and closed are told once": self.ledger.closings == ["closing", "closed"],
            "it is closed": manager.state is ManagerState.CLOSED and not manager.count(),
            "errors of hooks are counted": health.hook_errors == self.broken.raised,
            "contexts are left": self.broken.entered == 0,
            "events that async hooks miss are counted": (
                bool(report.stuck) or self.lag.finished + health.events_dropped == told
            ),
        }.items():
            if not is_right:
                totals.fault(f"untrue: {what}; {health}, {told=} {self.lag.finished=}")


async def leave(life: Life) -> None:
    """Leave the block with all that is under way."""


async def close(life: Life) -> None:
    """Several ask, and a task among them."""
    life.ledger.accepted.append(await life.manager.submit(Task(life.manager.close)))
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(life.manager.close)


async def close_at_once(life: Life) -> None:
    await life.manager.close(timeout=life.random.choice([0, 0.01]))


async def request(life: Life) -> None:
    """Ask from a thread, and leave after a while."""
    await to_thread.run_sync(life.manager.request_shutdown)
    await life.manager.shutdown_requested()
    await life.manager.stop_loops()
    await anyio.sleep(life.random.uniform(0, 0.02))


async def request_again(life: Life) -> None:
    """Ask a second time, which cancels."""
    for _ in range(life.random.choice([2, 3])):
        life.manager.request_shutdown()
    await anyio.sleep(life.random.uniform(0, 0.02))


async def cancel(life: Life) -> None:
    life.scope.cancel()
    await checkpoint()


async def fail(life: Life) -> None:
    raise SoakError("the body's own")


async def fail_critically(life: Life) -> None:
    while True:  # the load may cancel it before it fails
        handle = await life.manager.submit(Task(broken, critical=True))
        life.ledger.accepted.append(handle)
        await handle.wait()


async def get_stuck(life: Life) -> None:
    life.ledger.accepted.append(await life.manager.submit(Task(busy, args=(0.1,))))
    await life.manager.close(timeout=0.01)


WAYS: list[Callable[[Life], Awaitable[None]]] = [
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


async def live(totals: Totals, seed: str) -> None:
    """Enter a manager, put load on it, and leave it in a random way."""
    way = Random(seed).choice(WAYS)
    totals.managers[way.__name__] += 1
    life = Life(totals, seed, 0.01 if way is get_stuck else CLEAN_UP)
    load = life.load(seed)
    threads = []
    expected = ERRORS.get(way)
    caught: Exception | None = None
    async with anyio.create_task_group() as producers:
        with life.scope:
            try:
                async with life.manager:
                    threads.append(load.start_thread(0))
                    producers.start_soon(load.produce, 1)
                    await anyio.sleep(life.random.uniform(0, 0.15))
                    await way(life)
            except (SoakError, ExceptionGroup) as error:
                caught = error
        load.stop()
    for thread in threads:
        await to_thread.run_sync(thread.join)
    if type(caught) is not (expected or type(None)):
        totals.fault(f"{way.__name__} left with {caught!r}")
    await life.see_off()
