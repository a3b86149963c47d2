"""The description of a task, and the options that a function can have."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, Unpack, overload

from ._errors import InvalidTaskError
from ._observer import Observer, check_observers, collected, overrides
from ._retry import Retry, make_policy
from ._schedule import Schedule
from ._states import TaskKind
from ._support import callables, redacted, validation
from ._support.frozen import EMPTY, empty, frozen, thawed

T = TypeVar("T")
FnT = TypeVar("FnT", bound=Callable[..., Any])

#: The attribute of a function that has options.
OPTIONS = "__background_task__"


class TaskOptions(TypedDict, total=False):
    """The options of a task: the fields of `Task` without the function and its arguments."""

    kind: TaskKind
    schedule: Schedule | None
    delay: float
    timeout: float | None
    lifespan: float | None
    retry: Retry
    id: str | None
    name: str | None
    meta: Mapping[str, Any]
    observers: Observer | Iterable[Observer]
    critical: bool
    max_failures: int | None
    stall_after: float | None
    context: contextvars.Context | None


@frozen
class Task(Generic[T]):
    """A function and how to run it, for `Manager.run_task()` and `Manager.submit()`.

    An option that has its default value, even if it is given explicitly, takes the value that
    `@task` gave the function.

    Args:
        fn: An `async def` function; or a `def` function, which runs in a thread. An awaitable that
            it returns is awaited in the event loop.
        args: Positional arguments of the function.
        kwargs: Keyword arguments of the function.
        kind: `ONE_OFF`, or `LOOP` to run it repeatedly.
        schedule: When a loop's iterations start, from `every()` or `cron()`; `None` to start each
            one when the last has ended.
        delay: Seconds before the first start.
        timeout: Seconds for one attempt, which then fails with `TimeoutError`. A sync function
            can't be interrupted: it fails when it returns.
        lifespan: Seconds from submission for everything; then the task is `EXPIRED`.
        retry: A `tenacity.AsyncRetrying`; or a number of attempts, with exponential, jittered waits
            of 0.1 to 30 seconds; or `None` for the manager's. In a loop it applies to each
            iteration.
        id: Refused while another outstanding task has it; by default unique.
        name: A name for people and telemetry; by default the function's qualified name.
        meta: Metadata for observers.
        observers: Observers of this task only, one or several, in addition to the manager's.
        critical: Whether its final failure cancels everything and leaves the manager's block in an
            `ExceptionGroup`. A loop fails finally only by `max_failures`.
        max_failures: Failed iterations in a row that end a loop as `FAILED`.
        stall_after: Seconds, instead of `after` of the manager's `StallObserver`.
        context: The context variables to start from; by default a copy of the submitter's.

    Raises:
        InvalidTaskError: An argument is not valid; the message names it.
    """

    fn: Callable[..., Awaitable[T] | T] = field(kw_only=False)
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=empty)
    kind: TaskKind = TaskKind.ONE_OFF
    schedule: Schedule | None = None
    delay: float = 0.0
    timeout: float | None = None
    lifespan: float | None = None
    retry: Retry = None
    id: str | None = None
    name: str | None = None
    meta: Mapping[str, Any] = field(default_factory=empty)
    observers: tuple[Observer, ...] = ()
    critical: bool = False
    max_failures: int | None = None
    stall_after: float | None = None
    context: contextvars.Context | None = None

    if TYPE_CHECKING:  # from `Awaitable[T] | T`, mypy can't infer T for an async function

        @overload
        def __init__(
            self,
            fn: Callable[..., Awaitable[T]],
            *,
            args: tuple[Any, ...] = ...,
            kwargs: Mapping[str, Any] = ...,
            **options: Unpack[TaskOptions],
        ) -> None: ...
        @overload
        def __init__(
            self,
            fn: Callable[..., T],
            *,
            args: tuple[Any, ...] = ...,
            kwargs: Mapping[str, Any] = ...,
            **options: Unpack[TaskOptions],
        ) -> None: ...
        def __init__(self, fn: Any, **options: Any) -> None: ...

    def __post_init__(self) -> None:
        if isinstance(self.fn, Task):
            raise InvalidTaskError("fn must be a function; a Task is for run_task()")
        callables.check(self.fn)
        for option, value in _options_of(self.fn).items():
            if getattr(self, option) == _DEFAULTS[option]:
                object.__setattr__(self, option, value)
        if self.name is None:
            object.__setattr__(self, "name", callables.name_of(self.fn))
        if self.args.__class__ is not tuple:
            args = validation.collected("args", self.args, error=InvalidTaskError)
            object.__setattr__(self, "args", args)
        if self.kwargs is not EMPTY:
            object.__setattr__(self, "kwargs", _as_mapping("kwargs", self.kwargs))
        if self.meta is not EMPTY:
            object.__setattr__(self, "meta", _as_mapping("meta", self.meta))
        if self.observers.__class__ is not tuple or self.observers:
            observers = collected(self.observers, InvalidTaskError)
            object.__setattr__(self, "observers", observers)
            _check_own_observers(observers)
        self._check_times()
        self._check_loop()
        self._check_identity()

    def __repr__(self) -> str:
        """Return the function and the options that differ from their defaults, without values."""
        fn = callables.name_of(self.fn)
        shown = {
            "args": redacted.kinds(self.args) if self.args else None,
            "kwargs": redacted.kinds_by_name(self.kwargs) if self.kwargs else None,
            "meta": redacted.kinds_by_name(self.meta) if self.meta else None,
            "name": None if self.name == fn else repr(self.name),
        }
        for option, default in _DEFAULTS.items():
            value = getattr(self, option)
            shown.setdefault(option, None if value == default else repr(value))
        texts = [f"{option}={text}" for option, text in shown.items() if text is not None]
        return f"Task({', '.join([fn, *texts])})"

    def _check_times(self) -> None:
        if self.delay != 0.0 or self.delay.__class__ is not float:
            validation.seconds("delay", self.delay, at_least=0, error=InvalidTaskError)
        for argument in ("timeout", "lifespan", "stall_after"):
            value = getattr(self, argument)
            if value is not None:
                validation.seconds(argument, value, above=0, error=InvalidTaskError)
        if self.lifespan is not None and self.lifespan <= self.delay:
            raise InvalidTaskError(
                f"lifespan must be longer than the delay of {self.delay:g} s, "
                f"not {self.lifespan!r}; it counts from submission"
            )

    def _check_loop(self) -> None:
        if not isinstance(self.kind, TaskKind):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTaskError(f"kind must be a TaskKind, not {self.kind!r}")
        if self.schedule is None and self.max_failures is None:
            return
        for argument in ("schedule", "max_failures"):
            if self.kind is TaskKind.ONE_OFF and getattr(self, argument) is not None:
                raise InvalidTaskError(
                    f"{argument} is for loops; give kind=TaskKind.LOOP too, or leave it out"
                )
        if self.max_failures is not None:
            validation.count("max_failures", self.max_failures, error=InvalidTaskError)
        if self.schedule is not None:
            validation.instances("schedule", (self.schedule,), Schedule, error=InvalidTaskError)

    def _check_identity(self) -> None:
        if self.retry is not None:
            make_policy(self.retry)
        for argument in ("id", "name"):
            value = getattr(self, argument)
            if value is not None and not (isinstance(value, str) and value):
                raise InvalidTaskError(
                    f"{argument} must be a string that is not empty, not {value!r}"
                )
        if self.critical.__class__ is not bool:
            raise InvalidTaskError(f"critical must be True or False, not {self.critical!r}")
        if self.context is not None:
            validation.instances(
                "context", (self.context,), contextvars.Context, error=InvalidTaskError
            )


#: The default of each option; `fn`, `args` and `kwargs` are not options.
_DEFAULTS: Mapping[str, Any] = {
    option.name: EMPTY if option.name == "meta" else option.default
    for option in fields(Task)
    if option.name not in ("fn", "args", "kwargs")
}


@overload
def task(fn: FnT, /) -> FnT: ...
@overload
def task(**options: Unpack[TaskOptions]) -> Callable[[FnT], FnT]: ...
def task(fn: Any = None, /, **options: Any) -> Any:
    """Give a function options, which every way of submitting it uses.

    The function stays callable as before.

    Args:
        fn: The function, if the decorator is used without parentheses.
        **options: The options of `Task`. `schedule` and `max_failures` make it a loop.

    Returns:
        A decorator, or the function.

    Raises:
        InvalidTaskError: An option is not valid; raised by the decorator.
        TypeError: There is no such option.

    Example:
        ```python
        @task(retry=3, timeout=10)
        async def fetch(url: str) -> bytes: ...
        ```
    """
    check_options("@task", options)
    if options.get("schedule") is not None or options.get("max_failures") is not None:
        options.setdefault("kind", TaskKind.LOOP)

    def decorate(fn: FnT) -> FnT:
        described: Task[Any] = Task(fn, **options)
        chosen = {option: getattr(described, option) for option in options}
        setattr(fn, OPTIONS, MappingProxyType(chosen))
        return fn

    return decorate if fn is None else decorate(fn)


def check_options(taker: str, options: Mapping[str, object]) -> None:
    """Check that options exist.

    Raises:
        TypeError: There is no such option.
    """
    unknown = options.keys() - _DEFAULTS.keys()
    if unknown:
        raise TypeError(
            f"{taker} has no option {', '.join(sorted(unknown))}; it takes {', '.join(_DEFAULTS)}"
        )


def _options_of(fn: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the options that `@task` gave a function."""
    options: Any = getattr(fn, OPTIONS, None)  # of any type, if the object has any attribute
    return options if options.__class__ is MappingProxyType else EMPTY


