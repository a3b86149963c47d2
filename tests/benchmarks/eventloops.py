"""The available event loops."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

#: The event loops that run asyncio code.
ASYNCIO = ["asyncio", "uvloop"] if find_spec("uvloop") else ["asyncio"]
LOOPS = [*ASYNCIO, "trio"]


def run(loop: str, fn: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run an async function in the named event loop."""
    if loop == "uvloop":
        return anyio.run(fn, *args, backend_options={"use_uvloop": True})
    return anyio.run(fn, *args, backend=loop)
