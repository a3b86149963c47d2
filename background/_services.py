"""The manager's own coroutines, which run beside the tasks."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

import anyio

from ._backend import Backend


class Services:
    """Starts coroutines in the background, and cancels what is left of them in the end."""

    def __init__(self, backend: Backend, context: Context) -> None:
        self._backend = backend
        self._context = context
        self._scopes: set[anyio.CancelScope] = set()
        self._left = 0
        self._all_ended = anyio.Event()
        self._stopping = False

    def start(
        self,
        name: str,
        fn: Callable[[], Coroutine[Any, Any, None]],
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        """Run `fn`, which must not raise, until it returns or `stop()` cancels it.

        `on_lost` is called if the event loop cancelled it, be it before its first step.
        """
        self._left += 1
        self._backend.spawn(
            self._serve(fn, on_lost),
            name=name,
            context=self._context.copy(),
            on_lost=self._lost,
            subject=on_lost,
        )

    async def _serve(
        self, fn: Callable[[], Coroutine[Any, Any, None]], on_lost: Callable[[], None] | None
    ) -> None:
        # Made here, as in a plain callback of the event loop anyio may not know which one it is in.
        scope = anyio.CancelScope()
        self._scopes.add(scope)
        if self._stopping:
            scope.cancel()
        try:
            with scope:
                await fn()
        except self._backend.cancelled:  # nothing is awaited after this
            if on_lost is not None:
                on_lost()
        finally:
            self._scopes.discard(scope)
            self._ended()

    def _lost(self, on_lost: Callable[[], None] | None) -> None:
        if on_lost is not None:
            on_lost()
        self._ended()

    def _ended(self) -> None:
        self._left -= 1
        if self._stopping and not self._left:
            self._all_ended.set()

    async def stop(self, timeout: float) -> None:
        """Cancel every service and wait for their ends, for at most `timeout` seconds."""
        self._stopping = True
        for scope in list(self._scopes):
            scope.cancel()
        if self._left:
            with anyio.move_on_after(timeout):
                await self._all_ended.wait()
