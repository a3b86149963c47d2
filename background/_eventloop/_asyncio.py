"""The manager's backend on asyncio and uvloop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from inspect import CORO_CREATED, getcoroutinestate
from typing import Any, TypeVar

import anyio

from .backend import Backend

T = TypeVar("T")


class AsyncioBackend(Backend):
    library = "asyncio"
    cancelled = asyncio.CancelledError
    cancels_natively = True

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time

    def spawn(
        self,
        fn: Callable[[T], Coroutine[Any, Any, None]],
        subject: T,
        *,
        name: str,
        context: Context,
        on_lost: Callable[[T], None],
    ) -> object:
        # Without the loop's task factory, because an eager one would run the task right here.
        child = _Child(fn(subject), loop=self._loop, name=name, context=context)
        child.backend = self
        child.context = context
        child.on_lost = on_lost
        child.subject = subject
        return child

    def coroutine(self, task: Any) -> object:
        return task.get_coro()

    def post(self, fn: Callable[[], object], context: Context) -> None:
        self._loop.call_soon_threadsafe(fn, context=context)

    async def wake_on_signals(self) -> None:
        # A signal that arrives just before the loop begins to wait does not interrupt the wait, so
        # Python calls its handler late. uvloop, and asyncio on Windows, set a wakeup descriptor.
        reading, writing = socket.socketpair()
        with reading, writing:
            for end in (reading, writing):
                end.setblocking(False)
            if _replace(writing.fileno(), reading):
                return
            self._loop.add_reader(reading, reading.recv, 4096)
            try:
                await anyio.sleep_forever()
            finally:
                self._loop.remove_reader(reading)
                if not _replace(writing.fileno(), reading):
                    signal.set_wakeup_fd(-1)

    def current_task(self) -> object:
        return asyncio.current_task(self._loop)

    def is_current(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def is_cancelling(self) -> bool:
        task = asyncio.current_task()
        return super().is_cancelling() or (task is not None and task.cancelling() > 0)


class _Child(asyncio.Task[None]):
    """A task that calls `on_lost` if it is cancelled before its first step.

    A callback for every task would take a third of the time of a short task, so it is added when
    such a task is cancelled.
    """

    __slots__ = ("backend", "context", "on_lost", "subject")

    backend: Backend
    context: Context
    on_lost: Callable[[Any], None] | None
    subject: object

    def cancel(self, msg: Any | None = None) -> bool:
        coroutine: Any = self.get_coro()
        if getcoroutinestate(coroutine) == CORO_CREATED:
            self.add_done_callback(self._done, context=self.context)
        return super().cancel(msg)

    def _done(self, _: asyncio.Task[None]) -> None:
        on_lost, self.on_lost = self.on_lost, None
        if self.cancelled() and on_lost is not None:
            context = copy_context()
            self.backend.adopt(context)
            context.run(on_lost, self.subject)


def _replace(descriptor: int, reading: socket.socket) -> bool:
    """Set the wakeup descriptor for signals, unless a different one is set.

    The current descriptor can only be read by replacing it. Signals that arrive in between are
    forwarded to it.

    Args:
        descriptor: The new descriptor.
        reading: The socket that receives what is written to it.

    Returns:
        Whether a different descriptor was set and stays.
    """
    current = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    if current in (-1, descriptor):
        return False
    try:
        signal.set_wakeup_fd(current, warn_on_full_buffer=False)
    except (OSError, ValueError):  # it was closed
        return False
    with suppress(OSError):
        os.write(current, reading.recv(4096))
    return True
