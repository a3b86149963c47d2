"""The latest ticks of schedules, in memory."""

from __future__ import annotations


class MemorySchedules:
    """The latest tick of each schedule, and when it is deleted."""

    def __init__(self) -> None:
        self._ticks: dict[str, tuple[float, float]] = {}

    def advance(
        self, name: str, expected: float | None, tick: float, now: float, retention: float
    ) -> float:
        """Store a tick if the expected one is stored; return the one that is stored afterwards."""
        self._ticks = {key: entry for key, entry in self._ticks.items() if entry[1] > now}
        stored, _ = self._ticks.get(name, (None, 0.0))
        if stored is not None and stored != expected:
            return stored
        self._ticks[name] = tick, now + retention
        return tick
