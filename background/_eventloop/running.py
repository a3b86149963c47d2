"""The backend of the running event loop."""

from __future__ import annotations

import sys
from typing import Any

from anyio.lowlevel import current_token

from .backend import Backend


def current_backend() -> Backend:
    """Return the backend of the running event loop."""
    asyncio: Any = sys.modules.get("asyncio")  # not imported if only trio is used
    if asyncio and isinstance(current_token().native_token, asyncio.AbstractEventLoop):
        from ._asyncio import AsyncioBackend

        return AsyncioBackend()
    from ._trio import TrioBackend

    return TrioBackend()
