"""An observer of a manager, and the calls of its hooks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from inspect import iscoroutinefunction
from types import TracebackType
from typing import Any

import anyio

from .._errors import is_fatal
from .._eventloop.backend import Backend
from .._eventloop.services import Services
from .._observer import Observer, overrides
from .buffer import Delivery, EventBuffer, Receipt
from .hook_errors import HookErrors

#: The names of all hooks that get an event.
HOOKS = tuple(name for name in vars(Observer) if name.startswith("on_"))


class Hook:
    """A hook that an observer overrides. `fn` is called with each event."""

    __slots__ = ("fn", "name", "subscriber")

    def __init__(self, subscriber: Subscriber, name: str) -> None:
        self.subscriber = subscriber
        self.name = name
        fn: Callable[[Any], Any] = getattr(subscriber.observer, name)
        self.fn = partial(_Call, fn) if iscoroutinefunction(fn) else fn

    def put(self, answer: Awaitable[object], receipt: Receipt | None) -> bool:
        """Buffer the awaitable that `fn` returned; return `False` if the event is dropped."""
        return self.subscriber.buffer.put(Delivery(self.name, answer, receipt))


class _Call:
    """A call of an `async def` hook, made when it is awaited."""

    __slots__ = ("_event", "_fn")

    def __init__(self, fn: Callable[[Any], Awaitable[Any]], event: object) -> None:
        self._fn = fn
        self._event = event

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._fn(self._event).__await__()


class Subscriber:
    """An observer with its hooks and its buffer.

    Args:
        observer: The observer.
        backend: The event loop.
        services: Runs the deliveries of the buffer.
        errors: Counts errors and dropped events.
        on_fatal: Called with an error that must end the program.
        on_idle: Called when the buffer is empty.
    """

    def __init__(
        self,
        observer: Observer,
        backend: Backend,
        services: Services,
        errors: HookErrors,
        on_fatal: Callable[[BaseException], None],
        on_idle: Callable[[Subscriber], None],
    ) -> None:
        self.observer = observer
        self.name = type(observer).__qualname__
        self.tasks = 0  # outstanding tasks that have this observer
        self.buffer = EventBuffer(
            self.name, backend, services, errors, self.failed, partial(on_idle, self)
        )
        self.hooks = {name: Hook(self, name) for name in HOOKS if overrides(observer, name)}
        self._backend = backend
        self._errors = errors
        self._on_fatal = on_fatal

    def enter_around(self, event: Any) -> AbstractContextManager[object] | None:
        """Enter the observer's context manager around a run, or return `None` if that failed."""
        try:
            context: AbstractContextManager[object] = self.observer.around_task(event)
            context.__enter__()
        except BaseException as error:
            self.failed("around_task", error)
            return None
        return context

    def leave_around(
        self, context: AbstractContextManager[object], error: BaseException | None
    ) -> None:
        """Exit a context manager that `enter_around` returned."""
        try:
            if error is None:
                context.__exit__(None, None, None)
            else:
                context.__exit__(type(error), error, error.__traceback__)
        except BaseException as raised:
            if raised is not error:
                self.failed("around_task", raised)

    async def watch(self, manager: Any) -> None:
        """Run the observer's `watch` service."""
        me = self._backend.current_task()
        try:
            with anyio.CancelScope():  # can't be left if the hook leaves a scope open
                await self._backend.interruptible(self.observer.watch)(manager)
        except BaseException as error:
            if self._backend.ends(me, error):
                raise
            self.failed("watch", error)

    def failed(self, hook: str, error: BaseException) -> None:
        """Record that a hook raised."""
        self._errors.raised(self.name, hook, error)
        if is_fatal(error):
            self._on_fatal(error)


class RunContexts:
    """The context managers that were entered around one run, left in reverse order.

    Itself a context manager: it enters the run's cancel scope, which suppresses the cancellation,
    and keeps in `raised` what the function raised.

    Args:
        subscribers: The observers, in the order in which they are entered.
        event: The start of the run.
        scope: The run's cancel scope.
    """

    __slots__ = ("_entered", "_scope", "raised")

    def __init__(
        self, subscribers: Sequence[Subscriber], event: object, scope: anyio.CancelScope
    ) -> None:
        self.raised: BaseException | None = None
        self._scope = scope
        self._entered = [
            (subscriber, context)
            for subscriber in subscribers
            if (context := subscriber.enter_around(event)) is not None
        ]

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        self.raised = exc
        return bool(self._scope.__exit__(exc_type, exc, tb))

    def leave(self, error: BaseException | None) -> None:
        """Exit all context managers; `error` is the error that ended the run."""
        self.raised = None  # its traceback refers to this object
        for subscriber, context in reversed(self._entered):
            subscriber.leave_around(context, error)
