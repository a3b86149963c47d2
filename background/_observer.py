"""The base class of observers."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from contextlib import AbstractContextManager, nullcontext
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

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

    A subclass with a method `on_…` that is not a hook, such as a misspelt one, raises `TypeError`
    when it is defined.

    Example:
        ```python
        class Failures(Observer):
            def on_task_failed(self, event: TaskFailed) -> None:
                print(event.name, event.error)
        ```
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_names(cls)

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


_EVENTS = ("on_task_", "on_job_", "on_manager_")


def _check_names(cls: type[Observer]) -> None:
    """Raise `TypeError` if a class has a method that looks like a hook, but is none.

    A class that is no observer may have methods `on_…` of its own, and a class that inherits from
    both may override them, but they can't be named like an event of ours.
    """
    classes: tuple[type[Any], ...] = cls.__mro__
    strangers = [base for base in classes if not issubclass(base, Observer)]
    theirs = {name for base in strangers for name in vars(base)}
    for base in (cls, *strangers):
        for name, value in vars(base).items():
            is_method = callable(value) or isinstance(value, (classmethod, staticmethod))
            if not name.startswith("on_") or not is_method or name in vars(Observer):
                continue
            if name not in theirs or name.startswith(_EVENTS):
                what = f"{base.__qualname__}.{name}"
                raise TypeError(f"{what} is not a hook of Observer{_advice(name)}")


def _advice(name: str) -> str:
    from difflib import get_close_matches  # takes a while to import

    hooks = [hook for hook in vars(Observer) if hook.startswith("on_")]
    similar = get_close_matches(name, hooks, cutoff=0.8)
    if similar:
        return f"; did you mean {' or '.join(similar)}?"
    return f", which has {', '.join(hooks)}; name a method that is no hook without on_"


def overrides(observer: Observer, name: str) -> bool:
    """Return whether the observer overrides a hook of the base class."""
    return name in getattr(observer, "__dict__", ()) or (
        getattr(type(observer), name, None) is not getattr(Observer, name)
    )


def collected(
    observers: Observer | Iterable[Observer], error: type[Exception] = ValueError
) -> tuple[Observer, ...]:
    """Return one observer, or several, as a tuple; raise `error` if they can't be iterated."""
    if isinstance(observers, Observer):
        return (observers,)
    return validation.collected("observers", observers, error=error)


def check_observers(observers: tuple[Observer, ...], error: type[Exception]) -> None:
    """Raise `error` unless all are observers whose `around_task` is not `async def`."""
    validation.instances("observers", observers, Observer, error=error)
    for observer in observers:
        if iscoroutinefunction(observer.around_task):
            raise error(
                f"observers: {type(observer).__name__}.around_task must be a def that returns a "
                "context manager"
            )
