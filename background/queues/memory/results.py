"""Results in the memory of one process."""

from __future__ import annotations

from heapq import heappop, heappush

import anyio
from anyio.lowlevel import checkpoint

from ..abc import Results


class MemoryResults(Results):
    """Keeps results for as long as the process lives; for one event loop."""

    def __init__(self) -> None:
        self._results: dict[str, tuple[float, bytes]] = {}  # with when to forget them
        self._forget: list[tuple[float, str]] = []  # a heap; some are out of date

    async def open(self) -> None:
        await checkpoint()

    async def close(self) -> None:
        await checkpoint()

    async def save(self, key: str, result: bytes, *, keep: float) -> None:
        await checkpoint()
        until = self._tidy() + keep
        self._results[key] = until, result
        heappush(self._forget, (until, key))

    async def get(self, key: str) -> bytes | None:
        await checkpoint()
        self._tidy()
        return self._results[key][1] if key in self._results else None

    async def delete(self, key: str) -> None:
        await checkpoint()
        self._results.pop(key, None)

    def _tidy(self) -> float:
        """Forget what has been kept long enough; return what time it is."""
        now = anyio.current_time()
        while self._forget and self._forget[0][0] <= now:
            until, key = heappop(self._forget)
            if key in self._results and self._results[key][0] == until:
                del self._results[key]
        return now
