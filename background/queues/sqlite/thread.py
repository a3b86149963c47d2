"""The thread of a SQLite connection, which runs calls for the event loop.

Calls that arrive while the thread is busy share one transaction, with a single commit and a single
round trip to the thread. While another connection has a lock, calls that arrive join those that
wait, and a call whose time is up is answered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from os import getpid
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from anyio import CancelScope, to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from ..._eventloop.running import current_backend
from ..._support import clock
from .._errors import BrokerUnavailableError
from . import library
from .library import Connection
from .schema import disconnect
from .transaction import LockedError, SharedTransaction, SQLiteCall, Work
from .wal import WalGuard

T = TypeVar("T")

_MOST_TOGETHER = 256  # calls in one transaction

# The bounds in seconds of the pause between two checks for changes by other processes. The pause is
# a hundredth of the time since their last change.
_OFTEN, _SELDOM = 0.001, 0.05
_IDLE = 1.0  # seconds between two checks whether the program has ended, without watchers


class _ConnectionThread(threading.Thread):
    """The thread of a connection."""


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
        self._queue: SimpleQueue[SQLiteCall | None] = SimpleQueue()
        self._process = getpid()
        self._closed = False
        self._is_ending = False  # the thread has received the end of the queue
        self._transaction = SharedTransaction(path)
        self._version = 0  # of the data, see `_data_version`
        self._changed_at = 0.0
        # A daemon thread could be stopped in the middle of a transaction.
        self.library: Any = None  # of the connection, once it is open
        self.wal: WalGuard  # once the connection is open
        self._thread = _ConnectionThread(target=self._run, name=f"SQLite {path}", daemon=False)
        self._opening = self._new_call(lambda db: None)
        self._ended = self._backend.event()

    def _new_call(self, work: Work[Any], writes: bool = False) -> SQLiteCall:
        deadline = time.monotonic() + self._timeout
        return SQLiteCall(work, writes, self._backend.event(), deadline)

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
                self._transaction.opened()
            except Exception as error:
                self._opening.error = self._transaction.explained(error)
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
        while not self._is_ending:
            try:
                first = self._queue.get(timeout=self._pause())
            except Empty:
                # An unclosed connection must not keep the interpreter alive.
                if _program_has_ended():
                    return
            else:
                self._settle(self._gather([first]), db)
                self.wal.check(db)
            if self.watchers:
                self._check_for_changes(db)

    def _pause(self) -> float:
        if not self.watchers:
            return _IDLE
        return min(max((time.monotonic() - self._changed_at) / 100, _OFTEN), _SELDOM)

    def _gather(self, calls: Sequence[SQLiteCall | None]) -> list[SQLiteCall]:
        """Return calls and those that are queued behind them; `None` ends the thread."""
        gathered = [*calls]
        while None not in gathered[-1:] and len(gathered) < _MOST_TOGETHER:
            try:
                gathered.append(self._queue.get_nowait())
            except Empty:
                break
        self._is_ending = self._is_ending or None in gathered[-1:]
        return [call for call in gathered if call is not None]

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

    def _settle(
        self, calls: Sequence[SQLiteCall], db: Connection, *, may_join: bool = True
    ) -> None:
        """Run calls in one transaction, or in separate ones if they need those, and answer them.

        Args:
            calls: The calls.
            db: The connection.
            may_join: Whether calls that arrive while these wait for a lock may join them.
        """
        for call in self._together(calls, db, may_join=may_join):
            self._together([call], db, may_join=False)

    def _together(
        self, calls: Sequence[SQLiteCall], db: Connection, *, may_join: bool
    ) -> Sequence[SQLiteCall]:
        """Run calls in one transaction, and answer them.

        Returns:
            Calls that need separate transactions, and are not answered.
        """
        left = calls
        while left:
            wanted = [call for call in left if not call.withdrawn]
            try:
                if wanted and not self._transaction.run(wanted, db):
                    return left
            except LockedError:
                # Readers do not need the lock of writers; those without writers wait for another.
                waiting = [call for call in left if call.writes] or left
                reading = [] if waiting is left else [call for call in left if not call.writes]
                self._settle(reading, db, may_join=False)
                left = self._without_expired(waiting)
                left = self._gather(left) if may_join else left
            else:
                self._send(left)
                break
        return ()

    def _without_expired(self, calls: Sequence[SQLiteCall]) -> list[SQLiteCall]:
        """Answer the calls that wait for a lock no longer, and return the others."""
        now, is_closed = time.monotonic(), self._closed
        expired: list[SQLiteCall] = []
        left: list[SQLiteCall] = []
        for call in calls:
            if is_closed or call.withdrawn or call.deadline <= now:
                call.error = self._locked()
                expired.append(call)
            else:
                left.append(call)
        if expired:
            self._send(expired)
        return left

    def _locked(self) -> BrokerUnavailableError:
        how_long = "while this one was closed"
        if not self._closed:
            how_long = f"for the whole timeout of {self._timeout:g} s"
        error = BrokerUnavailableError(
            f"{self._path}: database is locked; another connection had the lock {how_long}"
        )
        error.changed_nothing = True
        return error

    def _send(self, calls: Sequence[SQLiteCall]) -> None:
        self._post(lambda: self._deliver(calls))

    def _post(self, fn: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the event loop has ended, and so have the waiters
            self._backend.post(fn, self._context)

    def _deliver(self, calls: Sequence[SQLiteCall]) -> None:
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
