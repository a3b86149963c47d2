"""The manager's backend on trio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any, ParamSpec, TypeVar

import trio

from .backend import Backend
from .interruption import unprotected

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class TrioBackend(Backend):
    library = "trio"
    cancelled = trio.Cancelled
    cancels_natively = False
    now = staticmethod(trio.current_time)

    def __init__(self) -> None:
        super().__init__()
        self._token = trio.lowlevel.current_trio_token()
        while unprotected:
            trio.lowlevel.enable_ki_protection(unprotected.pop())

    def spawn(
        self,
        fn: Callable[[T], Coroutine[Any, Any, None]],
        subject: T,
        *,
        name: str,
        context: Context,
        on_lost: Callable[[T], None],
    ) -> object:
        # Every trio task reaches its first step, so `on_lost` is not needed. A system task is
        # protected from KeyboardInterrupt.
        return trio.lowlevel.spawn_system_task(fn, subject, name=name, context=context)

    def coroutine(self, task: Any) -> object:
        return task.coro

    def interruptible(self, fn: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        return partial(_interruptible, fn)

    def post(self, fn: Callable[[], object], context: Context) -> None:
        self._token.run_sync_soon(context.run, fn)

    async def wake_on_signals(self) -> None:
        pass  # trio sets a wakeup descriptor

    def current_task(self) -> object:
        try:
            return trio.lowlevel.current_task()
        except RuntimeError:
            return None

    def is_current(self) -> bool:
        running = trio.lowlevel.in_trio_run()
        return running and trio.lowlevel.current_trio_token() is self._token


@trio.lowlevel.disable_ki_protection
async def _interruptible(fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
    return await fn(*args, **kwargs)
