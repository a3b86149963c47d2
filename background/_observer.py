"""The base class of observers."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AbstractContextManager, nullcontext
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING

from ._support import validation

if TYPE_CHECKING:  # these modules import this one
    from ._events import (
        JobDead,
        JobEnqueued,
        TaskAdded,
        TaskCancelled,
        TaskExpired,
        TaskFailed,
        TaskRetrying,
        TaskStalled,
        TaskStarted,
        TaskSucceeded,
    )
    from ._manager import Manager
    from ._report import ManagerClosed, ManagerClosing


class Observer:
    """Watches tasks, jobs and managers: override the hooks that you need.

    Each `on_` hook may be `def` or `async def`. A `def` hook runs inline, so it must not block. An
    `async def` hook gets its events in order through a bounded buffer of this observer; events that
    do not fit are dropped, counted and logged. A hook that raises is logged and affects no task.

    Example:
        ```python
        class Failures(Observer):
            def on_task_failed(self, event: TaskFailed) -> None:
                print(event.name, event.error)
        ```
    """

    def on_task_added(self, event: TaskAdded) -> Awaitable[None] | None:
        """A task was submitted; called before it can start."""

    def on_task_started(self, event: TaskStarted) -> Awaitable[None] | None:
        """A run or an iteration begins."""

    def on_task_retrying(self, event: TaskRetrying) -> Awaitable[None] | None:
        """An attempt failed, and another one follows."""

    def on_task_succeeded(self, event: TaskSucceeded) -> Awaitable[None] | None:
        """A run or an iteration succeeded."""

    def on_task_failed(self, event: TaskFailed) -> Awaitable[None] | None:
        """A run or an iteration failed, and its policy gave up."""

    def on_task_cancelled(self, event: TaskCancelled) -> Awaitable[None] | None:
        """A task ended by being cancelled."""

    def on_task_expired(self, event: TaskExpired) -> Awaitable[None] | None:
        """A task's lifespan ended before the task did."""

    def on_task_stalled(self, event: TaskStalled) -> Awaitable[None] | None:
        """An attempt takes longer than expected."""

    def on_job_enqueued(self, event: JobEnqueued) -> Awaitable[None] | None:
        """This process enqueued a durable job."""

    def on_job_dead(self, event: JobDead) -> Awaitable[None] | None:
        """A durable job that this process ran gave up; called after `on_task_failed`."""

    def on_manager_closing(self, event: ManagerClosing) -> Awaitable[None] | None:
        """The manager accepts no more tasks."""

    def on_manager_closed(self, event: ManagerClosed) -> Awaitable[None] | None:
        """The manager has closed."""

    def around_task(self, event: TaskStarted) -> AbstractContextManager[object]:
        """Return a context manager to enter inside the task, around each run or iteration.

        The task's function sees the context variables that it sets. At its exit it gets the error
        that ended the run, which it can't suppress.

        At a cancellation this is what a `with` statement in the function gets:
        `asyncio.CancelledError` or `trio.Cancelled`, on trio possibly in a group. It is no
        `Exception`, so tracers and error trackers don't take it for an error. If a durable job is
        cancelled after its function has returned, there is no such exception, and it gets `None`.
        """
        return nullcontext()

    async def watch(self, manager: Manager) -> None:
        """Run concurrently with the tasks until cancelled.

        Called for observers of a manager, not for observers of a single task.

        Args:
            manager: The manager.
        """


def overrides(observer: Observer, name: str) -> bool:
    """Return whether the observer overrides a hook of the base class."""
    return name in getattr(observer, "__dict__", ()) or (
        getattr(type(observer), name, None) is not getattr(Observer, name)
    )


def check_observers(observers: tuple[Observer, ...], error: type[Exception]) -> None:
    """Raise `error` unless all are observers whose `around_task` is not `async def`."""
    validation.instances("observers", observers, Observer, error=error)
    for observer in observers:
        if iscoroutinefunction(observer.around_task):
            raise error(
                f"observers: {type(observer).__name__}.around_task must be a def that returns a "
                "context manager"
            )
