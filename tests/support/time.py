"""Times and waits of tests."""

from __future__ import annotations

import anyio

SOON = 5.0  # real seconds a thread may take for work that should be immediate


async def ages() -> None:
    """Sleep longer than any test lasts; a failing test still ends, as time is virtual."""
    await anyio.sleep(80_000)


class Clock:
    """Seconds since the test began."""

    def __init__(self) -> None:
        self.began = anyio.current_time()
        self.times: list[float] = []

    @property
    def now(self) -> float:
        return round(anyio.current_time() - self.began, 6)

    def note(self) -> None:
        self.times.append(self.now)
