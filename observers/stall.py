"""Attempts that take suspiciously long."""

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

if TYPE_CHECKING:
    from .._manager import Manager

_FEW = 64  # entries of ended attempts that are not worth tidying up


class StallObserver(Observer):
    """Has `on_task_stalled` told to all of a task's observers when an attempt takes long.

    - `after`: seconds; a task's own `stall_after` takes its place.

    Told again at doubling intervals for as long as the attempt lasts: after 10, 20, 40… seconds.
    Each attempt of each run or iteration is timed by itself, and backoff is not. Nothing is
    stopped. One timer serves all tasks, those that run durable jobs included.

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
        # When the first attempts of tasks without a `stall_after` began, oldest first.
        self._began: dict[str, float] = {}
        # All others: when to report them, their number, task, begin, and the seconds allowed.
        self._heap: list[tuple[float, int, str, float, float]] = []
        self._numbers: dict[str, int] = {}  # of each task's entry in the heap that still counts
        self._number = 0
        self._own: dict[str, float] = {}  # the `stall_after` of tasks that have one
        self._next_look = -math.inf
        self._changed: anyio.Event
        self._now: Callable[[], float] = anyio.current_time

    def on_task_started(self, event: TaskStarted) -> None:
        now = self._now()
        if event.stall_after is not None:
            self._own[event.id] = event.stall_after
            self._put(event.id, now, event.stall_after)
            return
        self._began[event.id] = now
        if now + self._after < self._next_look:
            self._changed.set()

    def on_task_retrying(self, event: TaskRetrying) -> None:
        if event.job is not None:  # whose next attempt is another task
            self._forget(event.id)
            return
        self._began.pop(event.id, None)
        begins = self._now() + event.delay
        self._put(event.id, begins, self._own.get(event.id, self._after))

    def on_task_succeeded(self, event: TaskSucceeded) -> None:
        if self._began.pop(event.id, None) is None:
            self._forget(event.id)

    def on_task_failed(self, event: TaskFailed) -> None:
        self._forget(event.id)

    def on_task_cancelled(self, event: TaskCancelled) -> None:
        self._forget(event.id)

    def on_task_expired(self, event: TaskExpired) -> None:
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
        # asyncio's loop is quicker to ask itself.
        self._now = getattr(current_token().native_token, "time", anyio.current_time)
        self._changed = anyio.Event()
        try:
            while True:
                await self._report_due(manager)
                self._next_look = self._next_due()
                if self._next_look == math.inf and self._changed.is_set():
                    # What woke it has ended. The next attempt, soon to come, need not do that.
                    self._next_look = self._now() + self._after
                self._changed = anyio.Event()
                with anyio.move_on_at(self._next_look):
                    await self._changed.wait()
        finally:
            self._manager = None
            self._now = anyio.current_time
            for kept in (self._began, self._heap, self._numbers, self._own):
                kept.clear()
            self._next_look = -math.inf

    def _next_due(self) -> float:
        due = self._heap[0][0] if self._heap else math.inf
        oldest = next(iter(self._began.values()), math.inf)
        return min(due, oldest + self._after)

    def _put(self, id: str, began: float, allowed: float) -> None:
        self._number += 1
        self._numbers[id] = self._number
        due = began + allowed
        heappush(self._heap, (due, self._number, id, began, allowed))
        if due < self._next_look:
            self._changed.set()
        self._tidy()

    def _forget(self, id: str) -> None:
        self._began.pop(id, None)
        if self._numbers and self._numbers.pop(id, None) is not None:
            self._own.pop(id, None)
            self._tidy()

    def _tidy(self) -> None:
        if len(self._heap) > _FEW + 2 * len(self._numbers):
            self._heap = [entry for entry in self._heap if self._numbers.get(entry[2]) == entry[1]]
            heapify(self._heap)

    async def _report_due(self, manager: Manager) -> None:
        while self._next_due() <= (now := self._now()):
            self._queue_due(now)
            _, number, id, began, allowed = heappop(self._heap)
            handle = manager.get(id)
            if handle is None or self._numbers.get(id) != number:
                continue
            if handle.status is TaskStatus.RETRYING:  # the policy sleeps longer than it said
                began = now
            else:
                manager.report_stall(id, elapsed=now - began)
            while began + allowed <= now:
                allowed *= 2
            self._put(id, began, allowed)
            await checkpoint()  # stacks take a while

    def _queue_due(self, now: float) -> None:
        """Put the first attempts that have lasted too long where the others are."""
        while self._began:
            id, began = next(iter(self._began.items()))
            if began + self._after > now:
                return
            del self._began[id]
            self._put(id, began, self._after)
