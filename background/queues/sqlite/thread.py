"""The thread of a SQLite connection, which runs calls for the event loop.

Calls that arrive while the thread is busy share one transaction, with a single commit and a single
round trip to the thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from os import getpid
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from anyio import CancelScope, Event, to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from ..._eventloop.running import current_backend
from ..._support import clock
from .._errors import BrokerUnavailableError
from . import library
from .file_system import identity
from .library import Connection
from .schema import disconnect
from .wal import WalGuard

T = TypeVar("T")
Work = Callable[[Connection], T]

_MOST_TOGETHER = 256  # calls in one transaction

# The bounds in seconds of the pause between two checks for changes by other processes. The pause is
# a hundredth of the time since their last change.
_OFTEN, _SELDOM = 0.001, 0.05
_IDLE = 1.0  # seconds between two checks whether the program has ended, without watchers


class _SQLiteCall:
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


class _ConnectionThread(threading.Thread):
    """The thread of a connection."""


class _RolledBackError(Exception):
    """SQLite rolled back a transaction automatically."""


class _LockedError(Exception):
    """Another connection has a lock on the file."""


class SQLiteThread:
    """A connection and its thread, for one event loop.

    Args:
        path: The file.
        connect: Opens the connection.
        timeout: Seconds that a call waits for the locks of other connections.
        on_foreign_change: Called in the event loop when another connection has changed the file,
            while `watchers` is not 0.
    """

    def __init__(
        self,
        path: str,
        connect: Callable[[], Connection],
        timeout: float,
        on_foreign_change: Callable[[], None],
    ) -> None:
        self.watchers = 0
        self._path = path
        self._connect = connect
        self._timeout = timeout
        self._on_foreign_change = on_foreign_change
        self._backend = current_backend()
        self._context = copy_context()
        self._backend.adopt(self._context)
        self._queue: SimpleQueue[_SQLiteCall | None] = SimpleQueue()
        self._process = getpid()
        self._closed = False
        self._file = Path(path)
        self._identity: tuple[int, int] | None = None  # of the file that is open
        self._version = 0  # of the data, see `_data_version`
        self._changed_at = 0.0
        # A daemon thread could be stopped in the middle of a transaction.
        self.library: Any = None  # of the connection, once it is open
        self.wal: WalGuard  # once the connection is open
        self._thread = _ConnectionThread(target=self._run, name=f"SQLite {path}", daemon=False)
        self._opening = self._new_call(lambda db: None)
        self._ended = self._backend.event()

    def _new_call(self, work: Work[Any], writes: bool = False) -> _SQLiteCall:
        deadline = time.monotonic() + self._timeout
        return _SQLiteCall(work, writes, self._backend.event(), deadline)

    async def start(self) -> None:
        """Start the thread and open the connection.

        Raises:
            BrokerUnavailableError: The file can't be opened.
        """
        self._thread.start()
        clock.on_io(1)  # until `_deliver` is called for the opening
        with CancelScope(shield=True):
            await self._opening.done.wait()
            if self._opening.error is not None:
                await self._join()
                raise self._opening.error

    def abandon(self) -> None:
        """Make the thread close the connection and end, without waiting for it."""
        self._closed = True
        self._queue.put(None)

    async def stop(self) -> None:
        """Finish pending calls, close the connection, and wait for the thread's end.

        Calls that wait for the lock of another connection fail.
        """
        if self._process != getpid():
            return  # the thread exists in the parent process only
        self.abandon()
        with CancelScope(shield=True):
            await self._join()

    async def _join(self) -> None:
        clock.on_io(1)
        try:
            await self._ended.wait()  # first, because `join` blocks a worker thread
            await to_thread.run_sync(self._thread.join)
        finally:
            clock.on_io(-1)

    async def call(self, work: Work[T], *, writes: bool) -> T:
        """Call `work` in a transaction, and wait for the commit.

        `work` is called again in a new transaction if a shared one fails. It is not called if the
        caller is cancelled before the transaction begins.

        Args:
            work: The function, which is called with the connection.
            writes: Whether it changes the file.

        Returns:
            The function's result.

        Raises:
            BrokerUnavailableError: The file can't be used, or is locked for too long.
            Exception: The function's error.
        """
        await checkpoint_if_cancelled()
        if self._process != getpid():
            raise BrokerUnavailableError(
                f"{self._path} was opened by another process, before a fork"
            )
        if self._closed:
            raise BrokerUnavailableError(f"{self._path} is not open")
        call = self._new_call(work, writes)
        clock.on_io(1)
        self._queue.put(call)
        try:
            await call.done.wait()
        except BaseException:
            call.withdrawn = True
            raise
        if call.error is not None:
            raise call.error
        value: T = call.value
        return value

    # All methods below run in the thread, except for `_deliver`.

    def _run(self) -> None:
        try:
            try:
                self.wal = WalGuard(self._path)
                db = self._connect()
                self.library = library.of(db)
                self._identity = identity(self._file)
            except Exception as error:
                self._opening.error = self._explained(error)
                return
            finally:
                self._send([self._opening])
            try:
                self._serve(db)
            finally:
                disconnect(db)
        finally:
            self._post(self._ended.set)

    def _serve(self, db: Connection) -> None:
        with suppress(*library.ERRORS):  # after an error, the first check reports a change
            self._version = _data_version(db)
        while True:
            try:
                first = self._queue.get(timeout=self._pause())
            except Empty:
                # An unclosed connection must not keep the interpreter alive.
                if _program_has_ended():
                    return
            else:
                calls = self._gather(first)
                self._settle([call for call in calls if call is not None], db)
                if calls[-1] is None:
                    return
                self.wal.check(db)
            if self.watchers:
                self._check_for_changes(db)

    def _pause(self) -> float:
        if not self.watchers:
            return _IDLE
        return min(max((time.monotonic() - self._changed_at) / 100, _OFTEN), _SELDOM)

    def _gather(self, first: _SQLiteCall | None) -> list[_SQLiteCall | None]:
        """Return a call and the calls that are queued behind it; `None` ends the thread."""
        calls = [first]
        while calls[-1] is not None and len(calls) < _MOST_TOGETHER:
            try:
                calls.append(self._queue.get_nowait())
            except Empty:
                break
        return calls

    def _check_for_changes(self, db: Connection) -> None:
        """Call `on_foreign_change` if another connection has changed the file."""
        try:
            version = _data_version(db)
        except library.ERRORS:
            return  # the next call reports the error
        if version != self._version:
            self._version = version
            self._changed_at = time.monotonic()
            self._post(self._on_foreign_change)

    def _settle(self, calls: Sequence[_SQLiteCall], db: Connection) -> None:
        if not self._together(calls, db):
            for call in calls:
                self._together([call], db)
        self._send(calls)

    def _together(self, calls: Sequence[_SQLiteCall], db: Connection) -> bool:
        """Run calls in one transaction; return `False` if they need separate transactions."""
        left = calls
        while wanted := [call for call in left if not call.withdrawn]:
            try:
                return self._run_together(wanted, db)
            except _LockedError:
                now = time.monotonic()
                left = [call for call in wanted if call.deadline > now and not self._closed]
                for call in wanted:
                    call.error = self._locked()  # unless it is called again
        return True

    def _locked(self) -> BrokerUnavailableError:
        how_long = "while this one was closed"
        if not self._closed:
            how_long = f"for the whole timeout of {self._timeout:g} s"
        error = BrokerUnavailableError(
            f"{self._path}: database is locked; another connection had the lock {how_long}"
        )
        error.changed_nothing = True
        return error

    def _run_together(self, wanted: Sequence[_SQLiteCall], db: Connection) -> bool:
        """Do what `_together` does, once.

        Raises:
            _LockedError: Another connection has the lock.
        """
        alone = len(wanted) == 1
        try:
            self._check_file()
            db.execute("BEGIN IMMEDIATE" if any(call.writes for call in wanted) else "BEGIN")
            for call in wanted:
                self._do(call, db, alone)
            db.execute("COMMIT")
        except Exception as error:
            full = getattr(error, "sqlite_errorcode", None) == library.SQLITE_FULL
            if not alone and (full or isinstance(error, _RolledBackError)):
                return False
            if _is_locked(error):
                raise _LockedError from error
            for call in wanted:
                call.error = self._explained(error)
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

    def _do(self, call: _SQLiteCall, db: Connection, alone: bool) -> None:
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
            call.error = self._explained(error)
        db.execute("RELEASE call")

    def _explained(self, error: Exception) -> Exception:
        if isinstance(error, BrokerUnavailableError):
            return error
        ours = isinstance(error, (*library.OPERATIONAL_ERRORS, OSError))
        if ours or library.is_database_error(error):
            return BrokerUnavailableError(f"{self._path}: {error}")
        return error

    def _send(self, calls: Sequence[_SQLiteCall]) -> None:
        self._post(lambda: self._deliver(calls))

    def _post(self, fn: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the event loop has ended, and so have the waiters
            self._backend.post(fn, self._context)

    def _deliver(self, calls: Sequence[_SQLiteCall]) -> None:
        for call in calls:
            clock.on_io(-1)
            call.done.set()


def _program_has_ended() -> bool:
    """Return whether all threads have ended for which the interpreter waits, but connections'."""
    return all(
        thread.daemon or isinstance(thread, _ConnectionThread) or not thread.is_alive()
        for thread in threading.enumerate()
    )


def _data_version(db: Connection) -> int:
    """Return a number that changes when other connections change the file."""
    ((version,),) = db.execute("PRAGMA data_version").fetchall()
    return int(version)


def _is_locked(error: Exception) -> bool:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == library.SQLITE_BUSY  # the other bits say more about the lock
