"""Cleaning up to the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio


async def persist(fn: Callable[[], Awaitable[None]]) -> BaseException | None:
    """See `fn` to its end, called again where it is cancelled natively, which no shield keeps out.

    Returns the latest such cancellation.
    """
    interrupted: BaseException | None = None
    while True:
        try:
            with anyio.CancelScope(shield=True):
                await fn()
            break
        except anyio.get_cancelled_exc_class() as cancellation:
            interrupted = cancellation
    return interrupted


async def insist(fn: Callable[[], Awaitable[None]]) -> None:
    """As `persist`, and raise the cancellation, if there was one."""
    interrupted = await persist(fn)
    if interrupted is not None:
        raise interrupted
