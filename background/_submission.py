"""The ways to submit a function as a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from inspect import CO_COROUTINE
from types import FunctionType, MappingProxyType
from typing import Any, ParamSpec, TypeVar, overload

from ._errors import InvalidTaskError
from ._execution.handle import TaskHandle
from ._observer import collected
from ._schedule import SHORTEST, Schedule
from ._schedule import cron as make_cron
from ._schedule import every as make_every
from ._states import TaskKind
from ._support import redacted, validation
from ._support.calls import check_call
from ._support.frozen import EMPTY
from ._task import (
    OPTIONS,
    Task,
    TaskOptions,
    check_options,
    refuse_declared_loop,
    unchecked,
)

#: The delay of `run()`; the object distinguishes it from a delay of 0.0 of `after()`.
NO_DELAY = float("0")

#: What to write instead of a keyword argument that the function does not take.
_ADVICE = {option: f"manager.options({option}=…)" for option in TaskOptions.__annotations__}
_ADVICE["tz"] = "manager.schedule(cron(…, tz=…), …)"
_ADVICE["jitter"] = "manager.schedule(every(…, jitter=…), …)"

P = ParamSpec("P")
T = TypeVar("T")


class Submitter(ABC):
    """Submits functions as tasks.

    Arguments after the function are passed to it, and are refused if it does not take them; options
    of the task go into `Manager.options()`. Every method may be called from any thread. It returns
    the task's handle at once, and raises what `Manager.run_task()` raises.
    """

    @overload
    def run(
        self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[T]: ...
    @overload
    def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[T]: ...
    def run(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """Run a function once, now.

        Args:
            fn: An `async def` function, or a `def` function, which runs in a thread.
            *args: Positional arguments of the function.
            **kwargs: Keyword arguments of the function.

        Returns:
            The task's handle.

        Raises:
            InvalidTaskError: The task can't be run as described.
            ManagerFullError: There is no room within the manager's capacity.
            DuplicateTaskError: An outstanding task has the same id.
            ManagerClosedError: The manager is closing.
            ManagerNotRunningError: The manager was not entered.
        """
        return self._submit(self._one_off(fn, args, kwargs))

    @overload
    def after(
        self, delay: float, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[T]: ...
    @overload
    def after(
        self, delay: float, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[T]: ...
    def after(
        self, delay: float, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> TaskHandle[Any]:
        """Run a function once, after a delay.

        Args:
            delay: Seconds to wait.
            fn: The function, as in `run`.
            *args: Positional arguments of the function.
            **kwargs: Keyword arguments of the function.

        Returns:
            The task's handle.

        Raises:
            InvalidTaskError: The task can't be run as described.
            ManagerFullError: There is no room within the manager's capacity.
            DuplicateTaskError: An outstanding task has the same id.
            ManagerClosedError: The manager is closing.
            ManagerNotRunningError: The manager was not entered.
        """
        return self._submit(self._one_off(fn, args, kwargs, delay))

    def loop(
        self, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[None]:
        """Run a function again and again, until the loops stop.

        Args:
            fn: The function, as in `run`.
            *args: Positional arguments of the function.
            **kwargs: Keyword arguments of the function.

        Returns:
            The task's handle.

        Raises:
            InvalidTaskError: The task can't be run as described.
            DuplicateTaskError: An outstanding task has the same id.
            LoopsStoppedError: The loops were stopped.
            ManagerClosedError: The manager is closing.
            ManagerNotRunningError: The manager was not entered.
        """
        return self._submit(self._loop(fn, args, kwargs))

    def every(
        self, interval: float, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[None]:
        """Run a function at a fixed rate, the first time at once.

        Args:
            interval: Seconds from one tick to the next.
            fn: The function, as in `run`.
            *args: Positional arguments of the function.
            **kwargs: Keyword arguments of the function.

        Returns:
            The task's handle.

        Raises:
            InvalidTaskError: The task can't be run as described.
            DuplicateTaskError: An outstanding task has the same id.
            LoopsStoppedError: The loops were stopped.
            ManagerClosedError: The manager is closing.
            ManagerNotRunningError: The manager was not entered.
        """
        validation.seconds("interval", interval, at_least=SHORTEST, error=InvalidTaskError)
        return self._submit(self._loop(fn, args, kwargs, make_every(interval)))

    def cron(
        self, expression: str, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[None]:
        """Run a function on a cron schedule in UTC; `schedule` takes other time zones.

        Args:
            expression: A cron expression, as in `background.cron`.
            fn: The function, as in `run`.
            *args: Positional arguments of the function.
            **kwargs: Keyword arguments of the function.

        Returns:
            The task's handle.

        Raises:
            InvalidTaskError: The task can't be run as described.
            DuplicateTaskError: An outstanding task has the same id.
            LoopsStoppedError: The loops were stopped.
            ManagerClosedError: The manager is closing.
            ManagerNotRunningError: The manager was not entered.
        """
        return self._submit(self._loop(fn, args, kwargs, make_cron(expression)))

    def schedule(
        self, schedule: Schedule, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[None]:
        """Run a function on a schedule.

        Args:
            schedule: A schedule from `background.every` or `background.cron`.
            fn: The function, as in `run`.
            *args: Positional arguments of the function.
            **kwargs: Keyword arguments of the function.

        Returns:
            The task's handle.

        Raises:
            InvalidTaskError: The task can't be run as described.
            DuplicateTaskError: An outstanding task has the same id.
            LoopsStoppedError: The loops were stopped.
            ManagerClosedError: The manager is closing.
            ManagerNotRunningError: The manager was not entered.

        Example:
            ```python
            manager.schedule(cron("@daily", tz="Europe/Prague"), report)
            ```
        """
        validation.instances("schedule", (schedule,), Schedule, error=InvalidTaskError)
        return self._submit(self._loop(fn, args, kwargs, schedule))

    @abstractmethod
    def _submit(self, task: Task[Any]) -> TaskHandle[Any]: ...

    @abstractmethod
    def _one_off(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        delay: float = NO_DELAY,
    ) -> Task[Any]: ...

    @abstractmethod
    def _loop(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        schedule: Schedule | None = None,
    ) -> Task[Any]: ...


class Submission(Submitter):
    """The ways to submit a function with options; made by `Manager.options()`."""

    def __init__(
        self, submit: Callable[[Task[Any]], TaskHandle[Any]], options: TaskOptions
    ) -> None:
        check_options("options()", options)
        self._submit_task = submit
        self._options: dict[str, Any] = dict(options)
        if "observers" in options:  # they may be an iterator, which only one task could use
            self._options["observers"] = collected(options["observers"], InvalidTaskError)

    def _submit(self, task: Task[Any]) -> TaskHandle[Any]:
        return self._submit_task(task)

    def _one_off(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        delay: float = NO_DELAY,
    ) -> Task[Any]:
        options = dict(self._options)
        if options.get("kind") is TaskKind.LOOP:
            raise InvalidTaskError("kind: run() and after() take one-off tasks; use loop()")
        if delay is not NO_DELAY:
            if "delay" in options:
                raise InvalidTaskError("delay is given twice, in options() and to after()")
            options["delay"] = delay
        refuse_declared_loop(fn)
        return with_arguments(Task(fn, args=args, kwargs=kwargs, **options))

    def _loop(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        schedule: Schedule | None = None,
    ) -> Task[Any]:
        options: dict[str, Any] = {"kind": TaskKind.LOOP, **self._options}
        if options["kind"] is TaskKind.ONE_OFF:
            raise InvalidTaskError(
                "kind: loop(), every(), cron() and schedule() take loops; use run()"
            )
        if schedule is not None:
            if options.get("schedule") is not None:
                raise InvalidTaskError(
                    "schedule is given twice: in options(), and by every(), cron() or schedule()"
                )
            options["schedule"] = schedule
        return with_arguments(Task(fn, args=args, kwargs=kwargs, **options))

    def __repr__(self) -> str:
        return f"<Submission with {redacted.options(self._options)}>"


def describe_one_off(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], delay: float
) -> Task[Any]:
    """Describe a one-off without options.

    Raises:
        InvalidTaskError: It can't be run as described.
    """
    code = fn.__code__ if fn.__class__ is FunctionType else None
    if code is None or not code.co_flags & CO_COROUTINE or OPTIONS in fn.__dict__:
        refuse_declared_loop(fn)
        return with_arguments(Task(fn, args=args, kwargs=kwargs, delay=delay))
    if kwargs or len(args) != code.co_argcount or code.co_kwonlyargcount:  # else all are given
        check_call(fn, args, kwargs, _ADVICE)
    if delay.__class__ is not float or delay != 0.0:
        validation.seconds("delay", delay, at_least=0, error=InvalidTaskError)
    named = MappingProxyType(kwargs) if kwargs else EMPTY
    return unchecked(fn, args, named, fn.__qualname__, delay)


def with_arguments(task: Task[T]) -> Task[T]:
    """Return a task after a check that its function takes its arguments.

    `Task` does not check that, because a task may be a template for others.

    Raises:
        InvalidTaskError: The function does not take them.
    """
    check_call(task.fn, task.args, task.kwargs, _ADVICE)
    return task
