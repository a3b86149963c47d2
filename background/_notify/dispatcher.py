"""Telling observers: only of what they ask for, in order, and never at the tasks' expense."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from typing import Any

import anyio

from .._errors import is_fatal
from .._eventloop.backend import Backend
from .._events import TaskStarted
from .._observer import Observer, overrides
from .buffer import Call, Outbox, Start
from .hook_errors import Complaints

Then = Callable[[bool], None]

_HOOKS = tuple(name for name in vars(Observer) if name.startswith("on_"))


class Order:
    """Tells one event at a time, so that all observers see all events in the same order.

    What a hook causes is told when every observer has heard of what caused it.
    """

    __slots__ = ("_busy", "_next")

    def __init__(self) -> None:
        self._busy = False
        self._next: deque[tuple[tuple[Hook, ...], object, Then | None]] = deque()

    def tell(self, hooks: tuple[Hook, ...], event: object, then: Then | None = None) -> None:
        """Tell every hook; call `then` with whether one of them has taken the event."""
        if self._busy:
            self._next.append((hooks, event, then))
            return
        self._busy = True
        try:
            while True:
                told = False
                for hook in hooks:
                    try:
                        answer = hook.fn(event)
                        if answer is None or hook.took(event, answer):
                            told = True
                    except BaseException as error:
                        hook.listener.failed(hook.name, error)
                if then is not None:
                    then(told)
                if not self._next:
                    return
                hooks, event, then = self._next.popleft()
        finally:
            self._busy = False

    def after(self, fn: Callable[[], None]) -> None:
        """Call `fn` when all that is being told has been told."""
        if self._busy:
            self._next.append(((), None, lambda told: fn()))
        else:
            fn()


class Hook:
    """What one listener has to be called with for one kind of event."""

    __slots__ = ("fn", "listener", "name")

    def __init__(self, listener: Listener, name: str) -> None:
        self.listener = listener
        self.name = name
        fn: Callable[[Any], Any] = getattr(listener.observer, name)
        self.fn = partial(_Later, fn) if iscoroutinefunction(fn) else fn

    def took(self, event: object, answer: object) -> bool:
        """Tell whether the event will have been taken; an awaitable answer is awaited later."""
        if not isawaitable(answer):
            return True
        return self.listener.outbox.put(Call(self.name, event, answer))


class _Later:
    """The answer of an `async def` hook, which is called when its turn has come."""

    __slots__ = ("_event", "_fn")

    def __init__(self, fn: Callable[[Any], Awaitable[Any]], event: object) -> None:
        self._fn = fn
        self._event = event

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._fn(self._event).__await__()


class Hooks:
    """What to call for each event, for one set of listeners; an empty tuple costs nothing."""

    __slots__ = ("around", "tell", *_HOOKS)

    around: tuple[Listener, ...]
    on_task_added: tuple[Hook, ...]
    on_task_started: tuple[Hook, ...]
    on_task_retrying: tuple[Hook, ...]
    on_task_succeeded: tuple[Hook, ...]
    on_task_failed: tuple[Hook, ...]
    on_task_cancelled: tuple[Hook, ...]
    on_task_expired: tuple[Hook, ...]
    on_task_stalled: tuple[Hook, ...]
    on_job_enqueued: tuple[Hook, ...]
    on_job_dead: tuple[Hook, ...]
    on_manager_closing: tuple[Hook, ...]
    on_manager_closed: tuple[Hook, ...]

    def __init__(self, listeners: Iterable[Listener], order: Order) -> None:
        listeners = tuple(listeners)
        self.tell = order.tell
        self.around = tuple(each for each in listeners if overrides(each.observer, "around_task"))
        for name in _HOOKS:
            hooks = (each.hooks[name] for each in listeners if name in each.hooks)
            setattr(self, name, tuple(hooks))


class Listener:
    """One observer, as one manager calls it."""

    def __init__(
        self,
        observer: Observer,
        backend: Backend,
        start: Start,
        complaints: Complaints,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.observer = observer
        self.name = type(observer).__qualname__
        self.tasks = 0  # outstanding ones that brought this observer along
        self.outbox = Outbox(self.name, backend, start, complaints, self.failed)
        self._backend = backend
        self._complaints = complaints
        self._on_fatal = on_fatal
        self.hooks = {name: Hook(self, name) for name in _HOOKS if overrides(observer, name)}

    def enter_around(self, event: TaskStarted) -> AbstractContextManager[object] | None:
        """Enter the observer's context manager around a run; `None` if it failed."""
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
        """Leave what `enter_around` returned."""
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
            with anyio.CancelScope():  # which can't be left if the hook leaves one open
                await self._backend.interruptible(self.observer.watch)(manager)
        except BaseException as error:
            if self._backend.ends(me, error):
                raise
            self.failed("watch", error)

    def failed(self, hook: str, error: BaseException) -> None:
        """Take note that a hook raised."""
        self._complaints.raised(self.name, hook, error)
        if is_fatal(error):
            self._on_fatal(error)


class Around:
    """The context managers entered around one run, left in reverse order."""

    __slots__ = ("_entered",)

    def __init__(self, listeners: Sequence[Listener], event: TaskStarted) -> None:
        self._entered = [
            (each, context)
            for each in listeners
            if (context := each.enter_around(event)) is not None
        ]

    def leave(self, error: BaseException | None) -> None:
        for listener, context in reversed(self._entered):
            listener.leave_around(context, error)
