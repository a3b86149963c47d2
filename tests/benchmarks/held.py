"""Tasks that run outstanding until a block ends: running, delayed or queued."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
from anyio.lowlevel import checkpoint
from contenders import ANYIO, BARE, FULL, TASK_GROUP, bare, full, nothing

from background import Manager

DELAYED = "background, after(3600, …)"
QUEUED = "background, above the limit"
SLEEPING = "start_soon(sleep, 3600)"

Fill = Callable[[], Awaitable[None]]
#: Takes a number of tasks. Its block gets a function that submits them; they end with the block.
Holder = Callable[[int], AbstractAsyncContextManager[Fill]]


class Tasks:
    """Tasks that run until all of them are released."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._complete = anyio.Event()
        self._released = anyio.Event()

    async def run(self) -> None:
        self._expected -= 1
        if self._expected == 0:
            self._complete.set()
        await self._released.wait()

    async def wait_until_running(self) -> None:
        """Wait until all tasks run."""
        await self._complete.wait()

    def release(self) -> None:
        self._released.set()


@asynccontextmanager
async def in_anyio(tasks: int) -> AsyncIterator[Fill]:
    running = Tasks(tasks)

    async def fill() -> None:
        for _ in range(tasks):
            group.start_soon(running.run)
        await running.wait_until_running()

    async with anyio.create_task_group() as group:
        yield fill
        running.release()


@asynccontextmanager
async def in_task_group(tasks: int) -> AsyncIterator[Fill]:
    running = Tasks(tasks)

    async def fill() -> None:
        for _ in range(tasks):
            group.create_task(running.run())
        await running.wait_until_running()

    async with asyncio.TaskGroup() as group:
        yield fill
        running.release()


def in_manager(make: Callable[[], Manager]) -> Holder:
    @asynccontextmanager
    async def hold(tasks: int) -> AsyncIterator[Fill]:
        running = Tasks(tasks)

        async def fill() -> None:
            for _ in range(tasks):
                manager.run(running.run)
            await running.wait_until_running()

        async with make() as manager:
            yield fill
            running.release()

    return hold


@asynccontextmanager
async def delayed(tasks: int) -> AsyncIterator[Fill]:
    async def fill() -> None:
        for _ in range(tasks):
            manager.after(3600, nothing)

    async with Manager() as manager:
        yield fill


@asynccontextmanager
async def queued(tasks: int) -> AsyncIterator[Fill]:
    running = Tasks(1)

    async def fill() -> None:
        for _ in range(tasks):
            manager.run(nothing)

    async with Manager(limit=1) as manager:
        manager.run(running.run)
        await running.wait_until_running()
        yield fill
        running.release()


@asynccontextmanager
async def sleeping(tasks: int) -> AsyncIterator[Fill]:
    async def fill() -> None:
        for _ in range(tasks):
            group.start_soon(anyio.sleep, 3600)
        await checkpoint()

    async with anyio.create_task_group() as group:
        yield fill
        group.cancel_scope.cancel()


RUNNING: dict[str, Holder] = {
    FULL: in_manager(full),
    BARE: in_manager(bare),
    ANYIO: in_anyio,
    TASK_GROUP: in_task_group,
}
WAITING: dict[str, Holder] = {DELAYED: delayed, QUEUED: queued, SLEEPING: sleeping}
