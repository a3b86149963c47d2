"""The size of SQLite's write-ahead log, which grows while another connection reads."""

from __future__ import annotations

import logging
import time
from contextlib import suppress

from ..._support.log import log
from . import file_system
from .library import ERRORS, Connection

#: Bytes of the log above which it is truncated, or a warning says why that is impossible.
BOUND = 32_000_000

_INTERVAL = 5.0  # seconds between two checks


class WalGuard:
    """Bounds the log of one connection's file.

    SQLite writes at the beginning of the log again only when no reader needs it, and never makes
    the file smaller by itself.

    Args:
        path: The path of the database.
    """

    def __init__(self, path: str) -> None:
        place = file_system.resolved(path)
        self._log = place.with_name(f"{place.name}-wal")
        self._due = 0.0
        self._has_warned = False

    def check(self, db: Connection) -> None:
        """Truncate a large log, outside of a transaction; warn once if a reader prevents it."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _INTERVAL
        with suppress(OSError, *ERRORS):  # the next call reports it
            if self._is_large():
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            is_large = self._is_large()
            if is_large and not self._has_warned:
                log(
                    logging.WARNING,
                    "%s has more than %d MB and can't be truncated; a connection that keeps a "
                    "transaction open is the likely cause: end it, or the disk may become full",
                    *(self._log, BOUND // 1_000_000),
                )
            self._has_warned = is_large

    def _is_large(self) -> bool:
        return self._log.stat().st_size > BOUND
