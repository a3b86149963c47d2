"""The manager's backend on asyncio and uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any

from ._backend import Backend


class AsyncioBackend(Backend):
    library = "asyncio"
    cancelled = asyncio.CancelledError

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # The loop itself keeps weak references only.
        self._tasks: dict[asyncio.Task[None], Callable[[], None]] = {}

    async def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def spawn(
        self,
        coroutine: Coroutine[Any, Any, None],
        *,
        name: str,
        context: Context,
        on_lost: Callable[[], None],
    ) -> None:
        # Not by the loop's task factory: an eager one would run the task inside the submission.
        task = asyncio.Task(coroutine, loop=self._loop, name=name, context=context)
        self._tasks[task] = on_lost
        task.add_done_callback(self._done, context=context)

    def _done(self, task: asyncio.Task[None]) -> None:
        on_lost = self._tasks.pop(task)
        if task.cancelled():
            context = copy_context()
            self.adopt(context)
            context.run(on_lost)

    def _call_soon(self, fn: Callable[[], object], context: Context) -> None:
        self._loop.call_soon_threadsafe(fn, context=context)

    def now(self) -> float:
        return self._loop.time()

    def current_task(self) -> object:
        try:
            return asyncio.current_task()
        except RuntimeError:
            return None

    def is_running(self) -> bool:
        return self._loop.is_running()

    def _is_cancelling(self) -> bool:
        task = asyncio.current_task()
        return super()._is_cancelling() or (task is not None and task.cancelling() > 0)
