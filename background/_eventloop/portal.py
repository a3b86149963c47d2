"""Calls into a manager's event loop from other threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from threading import Lock, get_ident
from typing import Any, TypeVar

from .._errors import ManagerClosedError, ManagerMisuseError
from .._support import fork
from .backend import Backend

R = TypeVar("R")


class Portal:
    """Calls functions in one event loop from any thread, until it is closed."""

    def __init__(self, backend: Backend) -> None:
        self.is_inherited = False  # whether this process was forked from that of the event loop
        self._backend = backend
        self._thread: int | None = get_ident()
        self._lock = Lock()
        self._pending: set[Future[Any]] = set()
        self._closed = False
        fork.call_in_child(self._close_in_child)

    def _close_in_child(self) -> None:
        self.is_inherited = True
        self._thread = None

    @property
    def in_loop_thread(self) -> bool:
        """Whether the caller runs in the event loop's own thread."""
        return get_ident() == self._thread

    @property
    def in_loop(self) -> bool:
        """Whether the caller runs in the event loop."""
        return self.in_loop_thread and self._backend.is_current()

    @property
    def in_loop_task(self) -> bool:
        """Whether the caller is a task of the event loop, which can call functions directly."""
        return get_ident() == self._thread and self._backend.current_task() is not None

    def require_loop(self, method: str) -> None:
        """Check that the caller runs in the event loop.

        Args:
            method: The name of the caller's method, for the message.

        Raises:
            ManagerMisuseError: The caller runs in another event loop, in another thread, or in a
                forked process.
        """
        if not self.in_loop:
            self.require_same_process()
            raise ManagerMisuseError(
                f"{method}() must be awaited in the event loop that entered the manager; from "
                "other threads use run(), cancel() and request_shutdown()"
            )

    def require_same_process(self) -> None:
        """Check that this process was not forked from that of the event loop.

        Raises:
            ManagerMisuseError: It was.
        """
        if self.is_inherited:
            raise ManagerMisuseError(
                "the manager was entered in another process, before a fork, and its event loop "
                "does not run in this one: make a manager here, or start the process with the "
                '"spawn" method of multiprocessing'
            )

    def call(self, fn: Callable[[], R]) -> R:
        """Call `fn` in the event loop, with the caller's context variables, and wait for it.

        Args:
            fn: The function.

        Returns:
            The function's result.

        Raises:
            ManagerClosedError: The portal was closed before the call, or the event loop has ended.
            ManagerMisuseError: This process was forked from that of the event loop.
            Exception: The function's error.
        """
        self.require_same_process()  # first, because a thread of the parent may hold the lock
        if self.in_loop_thread:
            if not self._backend.is_current():
                raise ManagerClosedError("the manager's event loop has ended")
            return fn() if self._backend.current_task() else self._call_outside_of_tasks(fn)
        future: Future[R] = Future()
        context = copy_context()
        answer = partial(self._answer, future, fn)
        with self._lock:
            if self._closed:
                raise ManagerClosedError("the manager has closed")
            self._pending.add(future)
        try:
            self._backend.call_soon(answer, context)
            return future.result()
        except RuntimeError as error:
            if future.done():
                raise
            raise ManagerClosedError("the manager's event loop has ended") from error
        finally:
            with self._lock:
                self._pending.discard(future)

    def _call_outside_of_tasks(self, fn: Callable[[], R]) -> R:
        context = copy_context()
        self._backend.adopt(context)
        return context.run(fn)

    def _answer(self, future: Future[R], fn: Callable[[], R]) -> None:
        with self._lock:
            if future not in self._pending:
                return
            self._pending.remove(future)
        try:
            future.set_result(fn())
        except BaseException as error:
            future.set_exception(error)

    def close(self) -> None:
        """Refuse later calls, and fail the pending ones."""
        with self._lock:
            self._closed = True
            pending, self._pending = self._pending, set()
        for future in pending:
            future.set_exception(ManagerClosedError("the manager has closed"))
