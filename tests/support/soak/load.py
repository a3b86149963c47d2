"""The load of the soak test: tasks of all kinds, from the event loop and from threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import anyio
from anyio.lowlevel import checkpoint
from tenacity import AsyncRetrying, RetryError, retry_if_result, stop_after_attempt, wait_random

from background import (
    BackgroundError,
    DuplicateTaskError,
    Manager,
    ManagerClosedError,
    ManagerFullError,
    ManagerState,
    Schedule,
    Task,
    TaskCancelledError,
    TaskExpiredError,
    TaskHandle,
    TaskKind,
    cron,
    every,
)
from support.soak.ledger import Ledger, Totals
from support.soak.observers import HookCalls, SoakError, TaskObserver

SHARED = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_random(0, 0.01))
PICKY = AsyncRetrying(stop=stop_after_attempt(2), retry=retry_if_result(lambda value: not value))


# Functions of tasks


async def quick() -> int:
    await checkpoint()
    return 1


async def broken() -> None:
    await checkpoint()
    raise SoakError("expected")


async def nap(seconds: float) -> None:
    await anyio.sleep(seconds)


async def cleans_up(seconds: float) -> None:
    try:
        await anyio.sleep(seconds)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(seconds / 10)


def busy(seconds: float) -> None:
    time.sleep(seconds)


def broken_in_thread() -> None:
    raise SoakError("expected")


def polls_for_cancellation() -> None:
    for _ in range(10):
        time.sleep(0.002)
        anyio.from_thread.check_cancelled()


class Flaky:
    """Fails its first `failures` calls."""

    def __init__(self, failures: int) -> None:
        self._left = failures

    async def __call__(self) -> None:
        await checkpoint()
        self._left -= 1
        if self._left >= 0:
            raise SoakError("expected")


class Load:
    """Random calls of one manager, until it has closed or `stop()` is called."""

    def __init__(
        self, manager: Manager, ledger: Ledger, totals: Totals, hook_calls: HookCalls, seed: str
    ) -> None:
        self._manager = manager
        self._ledger = ledger
        self._totals = totals
        self._seed = seed
        self._stopped = threading.Event()
        self._hook_calls = hook_calls
        self._shared_observer = TaskObserver(hook_calls)

    def stop(self) -> None:
        self._stopped.set()

    def start_thread(self, number: int) -> threading.Thread:
        thread = threading.Thread(target=self._drive, args=(Random(f"{self._seed}-{number}"),))
        thread.start()
        return thread

    def _drive(self, random: Random) -> None:
        while not self._stopped.is_set() and self._manager.state is not ManagerState.CLOSED:
            self._act(random)
            time.sleep(random.uniform(0, 0.002))

    async def produce(self, number: int) -> None:
        random = Random(f"{self._seed}-producer-{number}")
        while not self._stopped.is_set() and self._manager.state is not ManagerState.CLOSED:
            for _ in range(random.randrange(12)):
                self._act(random)
            with anyio.move_on_after(random.uniform(0, 0.02)):
                await self._await_randomly(random)
            await anyio.sleep(random.choice([0, 0, random.uniform(0, 0.004)]))

    async def _await_randomly(self, random: Random) -> None:
        roll = random.random()
        if roll < 0.5:
            await self._accept_later(self._manager.submit, self._task(random))
        elif roll < 0.6:
            await self._manager.wait()
        elif tasks := self._manager.tasks():
            handle = random.choice(tasks)
            with suppress(
                SoakError, TimeoutError, RetryError, TaskCancelledError, TaskExpiredError
            ):
                await (handle.wait() if roll < 0.8 else handle.result())

    def _accept(self, submit: Callable[..., TaskHandle[Any]], *args: Any) -> None:
        try:
            self._ledger.accepted.append(submit(*args))
        except (ManagerFullError, ManagerClosedError, DuplicateTaskError) as error:
            self._totals.refused[type(error).__name__] += 1

    async def _accept_later(self, submit: Callable[..., Any], task: Task[Any]) -> None:
        try:
            self._ledger.accepted.append(await submit(task))
        except (ManagerFullError, ManagerClosedError, DuplicateTaskError) as error:
            self._totals.refused[type(error).__name__] += 1

    def _act(self, random: Random) -> None:
        manager, roll = self._manager, random.random()
        if roll < 0.25:
            self._accept(manager.run, random.choice([quick, broken, Flaky(1)]))
        elif roll < 0.3:
            self._accept(manager.after, random.uniform(0, 0.05), quick)
        elif roll < 0.75:
            self._accept(manager.run_task, self._task(random))
        elif roll < 0.8:
            self._accept(manager.run_task, self._loop(random))
        elif roll < 0.85:
            self._accept(manager.run, self._nest, random.randrange(2**32))
        elif roll < 0.86:
            manager.health()
        elif tasks := manager.tasks(random.choice([None, *TaskKind])):
            handle = random.choice(tasks)
            if manager.get(handle.id) not in (handle, None):
                self._totals.fault(f"get() does not return {handle}")
            with suppress(BackgroundError):  # the manager may have closed
                manager.cancel(handle.id, reason="at random")

    def _nest(self, seed: int) -> None:
        """Submit and cancel tasks in a task's thread."""
        for _ in range(3):
            self._act(Random(seed))

    def _task(self, random: Random) -> Task[Any]:
        short = random.uniform(0, 0.02)
        fn, args = random.choice(
            [
                (quick, ()),
                (broken, ()),
                (nap, (short,)),
                (cleans_up, (short,)),
                (nap, (3600,)),
                (busy, (short / 4,)),
                (broken_in_thread, ()),
                (polls_for_cancellation, ()),
                (Flaky(2), ()),
            ]
        )
        observers = random.choice(
            [(), (), (TaskObserver(self._hook_calls),), (self._shared_observer,)]
        )
        ids = [handle.id for handle in self._manager.tasks()[:1]] or ["first"]
        return Task(
            fn,
            args=args,
            delay=random.choice([0, 0, 0, random.uniform(0, 0.1)]),
            timeout=random.choice([None, short]) or None,
            lifespan=0.2 if args == (3600,) else random.choice([None, None, 0.15]),
            retry=random.choice([None, None, SHARED, PICKY]),
            id=random.choice([None] * 50 + ids),
            meta={"observers": len(observers), "payload": bytes(100)},
            observers=observers,
        )

    def _loop(self, random: Random) -> Task[Any]:
        schedules: list[Schedule | None] = [
            None,
            every(random.uniform(0.001, 0.01)),
            every(0.005, jitter=0.004),
            cron("* * * * * *"),
        ]
        return Task(
            random.choice([quick, broken, broken_in_thread, Flaky(3)]),
            kind=TaskKind.LOOP,
            schedule=random.choice(schedules),
            lifespan=random.choice([None, 0.1]),
            max_failures=random.choice([None, 1, 3]),
            retry=random.choice([None, SHARED]),
            stall_after=random.choice([None, 0.001]),
        )
