"""Room for outstanding one-off tasks."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from .._errors import ManagerFullError
from .state import TaskState, current_task


class Capacity:
    """Bounds the number of outstanding one-offs; the longest waiter gets room first.

    Jobs use room, but don't wait for it: the concurrency of their workers bounds them.

    Args:
        most: The bound.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._jobs = 0
        self._limiter = anyio.CapacityLimiter(most)
        self._holders: dict[TaskState, object] = {}  # of tasks that waited for room
        self._waiting: dict[anyio.CancelScope, TaskState | None] = {}  # calls, by their scopes

    def take(self, state: TaskState, holder: object = None) -> None:
        """Take room for a task.

        Args:
            state: The task.
            holder: The holder of the room that `wait_for_room` took for it.

        Raises:
            ManagerFullError: There is no room, or tasks wait for it.
        """
        if holder is not None:
            self._holders[state] = holder
            return
        try:
            self._limiter.acquire_on_behalf_of_nowait(state)
        except anyio.WouldBlock:
            raise ManagerFullError(
                f"the manager's capacity of {self._most} outstanding one-off tasks is used up; "
                "await submit() to wait for room"
            ) from None

    async def wait_for_room(self, holder: object) -> bool:
        """Wait for room and take it; return `False` if the waiter was refused meanwhile.

        Args:
            holder: Any object, which holds the room for a task.
        """
        try:
            self._limiter.acquire_on_behalf_of_nowait(holder)
        except anyio.WouldBlock:
            with anyio.CancelScope() as scope:
                self._waiting[scope] = current_task.get()
                try:
                    await self._limiter.acquire_on_behalf_of(holder)
                finally:
                    del self._waiting[scope]
            return not scope.cancelled_caught
        return True

    def refuse_waiters(self, accepts: Callable[[TaskState | None], bool]) -> None:
        """End the waits of callers that the closing manager does not accept.

        Args:
            accepts: Returns whether tasks of a caller are accepted. It is called with the task that
                the caller belongs to.
        """
        for scope, caller in self._waiting.items():
            if not accepts(caller):
                scope.cancel()

    def give_up(self, holder: object) -> None:
        """Release room that was waited for, but that no task took."""
        self._limiter.release_on_behalf_of(holder)

    def release(self, state: TaskState) -> None:
        """Release the room of a task, for the next waiter."""
        self._limiter.release_on_behalf_of(self._holders.pop(state, state))

    def job_added(self) -> None:
        """Use room for a job, even if there is none."""
        self._jobs += 1
        self._adjust()

    def job_ended(self) -> None:
        """Release the room of a job."""
        self._jobs -= 1
        self._adjust()

    def _adjust(self) -> None:
        self._limiter.total_tokens = max(0, self._most - self._jobs)
