"""The events that wait for the `async def` hooks of one observer."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

Start = Callable[[str, Callable[[], Coroutine[Any, Any, None]]], None]

logger = logging.getLogger("background")

_SIZE = 1024


class Outbox:
    """Makes calls one after the other, in a service that lives only while there are some."""

    def __init__(
        self, owner: str, start: Start, on_error: Callable[[str, BaseException], None]
    ) -> None:
        self.dropped = 0
        self.on_empty: Callable[[], None] | None = None
        self._owner = owner
        self._start = start
        self._on_error = on_error
        self._calls: deque[tuple[str, Callable[[], Any]]] = deque()
        self._delivering = False
        self._flushed: anyio.Event | None = None

    @property
    def empty(self) -> bool:
        return not self._delivering

    def put(self, hook: str, call: Callable[[], Any]) -> bool:
        """Have the call made after those before it; `False` if there is no room."""
        if len(self._calls) >= _SIZE:
            self.dropped += 1
            if self.dropped == 1:
                logger.warning(
                    "%s.%s is too slow: %d events wait for it, and it misses the next ones",
                    self._owner,
                    hook,
                    _SIZE,
                )
            return False
        self._calls.append((hook, call))
        if not self._delivering:
            self._delivering = True
            self._start(f"{self._owner} outbox", self._deliver)
        return True

    async def _deliver(self) -> None:
        cancelled = anyio.get_cancelled_exc_class()
        try:
            while self._calls:
                hook, call = self._calls.popleft()
                try:
                    await call()
                except (cancelled, GeneratorExit):
                    raise
                except BaseException as error:
                    self._on_error(hook, error)
        finally:
            self._delivering = False
            if self._flushed is not None:
                self._flushed.set()
            if self.on_empty is not None:
                self.on_empty()

    async def flush(self) -> None:
        """Wait until every call so far has been made."""
        while self._delivering:
            self._flushed = anyio.Event()
            await self._flushed.wait()
