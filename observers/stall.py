"""An observer that reports attempts that take too long."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint, current_token

from .._events import (
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskRetrying,
    TaskStarted,
    TaskSucceeded,
)
from .._observer import Observer
from .._states import TaskStatus
from ._loop_watch import LoopWatch

if TYPE_CHECKING:
    from .._manager import Manager

_MOST_STALE = 64  # entries of ended attempts in the heap before it is rebuilt


class StallObserver(Observer):
    """Calls `on_task_stalled` of all of a task's observers when an attempt takes too long.

    The report is repeated at doubling intervals while the attempt runs, for example after 10, 20
    and 40 seconds. Each attempt is timed separately; backoff does not count. Nothing is stopped.

    With `blocked`, a thread notices that the event loop does not turn, because something blocks it.
    It logs a warning to the logger `background`, with the stack of the loop's thread and on asyncio
    the name of the task, and another one when the loop turns again. It does not notice a call that
    prevents all threads from running.

    It serves one manager at a time. A second manager logs the `RuntimeError` that `watch()` raises,
    and gets no reports.

    Args:
        after: Seconds; a task's own `stall_after` overrides it.
        blocked: Seconds in real time without a turn of the event loop; `None` for no thread.

    Raises:
        ValueError: An argument is not a finite number of seconds above 0.

    Example:
        ```python
        Manager(observers=[StallObserver(after=30, blocked=1), LoggingObserver()])
        ```
    """

    def __init__(self, after: float, *, blocked: float | None = None) -> None:
        self._after = _checked("after", after)
        self._blocked = None if blocked is None else _checked("blocked", blocked)
        self._manager: Manager | None = None
        # Start times of first attempts of tasks without a `stall_after`, oldest first. Most
        # attempts end here, before they enter the heap.
        self._began: dict[str, float] = {}
        # All other attempts: due time, number, task id, start time, and allowed seconds.
        self._heap: list[tuple[float, int, str, float, float]] = []
        self._numbers: dict[str, int] = {}  # by task id: the entry in the heap that is valid
        self._number = 0
        self._own: dict[str, float] = {}  # by task id: its `stall_after`
        self._next_check = -math.inf
        self._changed: anyio.Event
        self._now: Callable[[], float] = anyio.current_time

    def __repr__(self) -> str:
        blocked = "" if self._blocked is None else f", blocked={self._blocked!r}"
        return f"StallObserver(after={self._after!r}{blocked})"

    def on_task_started(self, event: TaskStarted) -> None:
        now = self._now()
        if event.stall_after is not None:
            self._own[event.id] = event.stall_after
            self._put(event.id, now, event.stall_after)
            return
        self._began[event.id] = now
        if now + self._after < self._next_check:
            self._changed.set()

    def on_task_retrying(self, event: TaskRetrying) -> None:
        if event.job is not None:  # the next attempt is another task
            self._discard(event.id)
            return
        self._began.pop(event.id, None)
        begins = self._now() + event.delay
        self._put(event.id, begins, self._own.get(event.id, self._after))

    def on_task_succeeded(self, event: TaskSucceeded) -> None:
        if self._began.pop(event.id, None) is None:
            self._discard(event.id)

    def on_task_failed(self, event: TaskFailed) -> None:
        self._discard(event.id)

    def on_task_cancelled(self, event: TaskCancelled) -> None:
        self._discard(event.id)

    def on_task_expired(self, event: TaskExpired) -> None:
        self._discard(event.id)

    async def watch(self, manager: Manager) -> None:
        """Report stalled attempts until cancelled.

        Args:
            manager: The manager whose tasks are watched.

        Raises:
            RuntimeError: The observer watches another manager.
        """
        if self._manager is not None:
            raise RuntimeError(
                f"this StallObserver already watches manager {self._manager.name!r}; "
                f"create another one for manager {manager.name!r}"
            )
        self._manager = manager
        # Calling the loop's own method on asyncio is faster.
        self._now = getattr(current_token().native_token, "time", anyio.current_time)
        self._changed = anyio.Event()
        loop_watch = None if self._blocked is None else LoopWatch(manager.name, self._blocked)
        try:
            if loop_watch is not None:
                loop_watch.start()
            while True:
                await self._report_due(manager)
                self._next_check = self._next_due()
                if self._next_check == math.inf and self._changed.is_set():
                    # The attempt that woke this loop has ended already. With a time to check at,
                    # the next attempt does not have to wake it.
                    self._next_check = self._now() + self._after
                self._changed = anyio.Event()
                with anyio.move_on_at(self._next_check):
                    await self._changed.wait()
        finally:
            if loop_watch is not None:
                loop_watch.stop()
            self._manager = None
            self._now = anyio.current_time
            for entries in (self._began, self._heap, self._numbers, self._own):
                entries.clear()
            self._next_check = -math.inf

    def _next_due(self) -> float:
        due = self._heap[0][0] if self._heap else math.inf
        oldest = next(iter(self._began.values()), math.inf)
        return min(due, oldest + self._after)

    def _put(self, id: str, began: float, allowed: float) -> None:
        self._number += 1
        self._numbers[id] = self._number
        due = began + allowed
        heappush(self._heap, (due, self._number, id, began, allowed))
        if due < self._next_check:
            self._changed.set()
        self._tidy()

    def _discard(self, id: str) -> None:
        self._began.pop(id, None)
        if self._numbers and self._numbers.pop(id, None) is not None:
            self._own.pop(id, None)
            self._tidy()

    def _tidy(self) -> None:
        if len(self._heap) > _MOST_STALE + 2 * len(self._numbers):
            self._heap = [entry for entry in self._heap if self._numbers.get(entry[2]) == entry[1]]
            heapify(self._heap)

    async def _report_due(self, manager: Manager) -> None:
        while self._next_due() <= (now := self._now()):
            self._queue_due(now)
            _, number, id, began, allowed = heappop(self._heap)
            handle = manager.get(id)
            if handle is None or self._numbers.get(id) != number:
                continue
            if handle.status is TaskStatus.RETRYING:  # backoff that lasts longer than its delay
                began = now
            else:
                manager.report_stall(id, elapsed=now - began)
            while began + allowed <= now:
                allowed *= 2
            self._put(id, began, allowed)
            await checkpoint()  # capturing a stack takes time

    def _queue_due(self, now: float) -> None:
        """Move first attempts that are due to the heap."""
        while self._began:
            id, began = next(iter(self._began.items()))
            if began + self._after > now:
                return
            del self._began[id]
            self._put(id, began, self._after)


def _checked(argument: str, seconds: float) -> float:
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not (number and 0 < seconds <= sys.float_info.max):
        raise ValueError(
            f"{argument} must be a finite number of seconds, more than 0, not {seconds!r}"
        )
    return seconds
