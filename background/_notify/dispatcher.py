"""The delivery of events to the hooks that observers override, in one order for all observers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from inspect import isawaitable
from typing import Protocol

import anyio

from .._eventloop.backend import Backend
from .._eventloop.services import Services
from .._observer import Observer, overrides
from .buffer import Receipt, Then
from .hook_errors import HookErrors
from .subscriber import HOOKS, Hook, Subscriber


class Deliver(Protocol):
    """`Dispatcher.deliver`."""

    def __call__(
        self, hooks: tuple[Hook, ...], event: object, then: Then | None = None, /
    ) -> None: ...


class HookTable:
    """The hooks of one set of observers, by event; an empty tuple means that none is called."""

    __slots__ = ("around", "deliver", *HOOKS)

    deliver: Deliver
    around: tuple[Subscriber, ...]
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

    def __init__(self, subscribers: Sequence[Subscriber], deliver: Deliver) -> None:
        self.deliver = deliver
        self.around = tuple(item for item in subscribers if overrides(item.observer, "around_task"))
        for name in HOOKS:
            hooks = (item.hooks[name] for item in subscribers if name in item.hooks)
            setattr(self, name, tuple(hooks))


class Dispatcher:
    """The observers of one manager and of its tasks.

    Args:
        observers: The manager's observers.
        backend: The event loop.
        services: Runs `async def` hooks and `watch()`.
        on_fatal: Called with an error of a hook that must end the program.
    """

    def __init__(
        self,
        observers: Iterable[Observer],
        backend: Backend,
        services: Services,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.hook_errors = HookErrors()
        self._backend = backend
        self._services = services
        self._on_fatal = on_fatal
        self._own = {id(observer): self._subscriber(observer) for observer in observers}
        self._task_subscribers: dict[int, Subscriber] = {}
        self._is_delivering = False
        self._next: deque[tuple[tuple[Hook, ...], object, Then | None]] = deque()
        self.hooks = HookTable(tuple(self._own.values()), self.deliver)

    def _subscriber(self, observer: Observer) -> Subscriber:
        return Subscriber(
            observer,
            self._backend,
            self._services,
            self.hook_errors,
            self._on_fatal,
            self._drop_if_unused,
        )

    def deliver(self, hooks: tuple[Hook, ...], event: object, then: Then | None = None) -> None:
        """Call hooks with an event.

        An event that a hook causes is delivered after all hooks got the current event. All
        observers therefore see all events in the same order.

        Args:
            hooks: The hooks.
            event: The event.
            then: Called afterwards with whether any hook accepted the event. Called again, with
                `False`, if all that accepted it are buffered and fail.
        """
        if self._is_delivering:
            self._next.append((hooks, event, then))
            return
        self._is_delivering = True
        try:
            while True:
                receipt = None if then is None else Receipt(then)
                arrived = buffered = False
                for hook in hooks:
                    try:
                        answer = hook.fn(event)
                        if answer is None or not isawaitable(answer):
                            arrived = True
                        elif hook.put(answer, receipt):
                            buffered = True
                    except BaseException as error:
                        hook.subscriber.failed(hook.name, error)
                if receipt is not None:
                    receipt.has_arrived = arrived
                    receipt.then(arrived or buffered)
                if not self._next:
                    return
                hooks, event, then = self._next.popleft()
        finally:
            self._is_delivering = False

    def add_task_observers(self, observers: tuple[Observer, ...]) -> HookTable:
        """Add the observers of a task until `dismiss`, and return the hooks of the task."""
        task_subscribers = [self._guest(observer) for observer in self._without_own(observers)]
        for guest in task_subscribers:
            guest.tasks += 1
        return HookTable((*self._own.values(), *task_subscribers), self.deliver)

    def remove_task_observers(self, observers: tuple[Observer, ...]) -> None:
        """Remove the observers of a task, after the current deliveries."""
        then = partial(self._dismiss, observers)
        if self._is_delivering:
            self._next.append(((), None, then))
        else:
            then(False)

    def _dismiss(self, observers: tuple[Observer, ...], _: bool) -> None:
        for observer in self._without_own(observers):
            guest = self._task_subscribers[id(observer)]
            guest.tasks -= 1
            self._drop_if_unused(guest)

    def _without_own(self, observers: tuple[Observer, ...]) -> Iterable[Observer]:
        """Return the observers that are not the manager's, without duplicates."""
        by_id = {id(observer): observer for observer in observers}
        return [observer for key, observer in by_id.items() if key not in self._own]

    def _guest(self, observer: Observer) -> Subscriber:
        if id(observer) not in self._task_subscribers:
            self._task_subscribers[id(observer)] = self._subscriber(observer)
        return self._task_subscribers[id(observer)]

    def _drop_if_unused(self, subscriber: Subscriber) -> None:
        if not subscriber.tasks and subscriber.buffer.is_empty:
            self._task_subscribers.pop(id(subscriber.observer), None)

    def start_watching(self, manager: object) -> None:
        """Start the `watch()` services of the manager's observers."""
        for subscriber in self._own.values():
            if overrides(subscriber.observer, "watch"):
                name = f"{subscriber.name}.watch"
                self._services.start(name, partial(subscriber.watch, manager))

    async def flush(self, timeout: float) -> None:
        """Wait for at most `timeout` seconds until the buffers are empty."""
        with anyio.move_on_after(timeout):
            for subscriber in self._all():
                await subscriber.buffer.flush()

    def close(self) -> None:
        """Stop delivering, and log the counts of errors."""
        for subscriber in self._all():
            subscriber.buffer.close()
        self.hook_errors.summarise()

    def _all(self) -> Sequence[Subscriber]:
        return (*self._own.values(), *self._task_subscribers.values())