_new = object.__new__
_Thawed = thawed(Task)


def unchecked(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    name: str,
    delay: float = 0.0,
    timeout: float | None = None,
    id: str | None = None,
    meta: Mapping[str, Any] = EMPTY,
    observers: tuple[Observer, ...] = (),
) -> Task[Any]:
    """Describe a one-off whose options are valid, without `__init__` (see `thawed`)."""
    task: Any = _new(_Thawed)
    task.fn = fn
    task.args = args
    task.kwargs = kwargs
    task.kind = TaskKind.ONE_OFF
    task.schedule = None
    task.delay = delay
    task.timeout = timeout
    task.lifespan = None
    task.retry = None
    task.id = id
    task.name = name
    task.meta = meta
    task.observers = observers
    task.critical = False
    task.max_failures = None
    task.stall_after = None
    task.context = None
    task.__class__ = Task
    described: Task[Any] = task
    return described


def refuse_declared_loop(fn: Callable[..., Any]) -> None:
    """Check that `@task` does not declare a function as a loop.

    Raises:
        InvalidTaskError: The function is declared as a loop.
    """
    if _options_of(fn).get("kind") is TaskKind.LOOP:
        raise InvalidTaskError(
            f"fn is declared a loop by @task: start {callables.name_of(fn)} with loop()"
        )


def _check_own_observers(observers: tuple[Observer, ...]) -> None:
    check_observers(observers, InvalidTaskError)
    for observer in observers:
        if overrides(observer, "watch"):
            raise InvalidTaskError(
                f"observers of a task can't watch(): pass the {type(observer).__name__} to "
                "Manager(observers=…) instead"
            )


def _as_mapping(argument: str, value: Any) -> Mapping[str, Any]:
    kind = type(value).__qualname__
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):  # pyright: ignore[reportUnknownVariableType]
        raise InvalidTaskError(f"{argument} must be a mapping with str keys, not this {kind}")
    return MappingProxyType(dict(value))  # pyright: ignore[reportUnknownArgumentType]
