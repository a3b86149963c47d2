"""Jobs in the memory of one process."""

from __future__ import annotations

from .broker import MemoryBroker
from .results import MemoryResults

__all__ = ["MemoryBroker", "MemoryResults"]


def __dir__() -> list[str]:
    return __all__
