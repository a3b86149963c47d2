"""Jobs in a SQLite file."""

from __future__ import annotations

from .broker import SQLiteBroker
from .results import SQLiteResults

__all__ = ["SQLiteBroker", "SQLiteResults"]
