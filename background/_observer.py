"""The base class of everything that watches tasks."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AbstractContextManager, nullcontext
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING

from ._events import (
    JobDead,
    JobEnqueued,
    ManagerClosed,
    ManagerClosing,
    TaskAdded,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskRetrying,
    TaskStalled,
    TaskStarted,
    TaskSucceeded,
)
from ._support import validation

if TYPE_CHECKING:
    from ._manager import Manager


class Observer:
    """Told of what happens to tasks; override the hooks that matter to you.

    Each `on_` hook may be `def` or `async def`. A `def` hook runs inline, so it must not block.
    An `async def` hook gets its events in order through a bounded buffer of this observer's own;
    what overflows is counted and logged. A hook that raises is logged, and harms nothing.

        class Failures(Observer):
            def on_task_failed(self, event: TaskFailed) -> None:
                print(event.name, event.error)
    """

    def on_task_added(self, event: TaskAdded) -> Awaitable[None] | None:
        """A task was taken; told before it can start."""

    def on_task_started(self, event: TaskStarted) -> Awaitable[None] | None:
        """A run or an iteration begins."""

    def on_task_retrying(self, event: TaskRetrying) -> Awaitable[None] | None:
        """An attempt failed and there will be another."""

    def on_task_succeeded(self, event: TaskSucceeded) -> Awaitable[None] | None:
        """A run or an iteration succeeded."""

    def on_task_failed(self, event: TaskFailed) -> Awaitable[None] | None:
        """A run or an iteration failed and its policy has given up."""

    def on_task_cancelled(self, event: TaskCancelled) -> Awaitable[None] | None:
        """A task ended by being cancelled."""

    def on_task_expired(self, event: TaskExpired) -> Awaitable[None] | None:
        """A task's lifespan ended before the task did."""

    def on_task_stalled(self, event: TaskStalled) -> Awaitable[None] | None:
        """An attempt is taking suspiciously long."""

    def on_job_enqueued(self, event: JobEnqueued) -> Awaitable[None] | None:
        """A durable job was enqueued by this process."""

    def on_job_dead(self, event: JobDead) -> Awaitable[None] | None:
        """A durable job that this process ran has given up; told after `on_task_failed`."""

    def on_manager_closing(self, event: ManagerClosing) -> Awaitable[None] | None:
        """The manager takes no more tasks."""

    def on_manager_closed(self, event: ManagerClosed) -> Awaitable[None] | None:
        """The manager has closed."""

    def around_task(self, event: TaskStarted) -> AbstractContextManager[object]:
        """Return a context manager to enter inside the task, around each run or iteration.

        Context variables set by entering it are seen by the task's function. Leaving it gets the
        error that ended the run, if any, but can't suppress it.
        """
        return nullcontext()

    async def watch(self, manager: Manager) -> None:
        """Run beside the tasks for as long as the manager does; then cancelled.

        Called for a manager's observers only, not for those of a single task.
        """


def overrides(observer: Observer, name: str) -> bool:
    """Tell whether the observer has a hook of its own instead of the base class's empty one."""
    return name in getattr(observer, "__dict__", ()) or (
        getattr(type(observer), name, None) is not getattr(Observer, name)
    )


def check_observers(observers: tuple[Observer, ...], error: type[Exception]) -> None:
    """Refuse what can't be told of a task."""
    validation.instances("observers", observers, Observer, error=error)
    for observer in observers:
        if iscoroutinefunction(observer.around_task):
            raise error(
                f"observers: {type(observer).__name__}.around_task must be a def that returns a "
                "context manager"
            )
