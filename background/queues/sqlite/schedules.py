"""The latest ticks of schedules, in SQLite."""

from __future__ import annotations

from .._unreadable import is_tick, report_tick
from .library import Connection


def advance(
    db: Connection,
    name: str,
    expected: float | None,
    tick: float,
    now: float,
    retention: float,
) -> float:
    """Store a tick if the expected one is stored; return the one that is stored afterwards.

    A stored one that can't be read is replaced, as if there was none.
    """
    db.execute("DELETE FROM background_schedules WHERE until <= ?", (now,))
    (stored,) = db.execute(
        """
        INSERT INTO background_schedules VALUES (?, ?, ?)
        ON CONFLICT (name) DO UPDATE SET
            until = CASE WHEN tick = ? THEN excluded.until ELSE until END,
            tick = CASE WHEN tick = ? THEN excluded.tick ELSE tick END
        RETURNING tick
        """,
        (name, float(tick), now + retention, expected, expected),
    ).fetchone()
    if is_tick(stored):
        return float(stored)
    report_tick(name, stored)
    db.execute(
        "UPDATE background_schedules SET tick = ?, until = ? WHERE name = ?",
        (float(tick), now + retention, name),
    )
    return float(tick)
