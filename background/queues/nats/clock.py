"""The server's clock, so that a wrong clock on one host starts no job early and steals none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

#: Seconds after which the server's clock is read anew.
_REFRESH = 60.0


class ServerClock:
    """Tells the server's time, by how far it was ahead of the event loop's when it was read."""

    def __init__(self, read: Callable[[], Awaitable[float]]) -> None:
        self._read = read
        self._ahead = 0.0
        self._read_at: float | None = None

    def now(self) -> float:
        """Return seconds since the epoch."""
        return anyio.current_time() + self._ahead

    async def refresh(self) -> None:
        """Read the server's clock, unless that was done a short time ago."""
        if self._read_at is None or anyio.current_time() - self._read_at > _REFRESH:
            await self.read()

    async def read(self) -> None:
        """Read the server's clock: it was so late somewhere between the question and the answer."""
        before = anyio.current_time()
        theirs = await self._read()
        after = anyio.current_time()
        self._ahead, self._read_at = theirs - (before + after) / 2, after
