"""Background coroutines of a manager that are not tasks of the user."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

import anyio

from .._support.log import log
from .backend import Backend

Fn = Callable[[], Coroutine[Any, Any, None]]
OnLost = Callable[[], None]


class Services:
    """Runs coroutines in the background until they return or `stop()` cancels them."""

    def __init__(self, backend: Backend, context: Context) -> None:
        self._backend = backend
        self._context = context
        self._running: dict[_Service, object] = {}
        self._all_ended = anyio.Event()
        self._stopping = False
        self._calling = 0  # services that call `stop()`

    def start(self, name: str, fn: Fn, on_lost: OnLost | None = None) -> None:
        """Start a coroutine function.

        Args:
            name: The name of its native task.
            fn: The function, which must not raise.
            on_lost: Called if the event loop cancels it, even before its first step.
        """
        service = _Service(fn, on_lost)
        self._running[service] = self._backend.spawn(
            self._serve,
            service,
            name=name,
            context=self._context.copy(),
            on_lost=self._lost,
        )

    async def _serve(self, service: _Service) -> None:
        # Created here, because anyio may not detect the event loop in a plain callback.
        service.scope = anyio.CancelScope()
        if self._stopping:
            service.scope.cancel()
        has_returned = False
        try:
            with service.scope:
                await service.fn()
                has_returned = True
        except self._backend.cancelled:  # safe to suppress: nothing is awaited after this
            service.lost()
        except RuntimeError as error:
            # A hook that leaves its own scope open is reported; this scope then can't be left.
            if not (has_returned or service.scope.cancel_called):
                log(logging.ERROR, "a service of the manager failed", error=error)
        finally:
            self._ended(service)

    def _lost(self, service: _Service) -> None:
        service.lost()
        self._ended(service)

    def _ended(self, service: _Service) -> None:
        del self._running[service]
        if self._stopping and len(self._running) <= self._calling:
            self._all_ended.set()

    async def stop(self, timeout: float) -> None:
        """Cancel all services but the calling one; wait up to `timeout` seconds for their end."""
        self._stopping = True
        me = self._backend.current_task()
        others = [service for service, task in self._running.items() if task is not me]
        self._calling = len(self._running) - len(others)
        for service in others:
            if service.scope is not None:
                service.scope.cancel()
        if others:
            with anyio.move_on_after(timeout):
                await self._all_ended.wait()


class _Service:
    """One coroutine, and the cancel scope that it enters in its first step."""

    def __init__(self, fn: Fn, on_lost: OnLost | None) -> None:
        self.fn = fn
        self.scope: anyio.CancelScope | None = None
        self._on_lost = on_lost

    def lost(self) -> None:
        if self._on_lost is not None:
            self._on_lost()
