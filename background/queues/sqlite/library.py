"""The SQLite library that opens a file: the standard library's, or that of `pysqlite3`.

Two libraries in one process do not see each other's locks, because POSIX locks belong to processes
(https://sqlite.org/howtocorrupt.html, section 2.2.1). A file that has tables of an application may
be open in this process, and is therefore opened with the standard library's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import closing
from importlib import import_module
from sqlite3 import SQLITE_BUSY, SQLITE_FULL, Connection
from typing import Any

__all__ = [
    "ERRORS",
    "OPERATIONAL_ERRORS",
    "SQLITE_BUSY",
    "SQLITE_FULL",
    "Connection",
    "choose",
    "is_database_error",
    "newest",
    "of",
]

_NAMES = "SELECT lower(name) FROM sqlite_schema WHERE name NOT GLOB 'sqlite_*'"


def _newest() -> Any:
    try:
        found: Any = import_module("pysqlite3.dbapi2")
    except ImportError:
        return sqlite3
    return max(sqlite3, found, key=lambda library: library.sqlite_version_info)


#: The newest library that is installed.
newest: Any = _newest()

# Each library has error classes of its own.
ERRORS: tuple[type[Exception], ...] = (sqlite3.Error, newest.Error)
OPERATIONAL_ERRORS: tuple[type[Exception], ...] = (
    sqlite3.OperationalError,
    newest.OperationalError,
)


def is_database_error(error: Exception) -> bool:
    """Return whether an error is a `DatabaseError` itself, and not of a class below it."""
    return type(error) in (sqlite3.DatabaseError, newest.DatabaseError)


def of(db: object) -> Any:
    """Return the library of a connection."""
    return sqlite3 if isinstance(db, sqlite3.Connection) else newest


def choose(path: str, timeout: float, own: Collection[str]) -> Any:
    """Return the library for a file that this process has not opened yet.

    Args:
        path: The file, which exists.
        timeout: Seconds to wait for the locks of other connections.
        own: The names of this library's tables, indexes and triggers.

    Raises:
        sqlite3.Error: The file can't be read.
    """
    if newest is sqlite3:
        return sqlite3
    with closing(sqlite3.connect(path, timeout=timeout, isolation_level=None)) as db:
        is_ours = all(name in own for (name,) in db.execute(_NAMES))
    return newest if is_ours else sqlite3
