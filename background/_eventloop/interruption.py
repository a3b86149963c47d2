"""Cleaning up to the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio


async def persist(fn: Callable[[], Awaitable[None]]) -> BaseException | None:
    """See `fn` to its end, called again after what no shield keeps out; return the latest of that.

    On asyncio this is a native cancellation, in trio's main task a KeyboardInterrupt.
    """
    interrupted: BaseException | None = None
    while True:
        try:
            with anyio.CancelScope(shield=True):
                await fn()
            break
        except (anyio.get_cancelled_exc_class(), KeyboardInterrupt) as interruption:
            interrupted = interruption
    return interrupted


async def insist(fn: Callable[[], Awaitable[None]]) -> None:
    """As `persist`, and raise the interruption, if there was one."""
    interrupted = await persist(fn)
    if interrupted is not None:
        raise interrupted
