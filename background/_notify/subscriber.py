"""A manager's observers: those for all tasks, and those that single tasks bring along."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import anyio

from .._eventloop.backend import Backend
from .._events import TaskFailed
from .._observer import Observer, overrides
from .buffer import Start
from .dispatcher import Hooks, Listener, Order
from .hook_errors import Complaints


class Listeners:
    """Keeps one listener for each observer that may be told of something."""

    def __init__(
        self,
        observers: Sequence[Observer],
        backend: Backend,
        start: Start,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.complaints = Complaints()
        self._backend = backend
        self._start = start
        self._on_fatal = on_fatal
        self._order = Order()
        self._standing = {id(each): self._make(each) for each in observers}
        self._visiting: dict[int, Listener] = {}
        self.hooks = Hooks(self._standing.values(), self._order)

    def _make(self, observer: Observer) -> Listener:
        return Listener(observer, self._backend, self._start, self.complaints, self._on_fatal)

    def hooks_for(self, observers: tuple[Observer, ...]) -> Hooks:
        """Return the hooks for a task, whose own observers are to be taken back by `release`."""
        visitors = [self._visit(each) for each in self._visitors(observers)]
        return Hooks((*self._standing.values(), *visitors), self._order)

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
        """Take back what `hooks_for` gave for a task, once it has been told of its end."""
        self._order.after(partial(self._release, observers))

    def _release(self, observers: tuple[Observer, ...]) -> None:
        for observer in self._visitors(observers):
            listener = self._visiting[id(observer)]
            listener.tasks -= 1
            self._forget(listener)

    def _forget(self, listener: Listener) -> None:
        if not listener.tasks and listener.outbox.empty:
            self._visiting.pop(id(listener.observer), None)

    def watch(self, manager: Any) -> None:
        """Start the observers' own services."""
        for listener in self._standing.values():
            if overrides(listener.observer, "watch"):
                self._start(f"{listener.name}.watch", partial(listener.watch, manager), None)

    def _all(self) -> Sequence[Listener]:
        return (*self._standing.values(), *self._visiting.values())

    async def flush(self, timeout: float) -> None:
        """Let `async def` hooks catch up for at most `timeout` seconds."""
        with anyio.move_on_after(timeout):
            for listener in self._all():
                await listener.outbox.flush()

    def give_up(self) -> list[TaskFailed]:
        """Deliver nothing more, log what went wrong, and return failures that were not told of."""
        left = [call for listener in self._all() for call in listener.outbox.give_up()]
        self.complaints.summarise()
        return [call.event for call in left if isinstance(call.event, TaskFailed)]
