"""Tools for testing: an observer that records events, virtual time, and tools for jobs.

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

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import anyio
import pytest

from .._events import JobDead, JobEnqueued, TaskEvent
from .._manager import Manager
from .._observer import Observer
from .._report import ManagerClosed, ManagerClosing
from ..queues import JobQueue
from ..queues.memory import MemoryBroker
from ._jobs import EnqueuedJob, drain, enqueued, override_with_memory
from ._time import VirtualTimeLoop, virtual_time, virtual_wall_clock

__all__ = [
    "EnqueuedJob",
    "RecordingObserver",
    "VirtualTimeLoop",
    "drain",
    "enqueued",
    "jobs_memory",
    "manager",
    "recorder",
    "virtual_time",
    "virtual_wall_clock",
]


def __dir__() -> list[str]:
    return __all__


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


@pytest.fixture
def jobs_memory() -> Iterator[Callable[[JobQueue], MemoryBroker]]:
    """A function that replaces the broker of a queue by a `MemoryBroker`, until the test ends.

    Example:
        ```python
        async def test_welcome(jobs_memory: Callable[[JobQueue], MemoryBroker]) -> None:
            jobs_memory(jobs)
            async with jobs:
                await sign_up("ada")
                (job,) = await drain(jobs)
        ```
    """
    yield from override_with_memory()
