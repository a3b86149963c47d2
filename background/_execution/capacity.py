"""Room for one-off tasks, and waiting for it."""

from __future__ import annotations

from collections import deque

import anyio

from .._errors import ManagerFullError
from .registry import Outstanding


class Admission:
    """Keeps the outstanding one-offs within the manager's capacity; oldest waiter first."""

    def __init__(self, outstanding: Outstanding, capacity: int | None) -> None:
        self._outstanding = outstanding
        self._capacity = float("inf") if capacity is None else capacity
        self._reserved = 0
        self.bounded = capacity is not None
        self.waiting: deque[anyio.Event] = deque()
        self._closed = False

    def _has_room(self) -> bool:
        return self._outstanding.one_offs + self._reserved < self._capacity

    def require(self) -> None:
        """Raise `ManagerFullError` unless there is room."""
        if not self._has_room():
            raise ManagerFullError(
                f"the manager's capacity of {self._capacity} outstanding one-off tasks is used up; "
                "await submit() to wait for room"
            )

    async def reserve(self) -> None:
        """Wait for room and keep it until `release()`; returns at once when admission closes."""
        if self._closed or (self._has_room() and not self.waiting):
            self._reserved += 1
            return
        admitted = anyio.Event()
        self.waiting.append(admitted)
        try:
            await admitted.wait()
        except BaseException:
            if admitted.is_set():
                self.release()
                self.changed()
            else:
                self.waiting.remove(admitted)
            raise

    def release(self) -> None:
        """Give back what `reserve()` kept; to be followed by `changed()`."""
        self._reserved -= 1

    def changed(self) -> None:
        """Let waiters in for whom there is room now."""
        while self.waiting and (self._closed or self._has_room()):
            self._reserved += 1
            self.waiting.popleft().set()

    def close(self) -> None:
        """Wait for room no more: there is nothing to be had."""
        self._closed = True
        self.changed()
