"""Help for testing tasks: what observers saw, and time that does not pass by itself.

Needs pytest. Load the fixtures with `pytest_plugins = ["background.testing"]`; they work with
anyio's pytest plugin. (PYTEST_DONT_REWRITE: nothing is asserted here.)

    async def test_report_is_sent(manager: Manager, recorder: RecordingObserver) -> None:
        await manager.run(send_report)
        assert recorder.names() == ["added", "started", "succeeded"]

In virtual time a sleep of an hour takes no time, as soon as nothing else is left to do:

    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(request):
        return virtual_time(request.param)
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

from ._events import JobDead, JobEnqueued, TaskEvent
from ._manager import Manager
from ._observer import Observer
from ._report import ManagerClosed, ManagerClosing
from ._support import clock

Event = TaskEvent | JobEnqueued | JobDead | ManagerClosing | ManagerClosed
E = TypeVar("E", bound=Event)

_HOOKS = {name: name.split("_", 2)[2] for name in vars(Observer) if name.startswith("on_")}


class RecordingObserver(Observer):
    """Keeps every event that it is told, in order.

    `events` are the events; `names()` gives their short names, such as `"started"`.
    """

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._names: list[str] = []
        self._changed = anyio.Event()

    def record(self, name: str, event: Any) -> None:
        """Keep an event under a short name; every hook calls this."""
        self.events.append(event)
        self._names.append(name)
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def names(self, id: str | None = None) -> list[str]:
        """Return the short names of all events, or of those of the task or job with this id."""
        pairs = zip(self._names, self.events, strict=True)
        return [name for name, event in pairs if id is None or _is_of(event, id)]

    def of(self, kind: type[E], id: str | None = None) -> list[E]:
        """Return the events of one class, such as `TaskFailed`."""
        return [
            event
            for event in self.events
            if isinstance(event, kind) and (id is None or _is_of(event, id))
        ]

    async def wait_for(self, kind: type[E], *, id: str | None = None, count: int = 1) -> E:
        """Wait until there are `count` events of that class and return the last of them."""
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


_PATIENCE = 1.0  # seconds for which virtual time waits for a function that may itself wait for it


class _Held:
    """What virtual time waits for, each with for how many seconds of real time."""

    def __init__(self) -> None:
        self._numbers: Counter[float] = Counter()

    def change(self, change: int, patience: float) -> None:
        self._numbers[patience] += change

    @property
    def patience(self) -> float:
        return max((seconds for seconds, number in self._numbers.items() if number), default=0.0)


class _JumpingSelector(selectors.DefaultSelector):
    """Lets the loop's clock jump to the next timer instead of waiting for it."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump
        self.held = _Held()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        patience = self.held.patience
        ready = super().select(None if patience == math.inf else patience)
        if not ready:
            self._jump(timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop in which waiting takes no time.

    As soon as nothing is left to do its clock jumps to the next timer. It gives the sync functions
    of tasks a second of real time, SQLite as much as it takes, and waits for no other thread.
    """

    def __init__(self) -> None:
        self._virtual = 0.0
        self._jumping = _JumpingSelector(self._jump)
        super().__init__(self._jumping)

    def hold(self, change: int, patience: float) -> None:
        """Take note that there is more or less to wait for, so many seconds of real time."""
        self._jumping.held.change(change, patience)

    def time(self) -> float:
        return self._virtual

    @property
    def _clock_resolution(self) -> float:
        # asyncio takes a timer to be due that is less than this away. The real clock's resolution
        # is too coarse for virtual time on some systems, and vanishes beside a large time.
        return math.ulp(self._virtual)

    @_clock_resolution.setter
    def _clock_resolution(self, seconds: float) -> None:
        pass

    def _jump(self, seconds: float) -> None:
        self._virtual += seconds


def virtual_time(backend: Literal["asyncio", "trio"]) -> tuple[str, dict[str, Any]]:
    """Return what an `anyio_backend` fixture returns for virtual time; a new one for each test.

    Waiting takes no time then. Cron schedules follow the wall clock, which needs
    `virtual_wall_clock()` to be virtual too.

    For `anyio.run()`, the first item is its `backend` and the second its `backend_options`.
    """
    if backend == "asyncio":
        return "asyncio", {"loop_factory": VirtualTimeLoop}
    from trio.testing import MockClock

    mock = MockClock(autojump_threshold=0)
    _held_by[mock] = _Held()
    return "trio", {"clock": mock}


#: What each virtual clock of trio's has to wait for.
_held_by: WeakKeyDictionary[Any, _Held] = WeakKeyDictionary()


def _hold(change: int, *, patience: float) -> None:
    """Let virtual time wait, on whichever loop runs."""
    trio: Any = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        mock = trio.lowlevel.current_clock()
        if mock in _held_by:
            _held_by[mock].change(change, patience)
            mock.autojump_threshold = _held_by[mock].patience
        return
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        loop.hold(change, patience)


clock.on_thread = partial(_hold, patience=_PATIENCE)
clock.on_io = partial(_hold, patience=math.inf)


@contextmanager
def virtual_wall_clock(start: datetime) -> Generator[None]:
    """Let cron schedules and event times start from `start` and follow the event loop's clock."""
    real, began, epoch = clock.wall, anyio.current_time(), start.timestamp()
    clock.wall = lambda: epoch + anyio.current_time() - began
    try:
        yield
    finally:
        clock.wall = real


@pytest.fixture
def recorder() -> RecordingObserver:
    """The observer of the `manager` fixture."""
    return RecordingObserver()


@pytest.fixture
async def manager(anyio_backend: object, recorder: RecordingObserver) -> AsyncIterator[Manager]:
    """A running manager, observed by `recorder`; closed after the test without waiting."""
    async with Manager(name="test", observers=[recorder]) as running:
        yield running
        await running.close(timeout=0)
