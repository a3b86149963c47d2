"""Contenders: this library and its peers, which run a function that does nothing.

A contender takes a number of tasks. It returns the seconds from the submission of the first task to
the end of the last, including the exit of its block. `…_at_once` submits all tasks and waits for
all; `…_in_turn` waits for a task before it submits the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import aiojobs
import anyio
import trio
from measure import clock
from tenacity import retry, stop_after_attempt

from background import Manager, Observer
from background.observers import StallObserver

ANYIO = "anyio start_soon"
TASK_GROUP = "asyncio.TaskGroup"
TENACITY = "start_soon + tenacity"
AIOJOBS = "aiojobs, await job.wait()"
AIOJOBS_CLOSED = "aiojobs, wait_and_close()"
NURSERY = "trio nursery start_soon"
BARE = "background, bare"
FULL = "background, full"

Contender = Callable[[int], Awaitable[float]]


async def nothing() -> None:
    """The function of every task."""


class EveryHook(Observer):
    """Implements every hook with a function that does nothing."""


for hook in (name for name in vars(Observer) if name.startswith("on_")):
    setattr(EveryHook, hook, lambda self, event: None)


def bare() -> Manager:
    """Return a manager with default options."""
    return Manager()


def full() -> Manager:
    """Return a manager with retries, a stall observer, and an observer with every hook."""
    return Manager(retry=3, observers=[StallObserver(after=60), EveryHook()])


async def started_at_once(fn: Callable[[], Awaitable[None]], tasks: int) -> float:
    async with anyio.create_task_group() as group:
        began = clock()
        for _ in range(tasks):
            group.start_soon(fn)
    return clock() - began


async def started_in_turn(fn: Callable[[], Awaitable[None]], tasks: int) -> float:
    async def run_and_set(ended: anyio.Event) -> None:
        await fn()
        ended.set()

    async with anyio.create_task_group() as group:
        began = clock()
        for _ in range(tasks):
            ended = anyio.Event()
            group.start_soon(run_and_set, ended)
            await ended.wait()
    return clock() - began


async def task_group_at_once(tasks: int) -> float:
    async with asyncio.TaskGroup() as group:
        began = clock()
        for _ in range(tasks):
            group.create_task(nothing())
    return clock() - began


async def task_group_in_turn(tasks: int) -> float:
    async with asyncio.TaskGroup() as group:
        began = clock()
        for _ in range(tasks):
            await group.create_task(nothing())
    return clock() - began


# The fastest way in tenacity's documentation that concurrent tasks can share: a policy for every
# call, and `async for attempt in AsyncRetrying(…)`, are slower.
retried = retry(stop=stop_after_attempt(3))(nothing)


async def aiojobs_at_once(tasks: int) -> float:
    async with aiojobs.Scheduler(limit=None) as scheduler:
        began = clock()
        jobs = [await scheduler.spawn(nothing()) for _ in range(tasks)]
        for job in jobs:
            await job.wait()
    return clock() - began


async def aiojobs_closed(tasks: int) -> float:
    async with aiojobs.Scheduler(limit=None) as scheduler:
        began = clock()
        for _ in range(tasks):
            await scheduler.spawn(nothing())
    return clock() - began


async def aiojobs_in_turn(tasks: int) -> float:
    async with aiojobs.Scheduler(limit=None) as scheduler:
        began = clock()
        for _ in range(tasks):
            job = await scheduler.spawn(nothing())
            await job.wait()
    return clock() - began


def manager_at_once(make: Callable[[], Manager]) -> Contender:
    async def measure(tasks: int) -> float:
        async with make() as manager:
            began = clock()
            for _ in range(tasks):
                manager.run(nothing)
        return clock() - began

    return measure


def manager_in_turn(make: Callable[[], Manager]) -> Contender:
    async def measure(tasks: int) -> float:
        async with make() as manager:
            began = clock()
            for _ in range(tasks):
                await manager.run(nothing)
        return clock() - began

    return measure


async def trio_at_once(tasks: int) -> float:
    async with trio.open_nursery() as nursery:
        began = clock()
        for _ in range(tasks):
            nursery.start_soon(nothing)
    return clock() - began


async def trio_in_turn(tasks: int) -> float:
    async def run_and_set(ended: trio.Event) -> None:
        await nothing()
        ended.set()

    async with trio.open_nursery() as nursery:
        began = clock()
        for _ in range(tasks):
            ended = trio.Event()
            nursery.start_soon(run_and_set, ended)
            await ended.wait()
    return clock() - began


_AT_ONCE: dict[str, Contender] = {
    FULL: manager_at_once(full),
    BARE: manager_at_once(bare),
    ANYIO: partial(started_at_once, nothing),
    TENACITY: partial(started_at_once, retried),
}
_IN_TURN: dict[str, Contender] = {
    FULL: manager_in_turn(full),
    BARE: manager_in_turn(bare),
    ANYIO: partial(started_in_turn, nothing),
    TENACITY: partial(started_in_turn, retried),
}


def at_once(loop: str) -> dict[str, Contender]:
    """Return the contenders of an event loop that submit all tasks first."""
    if loop == "trio":
        return {**_AT_ONCE, NURSERY: trio_at_once}
    return {
        **_AT_ONCE,
        AIOJOBS: aiojobs_at_once,
        AIOJOBS_CLOSED: aiojobs_closed,
        TASK_GROUP: task_group_at_once,
    }


def in_turn(loop: str) -> dict[str, Contender]:
    """Return the contenders of an event loop that wait for one task at a time."""
    if loop == "trio":
        return {**_IN_TURN, NURSERY: trio_in_turn}
    return {**_IN_TURN, AIOJOBS: aiojobs_in_turn, TASK_GROUP: task_group_in_turn}
