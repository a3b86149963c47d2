"""Attempts that take suspiciously long."""

from __future__ import annotations

import math
import sys
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from .._events import (
    TaskCancelledEvent,
    TaskExpiredEvent,
    TaskFailed,
    TaskRetrying,
    TaskStarted,
    TaskSucceeded,
)
from .._observe import Observer
from .._states import TaskStatus

if TYPE_CHECKING:
    from .._manager import Manager

_FEW = 64  # entries of ended attempts that are not worth tidying up


class StallObserver(Observer):
    """Has `on_task_stalled` told to all of a task's observers when an attempt takes long.

    - `after`: seconds; a task's own `stall_after` takes its place.

    Told again at doubling intervals for as long as the attempt lasts: after 10, 20, 40… seconds.
    Each attempt of each run or iteration is timed by itself, and backoff is not. Nothing is
    stopped. One timer serves all tasks.

        Manager(observers=[StallObserver(after=30), LoggingObserver()])

    For one manager at a time: a second one logs the `RuntimeError` of its `watch()` and goes
    without. Raises `ValueError` unless `after` is a finite number of seconds of more than 0.
    """

    def __init__(self, after: float) -> None:
        number = isinstance(after, (int, float)) and not isinstance(after, bool)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not (number and 0 < after <= sys.float_info.max):
            raise ValueError(
                f"after must be a finite number of seconds, more than 0, not {after!r}"
            )
        self._after = after
        self._manager: Manager | None = None
        self._number = 0
        self._current: dict[str, int] = {}  # the number of each task's current attempt
        # What to report, earliest first: when, the attempt's number, its task, beginning, and time.
        self._heap: list[tuple[float, int, str, float, float]] = []
        self._next_look = -math.inf
        self._changed: anyio.Event

    def on_task_started(self, event: TaskStarted) -> None:
        self._begin(event.id, anyio.current_time())

    def on_task_retrying(self, event: TaskRetrying) -> None:
        self._begin(event.id, anyio.current_time() + event.delay)

    def on_task_succeeded(self, event: TaskSucceeded) -> None:
        self._forget(event.id)

    def on_task_failed(self, event: TaskFailed) -> None:
        self._forget(event.id)

    def on_task_cancelled(self, event: TaskCancelledEvent) -> None:
        self._forget(event.id)

    def on_task_expired(self, event: TaskExpiredEvent) -> None:
        self._forget(event.id)

    async def watch(self, manager: Manager) -> None:
        """Report what is due, when it is due.

        Raises `RuntimeError` while the observer watches another manager.
        """
        if self._manager is not None:
            raise RuntimeError(
                f"this StallObserver watches the manager {self._manager.name!r} already; "
                f"make another one for the manager {manager.name!r}"
            )
        self._manager = manager
        try:
            self._take_over()
            while True:
                await self._report_due(manager)
                self._changed = anyio.Event()
                self._next_look = self._heap[0][0] if self._heap else math.inf
                with anyio.move_on_at(self._next_look):
                    await self._changed.wait()
        finally:
            self._manager = None
            self._current.clear()
            self._heap.clear()
            self._next_look = -math.inf

    def _begin(self, id: str, began: float) -> None:
        allowed = self._allowed(id)
        if allowed is not None:
            self._number += 1
            self._current[id] = self._number
            self._put(self._number, id, began, allowed)

    def _allowed(self, id: str) -> float | None:
        """Return the seconds that the task may take, `None` if it is another manager's."""
        if self._manager is None:  # to be asked in `_take_over`
            return self._after
        handle = self._manager.get(id)
        return None if handle is None else handle.task.stall_after or self._after

    def _put(self, number: int, id: str, began: float, allowed: float) -> None:
        due = began + allowed
        heappush(self._heap, (due, number, id, began, allowed))
        if due < self._next_look:
            self._changed.set()
        self._tidy()

    def _forget(self, id: str) -> None:
        if self._current.pop(id, None) is not None:
            self._tidy()

    def _tidy(self) -> None:
        if len(self._heap) > _FEW + 2 * len(self._current):
            self._heap = [entry for entry in self._heap if self._current.get(entry[2]) == entry[1]]
            heapify(self._heap)

    def _take_over(self) -> None:
        """Time anew what began before the manager was known."""
        early, self._heap = self._heap, []
        for _, number, id, began, _ in early:
            allowed = self._allowed(id)
            if allowed is not None and self._current.get(id) == number:
                self._put(number, id, began, allowed)

    async def _report_due(self, manager: Manager) -> None:
        while self._heap and self._heap[0][0] <= (now := anyio.current_time()):
            _, number, id, began, allowed = heappop(self._heap)
            handle = manager.get(id)
            if handle is None or self._current.get(id) != number:
                continue
            if handle.status is TaskStatus.RETRYING:  # the policy sleeps longer than it said
                began = now
            else:
                manager.report_stall(id, elapsed=now - began)
            while began + allowed <= now:
                allowed *= 2
            self._put(number, id, began, allowed)
            await checkpoint()  # stacks take a while
