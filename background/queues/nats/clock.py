"""The server's clock.

Leases and delays are measured on it. A wrong clock on one host can therefore neither start jobs
early nor take jobs from other workers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf

import anyio

#: Seconds after which `refresh` reads the server's clock again.
_REFRESH = 60.0
_EXACT, _TRIES = 0.5, 3  # seconds that a reading may take, and the most readings otherwise


class ServerClock:
    """An estimate of the server's time: the event loop's clock plus a measured offset.

    Args:
        read: Returns the server's time, in seconds since the epoch.
    """

    def __init__(self, read: Callable[[], Awaitable[float]]) -> None:
        self._read = read
        self._ahead = 0.0  # seconds by which the server's clock is ahead of the event loop's
        self._read_at: float | None = None

    def now(self) -> float:
        """Return the server's time, in seconds since the epoch."""
        return anyio.current_time() + self._ahead

    async def refresh(self) -> None:
        """Read the server's clock, unless it was read recently."""
        if self._read_at is None or anyio.current_time() - self._read_at > _REFRESH:
            await self.read()

    async def read(self) -> None:
        """Read the server's clock, as if the server had read it halfway through the request.

        It is read again if that took long, because the server may have been without a leader.
        """
        took = inf
        for _ in range(_TRIES):
            before = anyio.current_time()
            server_time = await self._read()
            after = anyio.current_time()
            if after - before < took:
                took = after - before
                self._ahead, self._read_at = server_time - (before + after) / 2, after
            if took < _EXACT:
                return
