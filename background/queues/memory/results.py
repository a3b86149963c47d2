"""A result store in memory."""

from __future__ import annotations

from heapq import heappop, heappush

import anyio
from anyio.lowlevel import checkpoint

from ..abc import Results


class MemoryResults(Results):
    """A store of results in memory, for one event loop."""

    def __init__(self) -> None:
        self._results: dict[str, tuple[float, bytes]] = {}  # with the end of the retention
        self._expiring: list[tuple[float, str]] = []  # a heap by time, with outdated entries

    def __repr__(self) -> str:
        return "<MemoryResults>"

    async def open(self) -> None:
        await checkpoint()

    async def close(self) -> None:
        await checkpoint()

    async def save(self, key: str, result: bytes, *, retention: float) -> None:
        await checkpoint()
        until = self._tidy() + retention
        self._results[key] = until, result
        heappush(self._expiring, (until, key))

    async def get(self, key: str) -> bytes | None:
        await checkpoint()
        self._tidy()
        return self._results[key][1] if key in self._results else None

    async def delete(self, key: str) -> None:
        await checkpoint()
        self._results.pop(key, None)

    def _tidy(self) -> float:
        """Delete results past their retention, and return the time."""
        now = anyio.current_time()
        while self._expiring and self._expiring[0][0] <= now:
            until, key = heappop(self._expiring)
            if key in self._results and self._results[key][0] == until:
                del self._results[key]
        return now
