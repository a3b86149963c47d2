"""Tasks and reports of the tests of closing."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.from_thread

from background import (
    CloseReport,
    Manager,
)
from support.time import ages

FATES = ("succeeded", "failed", "cancelled", "expired", "not_started", "stuck")


def fates(report: CloseReport) -> dict[str, list[str]]:
    """The ids in a report, by fate; without the fates that nobody met."""
    ids = {fate: sorted(handle.id for handle in getattr(report, fate)) for fate in FATES}
    return {fate: found for fate, found in ids.items() if found}


def counts(report: CloseReport) -> dict[str, int]:
    return {fate: len(ids) for fate, ids in fates(report).items()}


async def cleans_up(seconds: float) -> None:
    """Takes a while to end when it is cancelled."""
    try:
        await ages()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(seconds)


async def closed(manager: Manager, **options: Any) -> CloseReport:
    """Close, but not for ever."""
    with anyio.fail_after(10_000):
        return await manager.close(**options)
