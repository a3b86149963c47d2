"""The buffer of events for the `async def` hooks of one observer."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from inspect import CORO_CREATED, getcoroutinestate, iscoroutine
from typing import NamedTuple

import anyio

from .._eventloop.backend import Backend
from .._eventloop.services import Services
from .hook_errors import HookErrors

SIZE = 1024


#: Called with whether a hook has received an event.
Then = Callable[[bool], None]


class Receipt:
    """The arrival of one event at hooks.

    Args:
        then: Called with `False` if the event was buffered, and has arrived nowhere.
    """

    __slots__ = ("_expected", "has_arrived", "then")

    def __init__(self, then: Then) -> None:
        self.has_arrived = False
        self.then = then
        self._expected = 0

    def expect(self) -> None:
        """Count a delivery that was buffered."""
        self._expected += 1

    def failed(self) -> None:
        """Record that a delivery has failed."""
        self._expected -= 1
        if not (self._expected or self.has_arrived):
            self.then(False)


class Delivery(NamedTuple):
    """An awaitable that a hook returned for an event.

    Args:
        hook: The hook's name.
        answer: The awaitable.
        receipt: Records whether the event arrives, if that matters.
    """

    hook: str
    answer: Awaitable[object]
    receipt: Receipt | None

    def discard(self) -> None:
        """Close a coroutine that will never be awaited, so that Python does not warn about it."""
        if iscoroutine(self.answer) and getcoroutinestate(self.answer) == CORO_CREATED:
            self.answer.close()

    def arrived(self) -> None:
        """Record that the hook has received the event."""
        if self.receipt is not None:
            self.receipt.has_arrived = True

    def failed(self) -> None:
        """Record that the hook has failed, or was interrupted."""
        if self.receipt is not None:
            self.receipt.failed()


class EventBuffer:
    """Awaits deliveries in order, in a service that runs while there are deliveries.

    Args:
        owner: The observer's name, for the log.
        backend: The event loop.
        services: Runs the service.
        errors: Counts the events that are dropped.
        on_error: Called with the hook's name and the error when a hook raises.
        on_empty: Called when everything was delivered.
    """

    def __init__(
        self,
        owner: str,
        backend: Backend,
        services: Services,
        errors: HookErrors,
        on_error: Callable[[str, BaseException], None],
        on_empty: Callable[[], None],
    ) -> None:
        self._owner = owner
        self._backend = backend
        self._services = services
        self._errors = errors
        self._on_error = on_error
        self._on_empty = on_empty
        self._waiting: deque[Delivery] = deque()
        self._current: Delivery | None = None
        self._cut_short: list[Delivery] = []  # deliveries that asyncio cancelled
        self._is_delivering = False
        self._flushed: anyio.Event | None = None
        self._is_closed = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to deliver or to report."""
        return not (self._is_delivering or self._waiting or self._cut_short)

    def put(self, delivery: Delivery) -> bool:
        """Add a delivery to the buffer; return `False` if the event is dropped."""
        if self._is_closed:
            self._errors.undelivered(self._owner, 1)
        elif len(self._waiting) >= SIZE:
            self._errors.overflowed(self._owner, delivery.hook, SIZE)
        else:
            self._waiting.append(delivery)
            if delivery.receipt is not None:
                delivery.receipt.expect()
            if not self._is_delivering:
                self._is_delivering = True
                self._serve()
            return True
        delivery.discard()
        return False

    def _serve(self) -> None:
        self._services.start(f"events for {self._owner}", self._deliver, self._stop)

    async def _deliver(self) -> None:
        me = self._backend.current_task()
        failed = False
        try:
            while self._waiting and not failed:
                # `_current` is taken away when the buffer is closed before the hook has returned.
                delivery = self._current = self._waiting.popleft()
                try:
                    with anyio.CancelScope():  # can't be left if the hook leaves a scope open
                        await delivery.answer
                except BaseException as error:
                    if self._backend.ends(me, error):
                        raise
                    self._on_error(delivery.hook, error)
                    delivery.failed()
                    failed = True
                else:
                    delivery.arrived()
                self._current = None
        finally:
            if failed and self._waiting:
                self._serve()  # in a new task, because the hook may have left scopes open in this
            else:
                self._stop()

    def _stop(self) -> None:
        """Mark the service as ended; also called if it was cancelled before its first step."""
        self._is_delivering = False
        if self._current is not None:
            self._cut_short.append(self._current)
            self._current = None
        if self._flushed is not None:
            self._flushed.set()
        self._on_empty()

    async def flush(self) -> None:
        """Wait until everything was delivered."""
        while self._is_delivering:
            self._flushed = anyio.Event()
            await self._flushed.wait()

    def close(self) -> None:
        """Stop delivering; deliveries that are not complete have failed."""
        self._is_closed = True
        for delivery in self._waiting:
            delivery.discard()
        current = [] if self._current is None else [self._current]
        left = [*self._cut_short, *current, *self._waiting]
        self._current = None
        self._cut_short.clear()
        self._waiting.clear()
        self._errors.undelivered(self._owner, len(left))
        for delivery in left:
            delivery.failed()
