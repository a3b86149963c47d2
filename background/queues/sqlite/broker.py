"""A broker that stores jobs in a SQLite file."""

from __future__ import annotations

import os
import warnings
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from math import inf
from typing import Any, TypeVar

import anyio

from ..._support import clock
from .._names import process_name
from .._states import FINAL, JobState
from ..abc import Broker, Claim, LeaseStatus, MaintenanceStats, Message, Settlement, StoredJob
from . import schedules, transitions
from .connection import SQLiteFile, Synchronous
from .transaction import Work

T = TypeVar("T")

_FIXED = (3, 51, 3)  # fixes a race between two connections that write, https://sqlite.org/wal.html
_SOON = 0.001  # the shortest wait in seconds, because clocks and timers are not exact


class SQLiteBroker(Broker):
    """A broker that stores jobs in a file, for the processes of one host.

    A broker object works in one event loop. All times are those of the host's wall clock.

    The file is created with mode 0600, for its owner only. A warning is logged for an existing file
    that other users can read or change. The file may be one of the application: all tables begin
    with `background_`, and only the journal mode of the file changes, to WAL.

    Before SQLite 3.51.3, several connections that change the file can damage it in rare cases. A
    `RuntimeWarning` is issued when there are several. With the extra `sqlite`, a newer SQLite opens
    files that have no tables of an application. Leave such a file to the queues of the process: two
    libraries in one process do not see each other's locks.

    Args:
        path: The file.
        synchronous: With `"NORMAL"`, jobs survive the end of the process, but the latest changes
            may be lost if the system loses power. With `"FULL"`, nothing is lost, and each
            transaction waits for the disk.
        timeout: Seconds that a call waits for the write lock of other connections; then it raises
            `BrokerUnavailableError`, and has changed nothing.

    Raises:
        ValueError: The path does not name a file, or another argument is not valid.

    Example:
        ```python
        jobs = JobQueue(SQLiteBroker("jobs.db"))
        ```
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Synchronous = "NORMAL",
        timeout: float = 5.0,
    ) -> None:
        self._file = SQLiteFile(path, synchronous, timeout, self._changed_by_others)
        self.path = self._file.path
        self._warned = False
        self._shared = False  # whether other connections change the file
        self._process = process_name()
        self._claims = count(1)
        self._work_changed: anyio.Event | None = None  # created by the first waiter
        self._ends: dict[str, set[anyio.Event]] = {}  # by job id: the waiters for its end

    def __repr__(self) -> str:
        return f"<SQLiteBroker {self.path}>"

    async def open(self) -> None:
        await self._file.open()

    async def close(self) -> None:
        await self._file.close()
        self._wake_all()

    async def enqueue(self, messages: Sequence[Message]) -> list[bool]:
        new = await self._file.write(_now(transitions.enqueue, messages=messages), adds=True)
        self._wake_workers()
        return new

    async def claim(self, queues: Sequence[str], most: int, *, lease: float) -> list[Claim]:
        token = f"{self._process}-{next(self._claims)}"
        claims, changed = await self._file.write(
            _now(transitions.claim, queues=queues, most=most, token=token, lease=lease)
        )
        if changed:
            self._wake_all()
        elif claims:
            self._wake_workers()  # waiters must consider the new leases
        return claims

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        with self._file.watched(), anyio.move_on_after(timeout):
            while True:
                changed = self._work_changed = self._work_changed or anyio.Event()
                at = await self._file.read(partial(transitions.next_work, queues=queues))
                self._warn()
                if at == 0.0:
                    return
                await self._wait(changed, at)

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> list[LeaseStatus]:
        return await self._file.write(_now(transitions.renew, claims=claims, lease=lease))

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        work = _now(transitions.settle, settlements=settlements)
        accepted, others_change = await self._file.write(work)
        if others_change:
            self._wake_all()
            return accepted
        for settlement in settlements:
            self._wake_waiters(settlement.id)
        if any(settlement.state not in FINAL for settlement in settlements):
            self._wake_workers()
        return accepted

    async def save(self, id: str, token: str, result: bytes) -> bool:
        work = _now(transitions.save, id=id, token=token, result=result)
        return await self._file.write(work)

    async def cancel(self, id: str) -> JobState | None:
        state = await self._file.write(_now(transitions.cancel, id=id))
        self._wake_all()
        return state

    async def requeue(self, id: str) -> bool:
        done = await self._file.write(_now(transitions.requeue, id=id))
        self._wake_all()
        return done

    async def get(self, id: str) -> StoredJob | None:
        job, _ = await self._file.read(_now(transitions.get, id=id))
        return job

    async def wait(self, id: str, timeout: float) -> StoredJob | None:
        with self._file.watched(), anyio.move_on_after(timeout):
            while True:
                with self._waiting(id) as ended:
                    work = _now(transitions.get, id=id)
                    job, at = await self._file.read(work)
                    self._warn()
                    if job is None or job.state in FINAL:
                        return job
                    await self._wait(ended, at)
        return await self.get(id)

    async def scan(
        self, *, queue: str | None = None, state: JobState | None = None
    ) -> AsyncIterator[StoredJob]:
        last: int | None = 0
        while last is not None:
            found, last = await self._file.read(
                _now(transitions.page, after=last, queue=queue, state=state)
            )
            for job in found:
                yield job

    async def count(self, *, queue: str | None = None, state: JobState | None = None) -> int:
        return await self._file.read(_now(transitions.count, queue=queue, state=state))

    async def purge(self, *, state: JobState | None = None, older_than: float = 0.0) -> int:
        before = clock.wall() - older_than
        purged = 0
        last: int | None = 0
        while last is not None:
            number, last = await self._file.write(
                partial(transitions.purge, after=last, state=state, before=before)
            )
            purged += number
        self._wake_all()
        return purged

    async def advance_schedule(
        self, name: str, expected: float | None, tick: float, *, retention: float
    ) -> float:
        now = clock.wall()
        return await self._file.write(
            partial(
                schedules.advance,
                name=name,
                expected=expected,
                tick=tick,
                now=now,
                retention=retention,
            )
        )

    async def maintain(self) -> MaintenanceStats:
        await self._file.check_version()
        done, complete = MaintenanceStats(), False
        while not complete:
            part, complete = await self._file.write(_now(transitions.maintain))
            done = MaintenanceStats(
                due=done.due + part.due,
                reclaimed=done.reclaimed + part.reclaimed,
                expired=done.expired + part.expired,
                deleted=done.deleted + part.deleted,
            )
        if done != MaintenanceStats():
            self._wake_all()
        return done

    @contextmanager
    def _waiting(self, id: str) -> Generator[anyio.Event]:
        """Yield an event that is set when the job may have ended."""
        event = anyio.Event()
        events = self._ends.setdefault(id, set())
        events.add(event)
        try:
            yield event
        finally:
            events.discard(event)
            if not events:
                del self._ends[id]

    async def _wait(self, changed: anyio.Event, at: float) -> None:
        """Wait for an event, or until a transition is due at `at`, and make the transition."""
        now = clock.wall()
        if at > now:
            seconds = inf if at == inf else max(at - now, _SOON)
            with anyio.move_on_after(seconds):
                await changed.wait()
        elif await self._file.write(partial(transitions.advance, now=now)) != MaintenanceStats():
            self._wake_all()

    def _wake_workers(self) -> None:
        changed, self._work_changed = self._work_changed, None
        if changed is not None:
            changed.set()

    def _wake_waiters(self, id: str) -> None:
        for event in self._ends.get(id, ()):
            event.set()

    def _wake_all(self) -> None:
        self._wake_workers()
        for id in self._ends:
            self._wake_waiters(id)

    def _changed_by_others(self) -> None:
        self._shared = True
        self._wake_all()

    def _warn(self) -> None:
        if self._shared and not self._warned:
            self._warned = True
            library = self._file.library
            if library.sqlite_version_info >= _FIXED:
                return
            warnings.warn(
                f"several connections change {self.path}, which can damage the file in rare cases "
                f"with SQLite {library.sqlite_version}; use SQLite 3.51.3 or later, which the "
                "extra anyio-background[sqlite] has for files without tables of an application, a "
                "single process, or another broker",
                RuntimeWarning,
                stacklevel=3,
            )


def _now(transition: Callable[..., T], **arguments: Any) -> Work[T]:
    """Return a call of a transition that takes the time after the wait for the write lock."""
    return lambda db: transition(db, now=clock.wall(), **arguments)
