"""The thread of a SQLite connection, and the calls that it makes for the event loop.

Calls that wait while the thread is busy share one transaction. One commit and one hop to the thread
and back serve all of them.
"""

from __future__ import annotations

import sqlite3
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

from ..._eventloop.backend import current_backend
from ..._support import clock
from .._errors import BrokerUnavailableError
from .schema import disconnect, identity

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

_MOST_TOGETHER = 256  # calls in one transaction

# Seconds between two checks for changes by other processes. Within these bounds, it is a hundredth
# of the time since their last change.
_OFTEN, _SELDOM = 0.001, 0.05
_IDLE = 1.0  # seconds between two checks whether the process ends, without watchers


class _SQLiteCall:
    """A function to call in the thread, and its result."""

    __slots__ = ("done", "error", "value", "withdrawn", "work", "writes")

    def __init__(self, work: Work[Any], writes: bool, done: Event) -> None:
        self.work = work
        self.writes = writes
        self.done = done
        self.withdrawn = False
        self.value: Any = None
        self.error: BaseException | None = None


class _RolledBackError(Exception):
    """SQLite has rolled back a transaction by itself."""


class SQLiteThread:
    """A connection and its thread, for one event loop.

    Args:
        path: The file.
        connect: Opens the connection.
        on_foreign_change: Called in the event loop when other connections have changed the file,
            while `watchers` is not 0.
    """

    def __init__(
        self,
        path: str,
        connect: Callable[[], sqlite3.Connection],
        on_foreign_change: Callable[[], None],
    ) -> None:
        self.watchers = 0
        self._path = path
        self._connect = connect
        self._on_foreign_change = on_foreign_change
        self._backend = current_backend()
        self._context = copy_context()
        self._backend.adopt(self._context)
        self._queue: SimpleQueue[_SQLiteCall | None] = SimpleQueue()
        self._process = getpid()
        self._closed = False
        self._file = Path(path)
        self._identity: tuple[int, int] | None = None  # of the file that is open
        self._version = 0  # what SQLite calls the data version
        self._changed_at = 0.0
        # Not a daemon, which could be stopped in the middle of a transaction.
        self._thread = threading.Thread(target=self._run, name=f"SQLite {path}", daemon=False)
        self._opening = self._new_call(lambda db: None)
        self._ended = self._backend.event()

    def _new_call(self, work: Work[Any], writes: bool = False) -> _SQLiteCall:
        return _SQLiteCall(work, writes, self._backend.event())

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
        """Let the thread close the connection and end, and do not wait for it."""
        self._closed = True
        self._queue.put(None)

    async def stop(self) -> None:
        """Make the calls that wait, close the connection, and wait for the thread's end."""
        if self._process != getpid():
            return  # the parent process has the thread
        self.abandon()
        with CancelScope(shield=True):
            await self._join()

    async def _join(self) -> None:
        clock.on_io(1)
        try:
            await self._ended.wait()  # first, so that no other thread has to wait long
            await to_thread.run_sync(self._thread.join)
        finally:
            clock.on_io(-1)

    async def call(self, work: Work[T], *, writes: bool) -> T:
        """Call `work` in a transaction, and return its result once that is committed.

        It may be called twice if the first transaction fails. A cancel scope that is cancelled
        before the call begins prevents it; later it has no effect.

        Raises:
            BrokerUnavailableError: The file can't be used.
            Exception: What `work` raised.
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
            with CancelScope(shield=True):  # transactions are short
                await call.done.wait()
        except BaseException:  # a native cancellation, which no scope shields from
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
                db = self._connect()
                self._identity = identity(self._file)
            except Exception as error:
                self._opening.error = self._explained(error)
                return
            finally:
                self._send([self._opening])
            try:
                self._serve(db)
            finally:
                disconnect(db, self._path)
        finally:
            self._post(self._ended.set)

    def _serve(self, db: sqlite3.Connection) -> None:
        with suppress(sqlite3.Error):  # otherwise the first check reports a change
            self._version = _data_version(db)
        while True:
            try:
                call = self._queue.get(timeout=self._pause())
            except Empty:
                # A connection that was not closed must not keep the interpreter alive.
                if not threading.main_thread().is_alive():
                    return
            else:
                calls = self._gather(call)
                self._settle([each for each in calls if each is not None], db)
                if calls[-1] is None:
                    return
            if self.watchers:
                self._check_for_changes(db)

    def _pause(self) -> float:
        if not self.watchers:
            return _IDLE
        return min(max((time.monotonic() - self._changed_at) / 100, _OFTEN), _SELDOM)

    def _gather(self, first: _SQLiteCall | None) -> list[_SQLiteCall | None]:
        """Return a call and those that wait behind it; `None` ends the thread."""
        calls = [first]
        while calls[-1] is not None and len(calls) < _MOST_TOGETHER:
            try:
                calls.append(self._queue.get_nowait())
            except Empty:
                break
        return calls

    def _check_for_changes(self, db: sqlite3.Connection) -> None:
        """Report changes by other connections."""
        try:
            version = _data_version(db)
        except sqlite3.Error:
            return  # the next call will report the error
        if version != self._version:
            self._version = version
            self._changed_at = time.monotonic()
            self._post(self._on_foreign_change)

    def _settle(self, calls: Sequence[_SQLiteCall], db: sqlite3.Connection) -> None:
        if not self._together(calls, db):
            for call in calls:
                self._together([call], db)
        self._send(calls)

    def _together(self, calls: Sequence[_SQLiteCall], db: sqlite3.Connection) -> bool:
        """Make calls in one transaction; return `False` if each must be made by itself."""
        wanted = [call for call in calls if not call.withdrawn]
        if not wanted:
            return True
        alone = len(wanted) == 1
        try:
            self._check_file()
            db.execute("BEGIN IMMEDIATE" if any(each.writes for each in wanted) else "BEGIN")
            for call in wanted:
                self._do(call, db, alone)
            db.execute("COMMIT")
        except Exception as error:
            full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            if not alone and (full or isinstance(error, _RolledBackError)):
                return False
            for call in wanted:
                call.error = self._explained(error)
        finally:
            if db.in_transaction:
                with suppress(sqlite3.Error):  # the next BEGIN will report it
                    db.execute("ROLLBACK")
        return True

    def _check_file(self) -> None:
        """Refuse a file that was replaced; SQLite itself would go on with the unlinked one."""
        if identity(self._file) != self._identity:
            raise BrokerUnavailableError(
                f"{self._path} was removed or replaced while it was open; it can be opened again "
                "once all queues that use it were left"
            )

    def _do(self, call: _SQLiteCall, db: sqlite3.Connection, alone: bool) -> None:
        call.error = None
        if alone:
            call.value = call.work(db)
            return
        db.execute("SAVEPOINT call")
        try:
            call.value = call.work(db)
        except Exception as error:
            if not db.in_transaction:  # the calls before this one are undone, too
                raise _RolledBackError from error
            db.execute("ROLLBACK TO call")
            call.error = self._explained(error)
        db.execute("RELEASE call")

    def _explained(self, error: Exception) -> Exception:
        if isinstance(error, BrokerUnavailableError):
            return error
        ours = isinstance(error, sqlite3.OperationalError | OSError)
        if ours or type(error) is sqlite3.DatabaseError:
            explained = BrokerUnavailableError(f"{self._path}: {error}")
            explained.__cause__ = error
            return explained
        return error

    def _send(self, calls: Sequence[_SQLiteCall]) -> None:
        self._post(lambda: self._deliver(calls))

    def _post(self, fn: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the event loop has ended, and with it the waiters
            self._backend.post(fn, self._context)

    def _deliver(self, calls: Sequence[_SQLiteCall]) -> None:
        for call in calls:
            clock.on_io(-1)
            call.done.set()


def _data_version(db: sqlite3.Connection) -> int:
    """Return a number that changes when other connections change the file."""
    ((version,),) = db.execute("PRAGMA data_version").fetchall()
    return int(version)
