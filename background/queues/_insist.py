"""Cleaning up to the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio


async def insist(fn: Callable[[], Awaitable[None]]) -> None:
    """See `fn` to its end, called again where it is cancelled natively, which no shield keeps out.

    Raises such a cancellation then.
    """
    interrupted: BaseException | None = None
    while True:
        try:
            with anyio.CancelScope(shield=True):
                await fn()
            break
        except anyio.get_cancelled_exc_class() as cancellation:
            interrupted = cancellation
    if interrupted is not None:
        raise interrupted
