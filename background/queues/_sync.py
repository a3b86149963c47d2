"""Calls of a queue from sync code.

A queue that is open in an event loop is called there. Otherwise it is opened in a private event
loop: one for each queue and process, which the first call starts in a daemon thread.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar
from weakref import WeakSet

import anyio

from .._eventloop.running import current_backend
from .._support.log import log
from ._errors import BrokerUnavailableError, QueueError
from ._queue_loop import LateError, QueueLeftError, QueueLoop, forked, result_until

T = TypeVar("T")

_CLOSING = 10.0  # seconds that closing a private event loop may take

#: Held to change where a queue is open, and during a fork. Signal handlers may enqueue, too.
_lock = threading.RLock()
_all: WeakSet[SyncCalls] = WeakSet()
_is_registered = False


class Home:
    """The event loop in which a queue is open, from the beginning of its opening to its end.

    Args:
        thread: The thread of the event loop; `None` if it has not begun.
    """

    def __init__(self, thread: int | None) -> None:
        self.thread = thread
        self.process = os.getpid()
        self.has_ended = False  # besides `closed`, whose lock a fork may leave locked
        self.opened: Future[QueueLoop] = Future()
        self.closed: Future[None] = Future()

    @property
    def is_inherited(self) -> bool:
        """Whether this process was forked from the one that opened the queue."""
        return self.process != os.getpid()

    def check(self) -> None:
        """Check that the queue was opened by this process.

        Raises:
            QueueError: It was opened before a fork.
        """
        if self.is_inherited:
            raise forked()

    def end(self, error: BaseException | None = None) -> None:
        """Report that the queue is closed, or could not be opened because of an error."""
        self.has_ended = True
        self.closed.set_result(None)
        if not self.opened.done():
            # Waiters get an error of the broker, and try again after a cancellation.
            self.opened.set_exception(error if isinstance(error, Exception) else QueueLeftError())


class _PrivateHome(Home):
    """A private event loop, in a daemon thread.

    Args:
        connect: Opens the queue.
        disconnect: Closes it.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[QueueLoop]],
        disconnect: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(None)
        self._connect = connect
        self._disconnect = disconnect
        self._thread = threading.Thread(target=self._run, name="background queue", daemon=True)
        self._begun = threading.Event()
        self._cancel: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Start the thread."""
        try:
            self._thread.start()
        except RuntimeError as error:  # there are too many threads
            self._begun.set()
            self.end(error)

    def _run(self) -> None:
        self.thread = threading.get_ident()
        error: BaseException | None = None
        try:
            anyio.run(self._serve, backend="asyncio")
        except BaseException as raised:
            error = raised
            if self.opened.done():
                log(logging.ERROR, "the queue of sync code could not be closed", error=error)
        finally:
            self._begun.set()
            self.end(error)

    async def _serve(self) -> None:
        backend = current_backend()
        with anyio.CancelScope() as scope:
            self._cancel = lambda: backend.call_soon(scope.cancel, copy_context())
            self._begun.set()
            self.opened.set_result(await self._connect())
            await anyio.sleep_forever()
        if self.opened.done():
            await self._disconnect()

    def close(self) -> None:
        """Close the queue and end the event loop.

        Raises:
            QueueError: It takes too long, or the caller runs in the private event loop itself.
        """
        if self.thread == threading.get_ident():
            raise QueueError("close_sync() would wait for its own end: call it in another thread")
        self._begun.wait()
        with suppress(RuntimeError):  # the event loop, or the thread, has ended or never begun
            self._cancel()
            self._thread.join(_CLOSING)
        if not self.has_ended:
            raise QueueError(f"the queue could not be closed within {_CLOSING:g} s")


class SyncCalls:
    """Runs calls of sync code in the event loop in which a queue is open, or in a private one.

    Args:
        connect: Opens the queue in the running event loop, which is a private one.
        disconnect: Closes it.
        timeout: Seconds that a call may take.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[QueueLoop]],
        disconnect: Callable[[], Awaitable[None]],
        timeout: float,
    ) -> None:
        self._connect = connect
        self._disconnect = disconnect
        self._timeout = timeout
        self._home: Home | None = None
        with _lock:
            _all.add(self)

    def run(self, fn: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function where the queue is open, and wait for it.

        Raises:
            QueueError: The caller would block the event loop in which the queue is open.
            BrokerUnavailableError: The broker can't be reached, or does not answer in time.
            Exception: The function's error.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            home = self._current() or self._open()
            home.check()
            if home.thread == threading.get_ident():
                raise QueueError(
                    "enqueue_sync() would block the event loop in which the queue is open: write "
                    "`await enqueue(…)` there"
                )
            try:
                return self._run(home, fn, deadline)
            except QueueLeftError:
                continue
            except BrokerUnavailableError as error:  # its message says all
                raise error.with_traceback(None) from error.__cause__

    def _run(self, home: Home, fn: Callable[[], Coroutine[Any, Any, T]], deadline: float) -> T:
        what = "the queue could not be opened"
        try:
            loop = result_until(deadline, home.opened)
            what = "the job may or may not be enqueued"
            try:
                return loop.run(fn, deadline)
            except QueueLeftError:
                what = "the queue could not be closed and opened again"
                result_until(deadline, home.closed)
                raise
        except LateError:
            raise BrokerUnavailableError(f"no answer within {self._timeout:g} s: {what}") from None

    def _current(self) -> Home | None:
        home = self._home
        return None if home is None or home.has_ended else home

    def _open(self) -> Home:
        with _lock:
            _register()
            home = self._current()
            if home is None:
                home = self._home = private = _PrivateHome(self._connect, self._disconnect)
                private.start()
            return home

    async def enter(self) -> Home:
        """Claim the queue for the running event loop; close it in a private one.

        Returns:
            The place where the queue will be open. The caller resolves its `opened`, and calls its
            `end()`.

        Raises:
            QueueError: The queue is open in an event loop.
        """
        home = Home(threading.get_ident())
        with _lock:
            before = self._current()
            if before is not None:
                before.check()
            if before is not None and not isinstance(before, _PrivateHome):
                raise QueueError("the queue is open already: make one JobQueue for each event loop")
            self._home = home
        if before is not None:
            try:
                # With a limiter of its own, because threads of the others may wait for this.
                await anyio.to_thread.run_sync(before.close, limiter=anyio.CapacityLimiter(1))
            except BaseException as error:
                with _lock:
                    self._home = before
                home.end(error)
                raise
        return home

    def close(self) -> None:
        """Close the queue in its private event loop, if there is one.

        Raises:
            QueueError: It takes too long, or the caller runs in the private event loop itself.
        """
        home = self._current()
        if isinstance(home, _PrivateHome):
            home.close()


def _register() -> None:
    """Close private event loops before this process forks or ends."""
    global _is_registered
    if _is_registered:
        return
    _is_registered = True
    atexit.register(_at_exit)
    # Before the end of the main thread, if possible: without it, threads of brokers need up to a
    # second to notice that end, and multiprocessing's children don't call functions of `atexit`.
    register: Callable[..., None] = getattr(threading, "_register_atexit", _ignore)
    with suppress(RuntimeError):  # the interpreter ends already
        register(_at_exit)
    register = getattr(os, "register_at_fork", _ignore)  # not on Windows
    register(before=_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release)


def _ignore(*args: object, **kwargs: object) -> None:
    """Do nothing, on platforms without a function."""


def _before_fork() -> None:
    """Leave no thread and no connection to the child, and let none begin during the fork."""
    _lock.acquire()
    _close(list(_all))


def _at_exit() -> None:
    with _lock:
        queues = list(_all)
    _close(queues)


def _close(queues: list[SyncCalls]) -> None:
    for calls in queues:
        with suppress(Exception):
            calls.close()
