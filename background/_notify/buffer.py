"""The events that wait for the `async def` hooks of one observer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from inspect import CORO_CREATED, getcoroutinestate, iscoroutine
from typing import Any, NamedTuple

import anyio

from .._eventloop.backend import Backend
from .hook_errors import Complaints

Start = Callable[[str, Callable[[], Coroutine[Any, Any, None]], Callable[[], None] | None], None]

_SIZE = 1024


class Call(NamedTuple):
    """A hook that was called with an event, and what it answered, which is to be awaited."""

    hook: str
    event: Any
    answer: Any

    def close(self) -> None:
        """Let nothing warn of a coroutine that was never awaited."""
        if iscoroutine(self.answer) and getcoroutinestate(self.answer) == CORO_CREATED:
            self.answer.close()


class Outbox:
    """Awaits answers one after the other, in a service that lives only while there are some."""

    def __init__(
        self,
        owner: str,
        backend: Backend,
        start: Start,
        complaints: Complaints,
        on_error: Callable[[str, BaseException], None],
    ) -> None:
        self.on_empty: Callable[[], None] | None = None
        self._owner = owner
        self._backend = backend
        self._start = start
        self._complaints = complaints
        self._on_error = on_error
        self._calls: deque[Call] = deque()
        self._current: Call | None = None
        self._cut_short: list[Call] = []  # by asyncio, which has cancelled the service
        self._delivering = False
        self._flushed: anyio.Event | None = None
        self._given_up = False

    @property
    def empty(self) -> bool:
        return not (self._delivering or self._calls or self._cut_short)

    def put(self, call: Call) -> bool:
        """Have the answer awaited after those before it; `False` if that can not be."""
        if self._given_up:
            self._complaints.undelivered(self._owner, 1)
            call.close()
            return False
        if len(self._calls) >= _SIZE:
            self._complaints.overflowed(self._owner, call.hook, _SIZE)
            call.close()
            return False
        self._calls.append(call)
        if not self._delivering:
            self._delivering = True
            self._serve()
        return True

    def _serve(self) -> None:
        self._start(f"{self._owner} outbox", self._deliver, self._stop_delivering)

    async def _deliver(self) -> None:
        me = self._backend.current_task()
        failed = False
        try:
            while self._calls and not failed:
                call = self._current = self._calls.popleft()
                try:
                    with anyio.CancelScope():  # which can't be left if the hook leaves one open
                        await call.answer
                except BaseException as error:
                    if self._backend.ends(me, error):
                        raise
                    self._on_error(call.hook, error)
                    failed = True
                self._current = None
        finally:
            if failed and self._calls:
                self._serve()  # in a new task, as nobody knows how the hook has left this one
            else:
                self._stop_delivering()

    def _stop_delivering(self) -> None:
        """Let the next call start the service again, which may not have had its first step."""
        self._delivering = False
        if self._current is not None:
            self._cut_short.append(self._current)
            self._current = None
        if self._flushed is not None:
            self._flushed.set()
        if self.on_empty is not None:
            self.on_empty()

    async def flush(self) -> None:
        """Wait until every answer so far has been awaited."""
        while self._delivering:
            self._flushed = anyio.Event()
            await self._flushed.wait()

    def give_up(self) -> list[Call]:
        """Return the calls that were not seen to their end; there will be no others."""
        self._given_up = True
        for call in self._calls:
            call.close()
        current = [] if self._current is None else [self._current]
        left = [*self._cut_short, *current, *self._calls]
        self._current = None
        self._cut_short.clear()
        self._calls.clear()
        self._complaints.undelivered(self._owner, len(left))
        return left
