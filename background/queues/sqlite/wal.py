"""The size of SQLite's write-ahead log, which grows while another connection reads."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import suppress

from ..._support.log import log
from .._errors import BrokerUnavailableError
from . import file_system
from .library import ERRORS, Connection

#: Bytes of the log above which it is truncated, or a warning says why that is impossible.
BOUND = 32_000_000

_INTERVAL = 5.0  # the most seconds between two checks
_SPEED = 1e9  # bytes that the log grows in a second, at most


class WalGuard:
    """Bounds the log of one connection's file.

    SQLite writes at the beginning of the log again only when no reader needs it, and never makes
    the file smaller by itself. To write the log back it may need as much space again: a disk that
    the log has filled stays full.

    Args:
        path: The path of the database.
    """

    def __init__(self, path: str) -> None:
        place = file_system.resolved(path)
        self._log = place.with_name(f"{place.name}-wal")
        self._needs_space = False
        self._due = 0.0
        self._has_warned = False

    def check(self, db: Connection) -> None:
        """Truncate a large log, outside of a transaction; warn once if a reader prevents it."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _INTERVAL
        with suppress(OSError, *ERRORS):  # the next call reports it
            size, space = self._measure()
            if size > BOUND or space < 0:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                size, space = self._measure()
            self._needs_space = space < 0
            self._due = time.monotonic() + min(_INTERVAL, max(0.0, space / 2 / _SPEED))
            is_large = size > BOUND or self._needs_space
            if is_large and not self._has_warned:
                log(
                    logging.WARNING,
                    "%s has %d MB and can't be truncated; a connection that keeps a transaction "
                    "open is the likely cause: end it, or the disk may become full",
                    *(self._log, size // 1_000_000),
                )
            self._has_warned = is_large

    def require_space(self) -> None:
        """Check, in any thread, that the disk has space to write the log back.

        Raises:
            BrokerUnavailableError: It has less than that.
        """
        if self._needs_space:
            error = BrokerUnavailableError(
                f"{self._log}: the disk has less free space than is needed to write this log back; "
                "free some, or end the transactions that other connections keep open"
            )
            error.changed_nothing = True
            raise error

    def _measure(self) -> tuple[int, int]:
        """Return the bytes of the log, and those that are free beyond as many."""
        size = self._log.stat().st_size
        return size, shutil.disk_usage(self._log.parent).free - size
