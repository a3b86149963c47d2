"""Tools for testing tasks: an observer that records events, and virtual time.

Needs pytest. Load the fixtures with `pytest_plugins = ["background.testing"]`; they work with
anyio's pytest plugin. (PYTEST_DONT_REWRITE: this module has no assertions.)

Example:
    ```python
    async def test_report_is_sent(manager: Manager, recorder: RecordingObserver) -> None:
        await manager.run(send_report)
        assert recorder.names() == ["added", "started", "succeeded"]
    ```

    In virtual time, the clock jumps to the next timer when all tasks wait, so an hour's sleep
    returns immediately:

    ```python
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(request):
        return virtual_time(request.param)
    ```
"""

from __future__ import annotations

import asyncio
import math
import selectors
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import anyio
import pytest

from ._eventloop.running import current_backend
from ._events import JobDead, JobEnqueued, TaskEvent
from ._manager import Manager
from ._observer import Observer
from ._report import ManagerClosed, ManagerClosing
from ._support import clock

Event = TaskEvent | JobEnqueued | JobDead | ManagerClosing | ManagerClosed
E = TypeVar("E", bound=Event)

_HOOKS = {name: name.split("_", 2)[2] for name in vars(Observer) if name.startswith("on_")}


class RecordingObserver(Observer):
    """Records all events in order.

    `events` is the list of events; `names()` returns their short names, such as `"started"`.

    Example:
        ```python
        recorder = RecordingObserver()
        async with Manager(observers=[recorder]) as manager:
            manager.run(send_report)
            started = await recorder.wait_for(TaskStarted)
        assert recorder.names(started.id) == ["added", "started", "succeeded"]
        ```
    """

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._names: list[str] = []
        self._changed = anyio.Event()

    def __repr__(self) -> str:
        return f"<RecordingObserver with {len(self.events)} events>"

    def record(self, name: str, event: Any) -> None:
        """Record an event; every hook calls this.

        Args:
            name: The event's short name, such as `"started"`.
            event: The event.
        """
        self.events.append(event)
        self._names.append(name)
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def names(self, id: str | None = None) -> list[str]:
        """Return the short names of the recorded events.

        Args:
            id: The id of a task or job; `None` for all events.

        Returns:
            The names, such as `"started"`, in the order of the events.
        """
        pairs = zip(self._names, self.events, strict=True)
        return [name for name, event in pairs if id is None or _is_of(event, id)]

    def of(self, kind: type[E], id: str | None = None) -> list[E]:
        """Return the recorded events of one class.

        Args:
            kind: The class, such as `TaskFailed`.
            id: The id of a task or job; `None` for all events.

        Returns:
            The events, in order.
        """
        return [
            event
            for event in self.events
            if isinstance(event, kind) and (id is None or _is_of(event, id))
        ]

    async def wait_for(self, kind: type[E], *, id: str | None = None, count: int = 1) -> E:
        """Wait until a number of events of one class are recorded.

        Args:
            kind: The class, such as `TaskFailed`.
            id: The id of a task or job; `None` for all events.
            count: The number of events, counted from the beginning.

        Returns:
            The last of these events.
        """
        while len(found := self.of(kind, id)) < count:
            await self._changed.wait()
        return found[count - 1]


def _is_of(event: Any, id: str) -> bool:
    job = getattr(event, "job", None)
    return getattr(event, "id", None) == id or (job is not None and job.id == id)


def _recorder_hook(name: str) -> Callable[[RecordingObserver, Any], None]:
    def hook(self: RecordingObserver, event: Any) -> None:
        self.record(name, event)

    return hook


for _hook, _name in _HOOKS.items():
    setattr(RecordingObserver, _hook, _recorder_hook(_name))


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
    `virtual_wall_clock()`.

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


def _hold(change: int, *, patience: float) -> None:
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


clock.on_thread = partial(_hold, patience=_PATIENCE)
clock.on_io = partial(_hold, patience=math.inf)


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


@pytest.fixture
def recorder() -> RecordingObserver:
    """The observer of the `manager` fixture."""
    return RecordingObserver()


@pytest.fixture
async def manager(anyio_backend: object, recorder: RecordingObserver) -> AsyncIterator[Manager]:
    """A running manager with the observer `recorder`; its tasks are cancelled after the test."""
    async with Manager(name="test", observers=[recorder]) as running:
        yield running
        await running.close(timeout=0)
