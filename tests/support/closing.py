"""Tasks and reports for the tests of closing."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.from_thread

from background import (
    CloseReport,
    Manager,
)
from support.time import ages

OUTCOMES = ("succeeded", "failed", "cancelled", "expired", "not_started", "stuck")


def ids_by_outcome(report: CloseReport) -> dict[str, list[str]]:
    """Return the ids in a report by outcome, without the outcomes of no task."""
    ids = {
        outcome: sorted(handle.id for handle in getattr(report, outcome)) for outcome in OUTCOMES
    }
    return {outcome: found for outcome, found in ids.items() if found}


def counts(report: CloseReport) -> dict[str, int]:
    return {outcome: len(ids) for outcome, ids in ids_by_outcome(report).items()}


async def cleans_up(seconds: float, done: list[str] | None = None) -> None:
    """Sleep until cancelled, then clean up for `seconds`."""
    try:
        await ages()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(seconds)
        if done is not None:
            done.append("cleaned up")


async def closed(manager: Manager, **options: Any) -> CloseReport:
    """Close the manager, with a time limit."""
    with anyio.fail_after(10_000):
        return await manager.close(**options)
