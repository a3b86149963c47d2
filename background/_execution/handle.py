"""The handle of a submitted task."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from traceback import FrameSummary
from typing import Any, Generic, Protocol, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from .._errors import TaskCancelledError, TaskExpiredError
from .._eventloop.interruption import ki_protected
from .._events import JobRef
from .._states import FINAL, TaskKind, TaskStatus
from .._task import Task
from .state import TaskState

T = TypeVar("T")


class TaskOwner(Protocol):
    """The operations of a scheduler that the handles of its tasks use."""

    event: type[anyio.Event]

    def cancel(self, state: TaskState, reason: str | None) -> bool:
        """Cancel a task; return whether it was outstanding."""
        ...

    def stack(self, state: TaskState) -> list[FrameSummary]:
        """Return where the function of a running task stands."""
        ...

    def require_loop(self, method: str) -> None:
        """Check that the caller runs in the event loop."""
        ...


@ki_protected
class TaskHandle(Generic[T]):
    """A submitted task, with its status and its result. Awaiting it calls `result()`.

    Wait for it in the manager's event loop; its attributes and `cancel()` work from any thread.
    """

    __slots__ = ("__weakref__", "_owner", "_state")

    def __init__(self, state: TaskState, owner: TaskOwner) -> None:
        self._state = state
        self._owner = owner

    @property
    def id(self) -> str:
        """The task's id."""
        return self._state.id

    @property
    def name(self) -> str:
        """The task's name."""
        return self._state.name

    @property
    def kind(self) -> TaskKind:
        """Whether it is a one-off or a loop."""
        return self.task.kind

    @property
    def task(self) -> Task[T]:
        """The task as it was submitted."""
        return self._state.task

    @property
    def meta(self) -> Mapping[str, Any]:
        """The task's metadata."""
        return self.task.meta

    @property
    def job(self) -> JobRef | None:
        """The durable job of which the task is an attempt, or `None`."""
        return self._state.job

    @property
    def status(self) -> TaskStatus:
        """The task's status."""
        return self._state.status

    @property
    def done(self) -> bool:
        """Whether the task has ended."""
        return self._state.status in FINAL

    @property
    def attempt(self) -> int:
        """The number of the attempt in this run or iteration, from 1; 0 before the first."""
        return self._state.attempt

    @property
    def iteration(self) -> int:
        """The number of a loop's iteration, from 1; 0 before the first, and for a one-off."""
        return self._state.iteration

    @property
    def submitted_at(self) -> float:
        """When the task was submitted, in seconds since the epoch."""
        return self._state.submitted_at

    @property
    def started_at(self) -> float | None:
        """When its run, or its latest iteration, began, in seconds since the epoch."""
        return self._state.started_at

    @property
    def finished_at(self) -> float | None:
        """When the task ended, in seconds since the epoch."""
        return self._state.finished_at

    @property
    def error(self) -> BaseException | None:
        """The error of a failed task, or of a loop's latest failed iteration."""
        return self._state.error

    async def wait(self) -> TaskStatus:
        """Wait until the task has ended.

        Returns:
            The final status.

        Raises:
            ManagerMisuseError: The caller runs outside of the manager's event loop.
        """
        state = self._state
        if state.status in FINAL:
            await checkpoint()
            return state.status
        self._owner.require_loop("wait")
        if state.ended is None:
            state.ended = self._owner.event()
        state.waiters += 1
        try:
            await state.ended.wait()
        except BaseException:
            if state.waiters == 1 and state.is_unreported:
                state.is_unreported = False
                state.log_failure()
            raise
        finally:
            state.waiters -= 1
        state.is_unreported = False
        return state.status

    async def result(self) -> T:
        """Wait for the task and return what its function returned.

        Any number of waiters may wait. Cancelling one of them does not affect the task.

        Returns:
            The function's result; `None` for a loop.

        Raises:
            TaskCancelledError: The task was cancelled, or it is a loop and was stopped.
            TaskExpiredError: The task's lifespan ended first.
            Exception: The task's own error, if it failed.
        """
        status = await self.wait()
        state = self._state
        if status is TaskStatus.CANCELLED:
            raise TaskCancelledError(self.name, self.id, state.cancel_reason)
        if status is TaskStatus.EXPIRED:
            assert self.task.lifespan is not None
            raise TaskExpiredError(self.name, self.id, self.task.lifespan)
        if status is TaskStatus.FAILED:
            assert state.error is not None
            raise BaseException.with_traceback(state.error, state.traceback)
        result: T = state.result
        return result

    def __await__(self) -> Generator[Any, Any, T]:
        return self.result().__await__()

    def cancel(self, reason: str | None = None) -> bool:
        """Cancel the task.

        A task that has not started ends at once. A coroutine is cancelled at its current `await`.
        A thread can't be interrupted: the task ends when the thread's function does.

        Args:
            reason: For observers and waiters.

        Returns:
            Whether the task was outstanding.
        """
        return self._owner.cancel(self._state, reason)

    def stack(self) -> list[FrameSummary]:
        """Return the stack of the task's function, outermost frame first.

        For a sync function these are the frames of its thread. Empty unless an attempt runs.
        """
        return self._owner.stack(self._state)

    def __repr__(self) -> str:
        return f"<TaskHandle {self.name!r} {self.id} {self.status}>"


def state_of(handle: TaskHandle[Any]) -> TaskState:
    """Return the state of a handle's task."""
    return handle._state  # pyright: ignore[reportPrivateUsage]  # internal
