"""Protection of state changes from cancellation and KeyboardInterrupt."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import FunctionType
from typing import Any, TypeVar

import anyio

C = TypeVar("C", bound=type)

#: Functions that trio must protect. Its backend takes them from here, so that trio is imported only
#: if it is used.
unprotected: list[Callable[..., Any]] = []


def ki_protected(cls: C) -> C:
    """Protect the methods of a class from KeyboardInterrupt; a class decorator.

    Trio may raise it at any line of its main task. In protected methods it is raised when the main
    task awaits something or returns. There is no effect on asyncio, which raises it at the second
    Ctrl-C.
    """
    unprotected.extend(value for value in vars(cls).values() if isinstance(value, FunctionType))
    return cls


async def run_shielded(fn: Callable[[], Awaitable[None]]) -> BaseException | None:
    """Run `fn` to completion in a shielded scope.

    A shield stops neither a native cancellation on asyncio nor a KeyboardInterrupt in trio's main
    task. Both start `fn` again.

    Args:
        fn: The function, which must be safe to repeat.

    Returns:
        The last interruption, or `None`.
    """
    interruption: BaseException | None = None
    while True:
        try:
            with anyio.CancelScope(shield=True):
                await fn()
            return interruption
        except (anyio.get_cancelled_exc_class(), KeyboardInterrupt) as error:
            interruption = error
