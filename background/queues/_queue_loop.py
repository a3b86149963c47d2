"""The event loop in which a queue is open."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from os import getpid
from threading import TIMEOUT_MAX, RLock
from typing import Any, Generic, TypeVar

import anyio

from .._eventloop.interruption import ki_protected
from .._eventloop.running import current_backend
from ._errors import BrokerUnavailableError, QueueError

T = TypeVar("T")


class QueueLeftError(Exception):
    """The queue was left before the call began."""


class LateError(Exception):
    """The awaited result did not come in time."""


def result_until(deadline: float, future: Future[T]) -> T:
    """Wait for a result.

    Args:
        deadline: The latest time, on the monotonic clock.
        future: The result.

    Raises:
        LateError: It did not come in time.
        Exception: The error that came instead.
    """
    try:
        return future.result(min(max(0.0, deadline - time.monotonic()), TIMEOUT_MAX))
    except TimeoutError:
        if future.done():
            raise
        raise LateError from None


@ki_protected
class QueueLoop:
    """The event loop in which a queue is open: checks callers, and runs calls of sync code.

    Made in that event loop.

    Args:
        is_private: Whether it exists for sync code only.
    """

    def __init__(self, *, is_private: bool) -> None:
        self._is_private = is_private
        self._backend = current_backend()
        self._process = getpid()
        self._lock = RLock()  # a signal handler may enqueue
        self._calls: set[_SyncCall[Any]] = set()
        self._idle = self._backend.event()  # set when closed, and without calls
        self._is_closed = False

    def check(self) -> None:
        """Check that the caller runs in this event loop.

        Raises:
            QueueError: The caller runs in another event loop, thread or process.
        """
        # A child that a task of trio has forked still seems to run in the event loop.
        if self._backend.is_current() and self._process == getpid():
            return
        if self._is_private:
            raise not_open()
        if self._process != getpid():
            raise forked()
        raise QueueError(
            "the queue is open in another event loop or thread: call enqueue_sync() here, or make "
            "one JobQueue for each event loop"
        )

    def run(self, fn: Callable[[], Coroutine[Any, Any, T]], deadline: float) -> T:
        """Run a coroutine function in this event loop, with the caller's context variables.

        Args:
            fn: The function.
            deadline: The time on the monotonic clock at which it is cancelled.

        Returns:
            The function's result.

        Raises:
            QueueLeftError: The queue was left before.
            LateError: The function did not return in time.
            QueueError: The event loop has ended.
            Exception: The function's error.
        """
        call = _SyncCall(fn)
        try:
            self._submit(call)
            return result_until(deadline, call.answer)
        except BaseException:  # also KeyboardInterrupt at any line, and errors of signal handlers
            if not call.answer.done():
                with suppress(RuntimeError):  # the event loop has ended
                    self._backend.call_soon(partial(self._abandon, call), copy_context())
            raise

    def _submit(self, call: _SyncCall[Any]) -> None:
        with self._lock:
            if self._is_closed:
                raise QueueLeftError
            self._calls.add(call)
        context = copy_context()
        self._backend.adopt(context)
        try:
            self._backend.call_soon(partial(self._start, call, context), copy_context())
        except RuntimeError:
            raise QueueError("the event loop in which the queue is open has ended") from None

    def _abandon(self, call: _SyncCall[Any]) -> None:
        call.cancel()
        if call.task is None:  # the caller was interrupted before it could be started
            self._ended(call)

    def _start(self, call: _SyncCall[Any], context: Context) -> None:
        call.task = self._backend.spawn(
            self._serve, call, name="a call of sync code", context=context, on_lost=self._lost
        )

    async def _serve(self, call: _SyncCall[Any]) -> None:
        try:
            await call.run()
        except self._backend.cancelled:  # safe to suppress: nothing is awaited after this
            self._lost(call)
        else:
            self._ended(call)

    def _lost(self, call: _SyncCall[Any]) -> None:
        call.fail(interrupted())
        self._ended(call)

    def _ended(self, call: _SyncCall[Any]) -> None:
        self._calls.discard(call)
        if self._is_closed and not self._calls:
            self._idle.set()

    async def close(self, timeout: float) -> None:
        """Refuse further calls, and wait for the running ones; it can be called again.

        Args:
            timeout: Seconds after which running calls are cancelled.
        """
        with self._lock:
            self._is_closed = True
        if self._calls:
            with anyio.move_on_after(timeout):
                await self._idle.wait()
        for call in list(self._calls):
            call.fail(interrupted())
            call.cancel()


class _SyncCall(Generic[T]):
    """A call of sync code, and its answer."""

    def __init__(self, fn: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self.answer: Future[T] = Future()
        self.task: object = None  # referenced, so that it is not deleted
        self._fn = fn
        self._scope: anyio.CancelScope | None = None
        self._is_cancelled = False

    async def run(self) -> None:
        """Call the function; raise nothing but the cancellation of the event loop's task."""
        with anyio.CancelScope() as self._scope:
            if self._is_cancelled:
                return
            try:
                value = await self._fn()
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # also the error of a hook that must end the program
                self.fail(error)
            else:
                if not self.answer.done():
                    self.answer.set_result(value)

    def cancel(self) -> None:
        """Cancel the call, in its event loop."""
        self._is_cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    def fail(self, error: BaseException) -> None:
        """Make the caller raise an error, unless there is an answer."""
        if not self.answer.done():
            self.answer.set_exception(error)


def not_open() -> QueueError:
    """Return the error of a call outside of the queue's block."""
    return QueueError(
        "the queue is not open: enter it with `async with`, await open(), or call enqueue_sync(); "
        "enter it before a manager whose tasks use it"
    )


def forked() -> QueueError:
    """Return the error of a call in a process that did not open the queue."""
    return QueueError(
        "the queue was opened by another process, before a fork, and its connections belong to "
        'that process: open it after the fork, or start the process with the "spawn" method of '
        "multiprocessing"
    )


def interrupted() -> BrokerUnavailableError:
    """Return the error of a call that was cancelled with its event loop or queue."""
    return BrokerUnavailableError("the queue was closed; the job may or may not be enqueued")
