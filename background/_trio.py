"""The manager's backend on trio."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any

import trio

from ._backend import Backend


class TrioBackend(Backend):
    library = "trio"
    cancelled = trio.Cancelled
    cancels_natively = False
    now = staticmethod(trio.current_time)

    def __init__(self) -> None:
        super().__init__()
        self._token = trio.lowlevel.current_trio_token()
        self._opened = trio.Event()
        self._closed = trio.Event()
        self._nursery: trio.Nursery

    async def open(self) -> None:
        trio.lowlevel.spawn_system_task(self._hold)
        with trio.CancelScope(shield=True):  # takes no longer than the task takes to start
            await self._opened.wait()

    async def _hold(self) -> None:
        async with trio.open_nursery() as self._nursery:
            self._opened.set()
            await self._closed.wait()

    def close(self) -> None:
        self._closed.set()

    def spawn(
        self,
        coroutine: Coroutine[Any, Any, None],
        *,
        name: str,
        context: Context,
        on_lost: Callable[[Any], None],
        subject: object,
    ) -> object:
        # Every task of trio's has its first step, so that none is lost.
        context.run(partial(self._nursery.start_soon, lambda: coroutine, name=name))
        return None  # the nursery keeps it

    def _call_soon(self, fn: Callable[[], object], context: Context) -> None:
        self._token.run_sync_soon(context.run, fn)

    async def wake_on_signals(self) -> None:
        pass  # trio sees to it

    def current_task(self) -> object:
        try:
            return trio.lowlevel.current_task()
        except RuntimeError:
            return None

    def is_running(self) -> bool:
        running = trio.lowlevel.in_trio_run()
        return running and trio.lowlevel.current_trio_token() is self._token
