"""Shutdown signals, handled in addition to existing signal handlers.

docs/design/signals.md explains this design.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from types import FrameType
from typing import Any, Protocol

from .._errors import ManagerMisuseError
from .._support import fork

_MOST_PENDING = (
    2  # signals that may be pending in a blocked event loop; the next one ends the process
)

Handler = Callable[[int, FrameType | None], Any] | int | None


class ShutdownRequest(Protocol):
    """The callback of a signal in the event loop."""

    def __call__(self, *, ends_process: bool, counts: bool = True) -> None: ...


class SignalHandlers:
    """One manager's handlers: each signal requests a shutdown, then reaches the earlier handler.

    A signal that had its default disposition ends the process once the manager has closed. So does
    a SIGINT that the event loop would have handled itself.

    Args:
        signals: The signals to handle.
        request: Called in the event loop for each signal.
        call_soon: Calls a function in the event loop, from a signal handler.
        announce: Called in the event loop with each signal, before `request`.

    Raises:
        ManagerMisuseError: This is not the main thread.
    """

    def __init__(
        self,
        signals: Collection[signal.Signals],
        request: ShutdownRequest,
        call_soon: Callable[..., None],
        announce: Callable[[signal.Signals], None],
    ) -> None:
        if not in_main_thread():
            raise ManagerMisuseError(
                "signals= works in the main thread only, as Python handles signals nowhere else; "
                "leave it out here and call request_shutdown() instead"
            )
        self._signals = signals
        self._request = request
        self._call_soon = call_soon
        self._announce = announce
        self._previous: dict[int, Handler] = {}
        self._handler = self._handle  # one bound method, because `restore` compares it
        self._context = copy_context()
        self._is_active = False
        self._deferred: signal.Signals | None = None
        self._heir: SignalHandlers | None = None  # raises the deferred signal instead
        self._has_stuck = False  # whether tasks of a manager that was left before are stuck
        self._pending = 0  # signals that the event loop has not handled yet

    def install(self) -> None:
        """Set the handlers."""
        self._is_active = True
        fork.call_in_child(self._restore_in_child)
        for number in self._signals:
            self._previous[number] = signal.getsignal(number)
            signal.signal(number, self._handler)

    def restore(self) -> None:
        """Restore the earlier handlers, except where this manager's handlers were replaced.

        A handler of another manager that replaced one passes signals to the earlier handler then.
        """
        self._is_active = False
        for number, previous in self._previous.items():
            if signal.getsignal(number) is self._handler:
                signal.signal(number, signal.SIG_DFL if previous is None else previous)
            elif (later := self._replaced_by(number)) is not None:
                later._previous[number] = previous
                if number == self._deferred and later._is_active:
                    self._heir = later

    def _replaced_by(self, number: int) -> SignalHandlers | None:
        """Return the manager whose handler calls this one's."""
        handler = signal.getsignal(number)
        while isinstance(owner := getattr(handler, "__self__", None), SignalHandlers):
            handler = owner._previous.get(number)
            if handler is self._handler:
                return owner
        return None

    def _restore_in_child(self) -> None:
        """Restore the earlier handlers in a forked child, where no event loop has the requests."""
        if self._is_active:
            self.restore()
            # Otherwise the parent's event loop would take the child's signals for its own. asyncio
            # does the same since Python 3.12.
            signal.set_wakeup_fd(-1)

    def finish(self, *, stuck: bool) -> bool:
        """Raise the signal that was deferred until the manager had closed; return whether one was.

        If another manager handles the signal, too, that one raises it when it has closed.

        With tasks that are `stuck` it ends the process at once, because the event loop or the
        interpreter would wait for them after a KeyboardInterrupt.
        """
        if self._deferred is None:
            return False
        stuck |= self._has_stuck
        if self._heir is not None:
            self._heir._inherit(self._deferred, stuck=stuck)
            return True
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # pyright: ignore[reportUnnecessaryComparison]
                with suppress(Exception):  # it may be closed, or its reader may be gone
                    stream.flush()
        if stuck:
            signal.signal(self._deferred, signal.SIG_DFL)
        signal.raise_signal(self._deferred)
        return True

    def _inherit(self, number: signal.Signals, *, stuck: bool) -> None:
        self._deferred = number
        self._has_stuck = stuck
        self._request(ends_process=True, counts=False)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous[number]
        ends_process = previous is signal.SIG_DFL or _is_event_loops(previous)
        if self._is_active:
            self._notify(signal.Signals(number), ends_process)
        if callable(previous) and not (self._is_active and ends_process):
            previous(number, frame)
        elif ends_process and not self._is_active:
            # The event loop does not respond; or this handler was set again after the manager had
            # restored the earlier one.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _notify(self, number: signal.Signals, ends_process: bool) -> None:
        if ends_process:
            self._deferred = number
            # A blocked event loop must not keep the process alive forever.
            self._is_active = self._pending < _MOST_PENDING
        self._pending += 1
        try:
            self._call_soon(partial(self._notified, number, ends_process), self._context.copy())
        except RuntimeError:  # the event loop has ended, and the manager was never left
            self._is_active = False

    def _notified(self, number: signal.Signals, ends_process: bool) -> None:
        self._pending -= 1
        if self._is_active:
            self._announce(number)
            self._request(ends_process=ends_process)


def in_main_thread() -> bool:
    """Return whether Python can handle signals in the calling thread."""
    return threading.current_thread() is threading.main_thread()


def _is_event_loops(handler: Handler) -> bool:
    # Such a handler raises KeyboardInterrupt: Python's own, or that of asyncio.Runner or trio.
    function = getattr(handler, "func", handler)
    return handler is signal.default_int_handler or getattr(function, "__module__", None) in (
        "asyncio.runners",
        "trio._core._ki",
    )
