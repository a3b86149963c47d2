"""A timer that many entries share."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint

T = TypeVar("T")

_BATCH = 256  # entries handled before other tasks get a turn
_MOST_ABANDONED = 64  # entries that a small heap may have before it is rebuilt


class Timer(Generic[T]):
    """A heap of entries, and a service that calls `on_due` with every entry that is due.

    Entries can't be removed. `abandon()` counts an entry that is no longer wanted; when most
    entries are unwanted, the heap is rebuilt without them.

    Args:
        now: Returns the current time.
        on_due: Called with an entry that is due.
        wanted: Returns whether an entry is still wanted.
    """

    def __init__(
        self, now: Callable[[], float], on_due: Callable[[T], None], wanted: Callable[[T], bool]
    ) -> None:
        self._now = now
        self._on_due = on_due
        self._wanted = wanted
        self._heap: list[tuple[float, int, T]] = []
        self._number = 0
        self._abandoned = 0
        self._changed: anyio.Event | None = None

    def put(self, when: float, entry: T) -> None:
        """Call `on_due` with the entry at `when`, after earlier entries for the same time."""
        self._number += 1
        heappush(self._heap, (when, self._number, entry))
        if self._changed is not None and self._heap[0][1] == self._number:
            self._changed.set()

    def abandon(self) -> None:
        """Count an entry that is no longer wanted."""
        self._abandoned += 1
        if self._abandoned > max(_MOST_ABANDONED, len(self._heap) // 2):
            self._heap = [item for item in self._heap if self._wanted(item[2])]
            heapify(self._heap)
            self._abandoned = 0

    async def run(self) -> None:
        """Call `on_due` with due entries until cancelled."""
        while True:
            self._changed = None
            handled = 0
            while self._heap and self._heap[0][0] <= self._now():
                self._on_due(heappop(self._heap)[2])
                handled += 1
                if handled % _BATCH == 0:
                    await checkpoint()
            self._changed = anyio.Event()
            with anyio.move_on_at(self._heap[0][0] if self._heap else None):
                await self._changed.wait()
