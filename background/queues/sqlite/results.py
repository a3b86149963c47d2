"""A result store in a SQLite file."""

from __future__ import annotations

import os

from ..._support import clock
from ..abc import Results
from .connection import SQLiteFile, Synchronous
from .library import Connection

_SAVE = "INSERT OR REPLACE INTO background_results (key, result, until) VALUES (?, ?, ?)"
_DELETE_OLD = "DELETE FROM background_results WHERE until <= ?"
# Other programs may have stored a text or a number, which a cast turns into bytes.
_GET = "SELECT CAST(result AS BLOB) FROM background_results WHERE key = ? AND until > ?"
_DELETE = "DELETE FROM background_results WHERE key = ?"


class SQLiteResults(Results):
    """A store of results in a file, for the processes of one host; for one event loop.

    Args:
        path: The file; it may be that of a broker.
        synchronous: `"NORMAL"` or `"FULL"`, as for `SQLiteBroker`.
        timeout: Seconds that a call waits for the write lock, as for `SQLiteBroker`.

    Raises:
        ValueError: The path does not name a file, or another argument is not valid.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Synchronous = "NORMAL",
        timeout: float = 5.0,
    ) -> None:
        self._file = SQLiteFile(path, synchronous, timeout, lambda: None)
        self.path = self._file.path

    def __repr__(self) -> str:
        return f"<SQLiteResults {self.path}>"

    async def open(self) -> None:
        await self._file.open()

    async def close(self) -> None:
        await self._file.close()

    async def save(self, key: str, result: bytes, *, retention: float) -> None:
        def work(db: Connection) -> None:
            now = clock.wall()
            db.execute(_DELETE_OLD, (now,))
            db.execute(_SAVE, (key, result, now + retention))

        await self._file.write(work)

    async def get(self, key: str) -> bytes | None:
        def work(db: Connection) -> bytes | None:
            row = db.execute(_GET, (key, clock.wall())).fetchone()
            return None if row is None else row[0]

        return await self._file.read(work)

    async def delete(self, key: str) -> None:
        def work(db: Connection) -> None:
            db.execute(_DELETE, (key,))

        await self._file.write(work)
