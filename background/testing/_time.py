"""Virtual time, in which the clock jumps to the next timer when all tasks wait."""

from __future__ import annotations

import asyncio
import math
import selectors
import sys
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

from .._eventloop.running import current_backend
from .._support import clock

_PATIENCE = 1.0  # real seconds for a sync function, which may itself wait for the virtual clock


class _Holds:
    """The calls in other threads that hold the virtual clock.

    Each call holds it for at most its own number of seconds of real time.
    """

    def __init__(self) -> None:
        self._calls: Counter[float] = Counter()  # by seconds

    def change(self, change: int, patience: float) -> None:
        self._calls[patience] += change

    @property
    def patience(self) -> float:
        """The longest time in seconds to wait for a call, or 0 if there is none."""
        return max((seconds for seconds, calls in self._calls.items() if calls), default=0.0)


class _JumpingSelector(selectors.DefaultSelector):
    """Makes the loop's clock jump to the next timer instead of waiting for it."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump
        self.holds = _Holds()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        patience = self.holds.patience
        ready = super().select(None if patience == math.inf else patience)
        if not ready:
            self._jump(timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop with a virtual clock.

    When no callback is ready, the clock jumps to the next timer. It first waits for calls in
    threads: up to one second of real time for sync functions of tasks, and without a limit for
    SQLite. It does not wait for other threads.
    """

    def __init__(self) -> None:
        self._virtual = 0.0
        self._jumping = _JumpingSelector(self._jump)
        super().__init__(self._jumping)

    def hold(self, change: int, patience: float) -> None:
        """Count a call in another thread that the clock waits for.

        Args:
            change: 1 when the call begins, -1 when it ends.
            patience: The most seconds of real time to wait for it.
        """
        self._jumping.holds.change(change, patience)

    def time(self) -> float:
        return self._virtual

    @property
    def _clock_resolution(self) -> float:
        # asyncio runs timers that are due within this time. The real clock's resolution is too
        # coarse for virtual time on some systems, and lost in rounding when the time is large.
        return math.ulp(self._virtual)

    @_clock_resolution.setter
    def _clock_resolution(self, seconds: float) -> None:
        pass

    def _jump(self, seconds: float) -> None:
        self._virtual += seconds


def virtual_time(backend: Literal["asyncio", "trio"]) -> tuple[str, dict[str, Any]]:
    """Return the value of an `anyio_backend` fixture with a virtual clock.

    Use a new value for each test. Cron schedules follow the wall clock, which stays real outside of
    `virtual_wall_clock()` and `drain()`.

    Args:
        backend: The event loop.

    Returns:
        The `backend` and the `backend_options` of `anyio.run()`.
    """
    if backend == "asyncio":
        return "asyncio", {"loop_factory": VirtualTimeLoop}
    from trio.testing import MockClock

    mock = MockClock(autojump_threshold=0)
    _holds_of[mock] = _Holds()
    return "trio", {"clock": mock}


#: The holds on trio's virtual clocks, by clock.
_holds_of: WeakKeyDictionary[Any, _Holds] = WeakKeyDictionary()


def is_virtual() -> bool:
    """Return whether the running event loop has a virtual clock."""
    trio: Any = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return trio.lowlevel.current_clock() in _holds_of
    return isinstance(asyncio.get_running_loop(), VirtualTimeLoop)


def hold(change: int, *, patience: float) -> None:
    """Count a call in another thread, on the running event loop if its time is virtual."""
    trio: Any = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        mock = trio.lowlevel.current_clock()
        if mock in _holds_of:
            _holds_of[mock].change(change, patience)
            mock.autojump_threshold = _holds_of[mock].patience
        return
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        loop.hold(change, patience)


clock.on_thread = partial(hold, patience=_PATIENCE)
clock.on_io = partial(hold, patience=math.inf)


@contextmanager
def virtual_wall_clock(start: datetime) -> Generator[None]:
    """Replace the library's wall clock by one that follows the event loop's clock.

    It serves cron schedules and the times of events.

    Args:
        start: The time at which the clock begins.

    Example:
        ```python
        with virtual_wall_clock(datetime(2030, 1, 1, tzinfo=UTC)):
            manager.cron("0 3 * * *", clean_up)
            await anyio.sleep(86_400)
        ```
    """
    real, now, epoch = clock.wall, _clock(), start.timestamp()
    began = now()
    clock.wall = lambda: epoch + now() - began
    try:
        yield
    finally:
        clock.wall = real


def _clock() -> Callable[[], float]:
    """Return the event loop's clock, which threads can read, too."""
    if current_backend().library == "trio":
        import trio

        return trio.lowlevel.current_clock().current_time
    return asyncio.get_running_loop().time
