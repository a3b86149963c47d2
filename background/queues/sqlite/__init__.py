"""Jobs in a SQLite file."""

from __future__ import annotations

from .broker import SQLiteBroker
from .results import SQLiteResults

__all__ = ["SQLiteBroker", "SQLiteResults"]


def __dir__() -> list[str]:
    return __all__
