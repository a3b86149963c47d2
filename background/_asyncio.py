"""The manager's backend on asyncio and uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

from ._backend import Backend


class AsyncioBackend(Backend):
    cancelled = asyncio.CancelledError

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps weak references only
        self.now = self._loop.time  # type: ignore[method-assign]

    async def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def spawn(self, coroutine: Coroutine[Any, Any, None], *, name: str, context: Context) -> None:
        # Not by the loop's task factory: an eager one would run the task inside the submission.
        task = asyncio.Task(coroutine, loop=self._loop, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard, context=context)

    def call_soon(self, fn: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(fn)

    def now(self) -> float:
        return self._loop.time()

    def current_task(self) -> object:
        return asyncio.current_task()
