"""The thread that a SQLite connection lives in, and how the event loop has work done there.

Whatever waits while the thread is busy is done in one transaction, so that one commit, and one way
there and back, serve all of it.
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

# Seconds between two looks at whether other processes have changed anything: a hundredth of the
# time since they last did, within these bounds.
_OFTEN, _SELDOM = 0.001, 0.05
_IDLE = 1.0  # seconds between two looks at whether the process ends, where nobody waits for others


class _Call:
    """Work on its way to the thread and back."""

    __slots__ = ("done", "error", "value", "withdrawn", "work", "writes")

    def __init__(self, work: Work[Any], writes: bool, done: Event) -> None:
        self.work = work
        self.writes = writes
        self.done = done
        self.withdrawn = False
        self.value: Any = None
        self.error: BaseException | None = None


class _RolledBackError(Exception):
    """SQLite has rolled back a transaction of its own accord."""


class SQLiteThread:
    """A connection and its thread, for one event loop.

    `on_foreign_change` is called in the event loop when other connections have changed the file,
    for as long as `watchers` is not 0.
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
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._process = getpid()
        self._closed = False
        self._file = Path(path)
        self._identity: tuple[int, int] | None = None  # of the file that is open
        self._version = 0  # what SQLite calls the data version
        self._changed_at = 0.0
        # Not a daemon, which would be stopped in the middle of a transaction.
        self._thread = threading.Thread(target=self._run, name=f"SQLite {path}", daemon=False)
        self._opening = self._new_call(lambda db: None)
        self._ended = self._backend.event()

    def _new_call(self, work: Work[Any], writes: bool = False) -> _Call:
        return _Call(work, writes, self._backend.event())

    async def start(self) -> None:
        """Start the thread and open the connection. Raises `BrokerUnavailableError`."""
        self._thread.start()
        clock.on_io(1)  # until `_deliver` is called for the opening
        with CancelScope(shield=True):
            await self._opening.done.wait()
            if self._opening.error is not None:
                await self._join()
                raise self._opening.error

    def abandon(self) -> None:
        """Let the thread close the connection and end, without waiting for it."""
        self._closed = True
        self._queue.put(None)

    async def stop(self) -> None:
        """Do what has been asked for, close the connection, and see the thread end."""
        if self._process != getpid():
            return  # the thread was left behind
        self.abandon()
        with CancelScope(shield=True):
            await self._join()

    async def _join(self) -> None:
        clock.on_io(1)
        try:
            await self._ended.wait()  # without a second thread that waits
            await to_thread.run_sync(self._thread.join)
        finally:
            clock.on_io(-1)

    async def call(self, work: Work[T], *, writes: bool) -> T:
        """Have work done in a transaction, and return once that is committed.

        It may be done twice if the first transaction fails. Raises what the work does, and
        `BrokerUnavailableError`. Cancelled by a scope, it is not begun or it is seen to its end, and its
        value returned.
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
            with CancelScope(shield=True):  # for no longer than transactions take
                await call.done.wait()
        except BaseException:  # by asyncio itself, which knows no shields
            call.withdrawn = True
            raise
        if call.error is not None:
            raise call.error
        value: T = call.value
        return value

    # What follows runs in the thread, but for `_deliver`.

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
        with suppress(sqlite3.Error):  # or else the first look takes this for a change
            self._version = _data_version(db)
        while True:
            try:
                call = self._queue.get(timeout=self._pause())
            except Empty:
                # Whoever does not close may not keep the interpreter from its end.
                if not threading.main_thread().is_alive():
                    return
            else:
                calls = self._gather(call)
                self._settle([each for each in calls if each is not None], db)
                if calls[-1] is None:
                    return
            if self.watchers:
                self._look_out(db)

    def _pause(self) -> float:
        if not self.watchers:
            return _IDLE
        return min(max((time.monotonic() - self._changed_at) / 100, _OFTEN), _SELDOM)

    def _gather(self, first: _Call | None) -> list[_Call | None]:
        """Return a call with those that wait behind it; `None` is the last there is."""
        calls = [first]
        while calls[-1] is not None and len(calls) < _MOST_TOGETHER:
            try:
                calls.append(self._queue.get_nowait())
            except Empty:
                break
        return calls

    def _look_out(self, db: sqlite3.Connection) -> None:
        """See whether others have changed the file; what was done here does not count."""
        try:
            version = _data_version(db)
        except sqlite3.Error:
            return  # whoever wants something done hears of it
        if version != self._version:
            self._version = version
            self._changed_at = time.monotonic()
            self._post(self._on_foreign_change)

    def _settle(self, calls: Sequence[_Call], db: sqlite3.Connection) -> None:
        if not self._together(calls, db):
            for call in calls:
                self._together([call], db)
        self._send(calls)

    def _together(self, calls: Sequence[_Call], db: sqlite3.Connection) -> bool:
        """Do work in one transaction; `False` if it failed, and each should be tried by itself."""
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
                with suppress(sqlite3.Error):  # the next BEGIN tells
                    db.execute("ROLLBACK")
        return True

    def _check_file(self) -> None:
        """SQLite itself goes on with a file that nobody else will find."""
        if identity(self._file) != self._identity:
            raise BrokerUnavailableError(
                f"{self._path} was removed or replaced while it was open; once all queues that use "
                "it have been left, it can be opened anew"
            )

    def _do(self, call: _Call, db: sqlite3.Connection, alone: bool) -> None:
        call.error = None
        if alone:
            call.value = call.work(db)
            return
        db.execute("SAVEPOINT call")
        try:
            call.value = call.work(db)
        except Exception as error:
            if not db.in_transaction:  # nothing is left of what was done before this
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

    def _send(self, calls: Sequence[_Call]) -> None:
        self._post(lambda: self._deliver(calls))

    def _post(self, fn: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # once the event loop has ended, nobody waits for this
            self._backend._call_soon(fn, self._context)

    def _deliver(self, calls: Sequence[_Call]) -> None:
        for call in calls:
            clock.on_io(-1)
            call.done.set()


def _data_version(db: sqlite3.Connection) -> int:
    """Return a number that changes when other connections change the file."""
    ((version,),) = db.execute("PRAGMA data_version").fetchall()
    return int(version)
