"""Functions that a KeyboardInterrupt must not cut in two, as trio raises it at any line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

#: Functions that trio has not been told of; its backend empties this.
awaiting_protection: list[Callable[..., Any]] = []


def uninterrupted(fn: F) -> F:
    """Have a KeyboardInterrupt wait until the main task awaits something or leaves `fn`.

    asyncio, which raises it at the second Ctrl-C, knows no such thing.
    """
    awaiting_protection.append(fn)
    return fn
