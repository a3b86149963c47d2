"""Room for outstanding one-off tasks."""

from __future__ import annotations

from math import inf

import anyio

from .._errors import ManagerFullError


class Capacity:
    """Bounds the number of outstanding one-offs; the longest waiter gets room first.

    Jobs use room, but don't wait for it: the concurrency of their workers bounds them.

    Args:
        most: The bound.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._jobs = 0
        self._is_open = False
        self._limiter = anyio.CapacityLimiter(most)

    def take(self, holder: object) -> None:
        """Take room for a task.

        Args:
            holder: The object that holds the room until `release`.

        Raises:
            ManagerFullError: There is no room, or tasks wait for it.
        """
        try:
            self._limiter.acquire_on_behalf_of_nowait(holder)
        except anyio.WouldBlock:
            raise ManagerFullError(
                f"the manager's capacity of {self._most} outstanding one-off tasks is used up; "
                "await submit() to wait for room"
            ) from None

    async def wait_for_room(self, holder: object) -> None:
        """Wait for room and take it; return at once when the manager is closing."""
        try:
            self._limiter.acquire_on_behalf_of_nowait(holder)
        except anyio.WouldBlock:
            await self._limiter.acquire_on_behalf_of(holder)

    def release(self, holder: object) -> None:
        """Release the room of a task, for the next waiter."""
        self._limiter.release_on_behalf_of(holder)

    def job_added(self) -> None:
        """Use room for a job, even if there is none."""
        self._jobs += 1
        self._adjust()

    def job_ended(self) -> None:
        """Release the room of a job."""
        self._jobs -= 1
        self._adjust()

    def open_up(self) -> None:
        """Admit all waiters, because the manager is closing and refuses them."""
        self._is_open = True
        self._adjust()

    def _adjust(self) -> None:
        self._limiter.total_tokens = inf if self._is_open else max(0, self._most - self._jobs)
