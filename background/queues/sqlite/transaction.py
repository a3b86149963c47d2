"""Calls that share one transaction of a SQLite connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from anyio import Event

from .._errors import BrokerUnavailableError
from . import library
from .file_system import identity
from .library import Connection

T = TypeVar("T")
Work = Callable[[Connection], T]


class SQLiteCall:
    """A function to call in the thread, and its result."""

    __slots__ = ("deadline", "done", "error", "value", "withdrawn", "work", "writes")

    def __init__(self, work: Work[Any], writes: bool, done: Event, deadline: float) -> None:
        self.work = work
        self.writes = writes
        self.done = done
        self.deadline = deadline  # of the wait for locks, on the monotonic clock
        self.withdrawn = False
        self.value: Any = None
        self.error: BaseException | None = None


class LockedError(Exception):
    """Another connection has a lock on the file."""


class _RolledBackError(Exception):
    """SQLite rolled back a transaction automatically."""


class SharedTransaction:
    """Runs calls in one transaction, each of which succeeds or fails by itself.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = Path(path)
        self._identity: tuple[int, int] | None = None  # of the file that is open

    def opened(self) -> None:
        """Remember which file is open."""
        self._identity = identity(self._file)

    def run(self, calls: Sequence[SQLiteCall], db: Connection) -> bool:
        """Run calls in one transaction; return `False` if they need separate transactions.

        Raises:
            LockedError: Another connection has the lock.
        """
        alone = len(calls) == 1
        try:
            self._check_file()
            db.execute("BEGIN IMMEDIATE" if any(call.writes for call in calls) else "BEGIN")
            for call in calls:
                self._do(call, db, alone)
            db.execute("COMMIT")
        except Exception as error:
            full = getattr(error, "sqlite_errorcode", None) == library.SQLITE_FULL
            if not alone and (full or isinstance(error, _RolledBackError)):
                return False
            if _is_locked(error):
                raise LockedError from error
            for call in calls:
                call.error = self.explained(error)
        finally:
            if db.in_transaction:
                with suppress(*library.ERRORS):  # the next BEGIN reports it
                    db.execute("ROLLBACK")
        return True

    def _check_file(self) -> None:
        """Refuse a file that was replaced; SQLite would continue with the unlinked file."""
        if identity(self._file) != self._identity:
            raise BrokerUnavailableError(
                f"{self._path} was removed or replaced while it was open; close all queues that "
                "use it before opening it again"
            )

    def _do(self, call: SQLiteCall, db: Connection, alone: bool) -> None:
        call.error = None
        if alone:
            call.value = call.work(db)
            return
        db.execute("SAVEPOINT call")
        try:
            call.value = call.work(db)
        except Exception as error:
            # Earlier calls in the transaction are undone, too, or a read waits for a lock.
            if not db.in_transaction or _is_locked(error):
                raise _RolledBackError from error
            db.execute("ROLLBACK TO call")
            call.error = self.explained(error)
        db.execute("RELEASE call")

    def explained(self, error: Exception) -> Exception:
        """Return the error to raise for one of SQLite or of the file."""
        if isinstance(error, BrokerUnavailableError):
            return error
        ours = isinstance(error, (*library.OPERATIONAL_ERRORS, OSError))
        if ours or library.is_database_error(error):
            return BrokerUnavailableError(f"{self._path}: {error}")
        return error


def _is_locked(error: Exception) -> bool:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == library.SQLITE_BUSY  # the other bits say more about the lock
