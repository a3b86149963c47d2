"""Telling observers: only of what they ask for, and never at the tasks' expense."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from typing import Any

import anyio

from ._events import TaskStarted
from ._observe import Observer, overrides
from ._outbox import Outbox, Start

logger = logging.getLogger("background")

Tell = Callable[[Any], bool]

_HOOKS = tuple(name for name in vars(Observer) if name.startswith("on_"))


class Hooks:
    """What to call for each event, for one set of listeners; an empty tuple costs nothing."""

    __slots__ = ("around", *_HOOKS)

    around: tuple[Listener, ...]
    on_task_added: tuple[Tell, ...]
    on_task_started: tuple[Tell, ...]
    on_task_retrying: tuple[Tell, ...]
    on_task_succeeded: tuple[Tell, ...]
    on_task_failed: tuple[Tell, ...]
    on_task_cancelled: tuple[Tell, ...]
    on_task_expired: tuple[Tell, ...]
    on_task_stalled: tuple[Tell, ...]
    on_manager_closing: tuple[Tell, ...]
    on_manager_closed: tuple[Tell, ...]

    def __init__(self, listeners: Iterable[Listener]) -> None:
        listeners = tuple(listeners)
        self.around = tuple(each for each in listeners if each.wants("around_task"))
        for name in _HOOKS:
            setattr(self, name, tuple(each.hooks[name] for each in listeners if name in each.hooks))


def tell(hooks: tuple[Tell, ...], event: object) -> bool:
    """Tell every hook; return whether one at least has taken it."""
    told = False
    for hook in hooks:
        told = hook(event) or told
    return told


class Listener:
    """One observer, as one manager calls it."""

    def __init__(
        self, observer: Observer, start: Start, on_fatal: Callable[[BaseException], None]
    ) -> None:
        self.observer = observer
        self.name = type(observer).__qualname__
        self.tasks = 0  # outstanding ones that brought this observer along
        self.outbox = Outbox(self.name, start, self._failed)
        self.errors: Counter[str] = Counter()
        self._on_fatal = on_fatal
        self.hooks: dict[str, Tell] = {}
        for name in _HOOKS:
            if self.wants(name):
                hook = getattr(observer, name)
                call = self._later if iscoroutinefunction(hook) else self._now
                self.hooks[name] = partial(call, name, hook)

    def wants(self, name: str) -> bool:
        """Tell whether the observer overrides this hook."""
        return overrides(self.observer, name)

    def _now(self, name: str, hook: Callable[[Any], Any], event: object) -> bool:
        try:
            answer = hook(event)
        except BaseException as error:
            self._failed(name, error)
            return False
        if answer is not None and isawaitable(answer):
            return self.outbox.put(name, lambda: answer)
        return True

    def _later(self, name: str, hook: Callable[[Any], Any], event: object) -> bool:
        return self.outbox.put(name, partial(hook, event))

    def enter_around(self, event: TaskStarted) -> AbstractContextManager[object] | None:
        """Enter the observer's context manager around a run; `None` if it failed."""
        try:
            context: AbstractContextManager[object] = self.observer.around_task(event)
            context.__enter__()
        except BaseException as error:
            self._failed("around_task", error)
            return None
        return context

    def leave_around(
        self, context: AbstractContextManager[object], error: BaseException | None
    ) -> None:
        """Leave what `enter_around` returned."""
        try:
            context.__exit__(
                type(error) if error else None, error, error.__traceback__ if error else None
            )
        except BaseException as raised:
            if raised is not error:
                self._failed("around_task", raised)

    async def watch(self, manager: Any) -> None:
        """Run the observer's `watch` service."""
        try:
            await self.observer.watch(manager)
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            raise
        except BaseException as error:
            self._failed("watch", error)

    def _failed(self, name: str, error: BaseException) -> None:
        self.errors[name] += 1
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._on_fatal(error)
        elif self.errors[name] == 1:
            logger.error(
                "%s.%s raised; the task is unharmed; further errors of this hook are counted until "
                "the manager closes",
                self.name,
                name,
                exc_info=error,
            )

    def summarise(self) -> None:
        """Log what went wrong more than once."""
        for name, count in self.errors.items():
            if count > 1:
                logger.error("%s.%s raised %d times", self.name, name, count)
        if self.outbox.dropped:
            logger.warning(
                "%s was too slow for %d events, which it missed", self.name, self.outbox.dropped
            )


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


class Listeners:
    """A manager's observers: those for all tasks, and those that single tasks bring along."""

    def __init__(
        self, observers: Sequence[Observer], start: Start, on_fatal: Callable[[BaseException], None]
    ) -> None:
        self._start = start
        self._on_fatal = on_fatal
        self._standing = {id(each): self._make(each) for each in observers}
        self._visiting: dict[int, Listener] = {}
        self._past_errors = 0
        self._past_dropped = 0
        self.hooks = Hooks(self._standing.values())

    def _make(self, observer: Observer) -> Listener:
        return Listener(observer, self._start, self._on_fatal)

    def hooks_for(self, observers: tuple[Observer, ...]) -> Hooks:
        """Return the hooks for a task with observers of its own, to be given back by `release`."""
        visitors = [self._visit(each) for each in self._visitors(observers)]
        return Hooks((*self._standing.values(), *visitors))

    def _visitors(self, observers: tuple[Observer, ...]) -> Iterable[Observer]:
        return {id(each): each for each in observers if id(each) not in self._standing}.values()

    def _visit(self, observer: Observer) -> Listener:
        listener = self._visiting.get(id(observer))
        if listener is None:
            listener = self._visiting[id(observer)] = self._make(observer)
            listener.outbox.on_empty = partial(self._forget, listener)
        listener.tasks += 1
        return listener

    def release(self, observers: tuple[Observer, ...]) -> None:
        """Take back what `hooks_for` gave for a task."""
        for observer in self._visitors(observers):
            listener = self._visiting[id(observer)]
            listener.tasks -= 1
            self._forget(listener)

    def _forget(self, listener: Listener) -> None:
        if not listener.tasks and listener.outbox.empty:
            del self._visiting[id(listener.observer)]
            listener.summarise()
            self._past_errors += listener.errors.total()
            self._past_dropped += listener.outbox.dropped

    def watch(self, manager: Any) -> None:
        """Start the observers' own services."""
        for listener in self._standing.values():
            if listener.wants("watch"):
                self._start(f"{listener.name}.watch", partial(listener.watch, manager))

    def _all(self) -> Sequence[Listener]:
        return (*self._standing.values(), *self._visiting.values())

    async def flush(self, timeout: float) -> None:
        """Let `async def` hooks catch up for at most `timeout` seconds."""
        with anyio.move_on_after(timeout):
            for listener in self._all():
                await listener.outbox.flush()

    def summarise(self) -> None:
        """Log what went wrong more than once."""
        for listener in self._all():
            listener.summarise()

    @property
    def errors(self) -> int:
        """How often a hook has raised."""
        return self._past_errors + sum(each.errors.total() for each in self._all())

    @property
    def dropped(self) -> int:
        """How many events have found an outbox full."""
        return self._past_dropped + sum(each.outbox.dropped for each in self._all())
