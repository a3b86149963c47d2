"""How tests tell the time, and how long they wait."""

from __future__ import annotations

import anyio

SOON = 5.0  # real seconds that a thread may take for what it does at once


async def ages() -> None:
    """So long that a test that fails still ends, in virtual time."""
    await anyio.sleep(80_000)


class Clock:
    """Times since the test began."""

    def __init__(self) -> None:
        self.began = anyio.current_time()
        self.times: list[float] = []

    @property
    def now(self) -> float:
        return round(anyio.current_time() - self.began, 6)

    def note(self) -> None:
        self.times.append(self.now)
