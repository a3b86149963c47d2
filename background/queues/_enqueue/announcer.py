"""Telling observers of jobs that were enqueued, with a manager or without."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING

from ..._eventloop.backend import current_backend
from ..._eventloop.services import Services
from ..._events import JobEnqueued, JobRef
from ..._notify.subscriber import Listeners
from ..._observer import Observer, check_observers, overrides
from ..._states import ManagerState
from ..._support import clock, validation
from ..abc import Message
from .options import Options

if TYPE_CHECKING:
    from ..._lifecycle.runtime import Lifecycle


def checked(observers: Collection[Observer]) -> tuple[Observer, ...]:
    """Return observers of jobs. Raises `ValueError` for what can't be one."""
    collected = validation.collected("observers", observers)
    check_observers(collected, ValueError)
    for each in collected:
        if overrides(each, "watch"):
            raise ValueError(
                f"observers: a {type(each).__name__} has to watch() tasks: give it to "
                "Manager(observers=…)"
            )
    return collected


class Announcer:
    """Tells a queue's observers, those of handlers, and those of the managers it works for."""

    def __init__(self, observers: tuple[Observer, ...]) -> None:
        backend = current_backend()
        self._observers = observers
        self._fatal: list[BaseException] = []
        self._services = Services(backend, copy_context())
        self._own = Listeners(observers, backend, self._services.start, self._fatal.append)
        self._lives: list[Lifecycle] = []

    def join(self, life: Lifecycle) -> None:
        """Tell a manager's observers, too."""
        self._lives.append(life)

    def tell(
        self, messages: Sequence[Message], options: Options, observers: tuple[Observer, ...]
    ) -> None:
        """Tell of jobs that were enqueued. Raises what must end the program."""
        visiting = self._observers + observers
        lives = [life for life in self._lives if life.shutdown.state is not ManagerState.CLOSED]
        told: set[int] = set()  # ids of observers, which several managers may share
        for listeners in [life.listeners for life in lives] or [self._own]:
            hooks = listeners.hooks_for(visiting) if visiting else listeners.hooks
            asking = hooks.on_job_enqueued
            asking = tuple(hook for hook in asking if id(hook.listener.observer) not in told)
            for message in messages if asking else ():
                hooks.tell(asking, _event(message, options))
            told.update(id(hook.listener.observer) for hook in asking)
            if visiting:
                listeners.release(visiting)
            visiting = ()  # it has told them
        self._raise_fatal()

    async def close(self, timeout: float) -> None:
        """Let `async def` hooks catch up for at most `timeout` seconds. Raises as `tell`."""
        await self._own.flush(timeout)
        self._own.give_up()
        await self._services.stop(timeout)
        self._raise_fatal()

    def _raise_fatal(self) -> None:
        if self._fatal:
            raise self._fatal.pop()


def _event(message: Message, options: Options) -> JobEnqueued:
    now = clock.wall()
    delay = message.delay if message.at is None else max(0.0, message.at - now)
    job = JobRef(
        id=message.id,
        handler=message.handler or "",
        queue=message.queue,
        attempt=0,
        enqueued_at=now,
    )
    return JobEnqueued(job=job, meta=options.meta or {}, time=now, delay=delay)
