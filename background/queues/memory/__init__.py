"""Jobs in the memory of one process."""

from __future__ import annotations

from .broker import MemoryBroker
from .results import MemoryResults

__all__ = ["MemoryBroker", "MemoryResults"]
