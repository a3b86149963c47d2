"""What keeps a cancellation or a KeyboardInterrupt from cutting a change of state in two."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import FunctionType
from typing import Any, TypeVar

import anyio

C = TypeVar("C", bound=type)

#: Functions that trio must protect; its backend takes them from here, so that trio is not imported
#: before it is used.
unprotected: list[Callable[..., Any]] = []


def ki_protected(cls: C) -> C:
    """Keep a KeyboardInterrupt out of the methods of a class.

    Trio raises it at any line of its main task. In these methods it waits until the main task
    awaits something or leaves them. On asyncio, which raises it at the second Ctrl-C, this changes
    nothing.
    """
    unprotected.extend(each for each in vars(cls).values() if isinstance(each, FunctionType))
    return cls


async def run_shielded(fn: Callable[[], Awaitable[None]]) -> BaseException | None:
    """Run `fn` to completion in a shielded scope, and return the last interruption, if any.

    An interruption that no scope shields from starts `fn` again: a native cancellation on asyncio,
    or a KeyboardInterrupt in trio's main task.
    """
    interrupted: BaseException | None = None
    while True:
        try:
            with anyio.CancelScope(shield=True):
                await fn()
            return interrupted
        except (anyio.get_cancelled_exc_class(), KeyboardInterrupt) as interruption:
            interrupted = interruption
