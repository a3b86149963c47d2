"""Shutdown signals, beside whatever handlers are there already."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from .._errors import ManagerMisuseError

if TYPE_CHECKING:
    from .._manager import Manager

_MOST_UNHEARD = 2  # signals that a blocked event loop may leave; the next one ends the process

Handler = Callable[[int, FrameType | None], Any] | int | None


class SignalHandlers:
    """One manager's handlers: each signal asks it to shut down, and goes on to who had it before.

    A signal that was left to its default ends the process after all, once the manager has closed;
    so does a SIGINT that the event loop itself would have answered.

    Raises `ManagerMisuseError` outside the main thread.
    """

    def __init__(
        self, signals: Collection[signal.Signals], manager: Manager, call_soon: Callable[..., None]
    ) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise ManagerMisuseError(
                "signals= works in the main thread only, as Python handles signals nowhere else; "
                "leave it out here and call request_shutdown() instead"
            )
        self._signals = signals
        self._manager = manager
        self._call_soon = call_soon
        self._previous: dict[int, Handler] = {}
        self._handler = self._handle  # one object, to be recognised
        self._context = copy_context()
        self._active = False
        self._deferred: signal.Signals | None = None
        self._unheard = 0  # signals that the event loop has not taken notice of yet

    def install(self) -> None:
        """Take over the signals."""
        self._active = True
        for each in self._signals:
            self._previous[each] = signal.getsignal(each)
            signal.signal(each, self._handler)

    def restore(self) -> None:
        """Give the signals back, but for those that somebody else has taken over since."""
        self._active = False
        for each, previous in self._previous.items():
            if signal.getsignal(each) is self._handler:
                signal.signal(each, signal.SIG_DFL if previous is None else previous)

    def finish(self, *, stuck: bool) -> bool:
        """Let a signal have its way that was put off until the manager had closed, if one was.

        With tasks that are `stuck` it ends the process at once: after a KeyboardInterrupt the event
        loop or the interpreter would wait for them.
        """
        if self._deferred is None:
            return False
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # pyright: ignore[reportUnnecessaryComparison]
                with suppress(Exception):  # it may have been closed, or nobody reads it any more
                    stream.flush()
        if stuck:
            signal.signal(self._deferred, signal.SIG_DFL)
        signal.raise_signal(self._deferred)
        return True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous[number]
        ends_process = previous is signal.SIG_DFL or _is_event_loops(previous)
        if self._active:
            self._ask(signal.Signals(number), ends_process)
        if callable(previous) and not (self._active and ends_process):
            previous(number, frame)
        elif ends_process and not self._active:
            # Somebody put this handler back after the manager had let go of it, or nobody listens.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _ask(self, number: signal.Signals, ends_process: bool) -> None:
        if ends_process:
            self._deferred = number
            # A blocked event loop hears nothing, and must not keep the process alive for ever.
            self._active = self._unheard < _MOST_UNHEARD
        self._unheard += 1
        try:
            self._call_soon(partial(self._heard, ends_process), self._context.copy())
        except RuntimeError:  # the event loop has ended, and the manager was never left
            self._active = False

    def _heard(self, ends_process: bool) -> None:
        self._unheard -= 1
        if self._active:
            self._manager._on_signal(owns_process=ends_process)


def _is_event_loops(handler: Handler) -> bool:
    # What stands for KeyboardInterrupt: Python's own handler, or that of asyncio.Runner or trio.
    function = getattr(handler, "func", handler)
    return handler is signal.default_int_handler or getattr(function, "__module__", None) in (
        "asyncio.runners",
        "trio._core._ki",
    )
