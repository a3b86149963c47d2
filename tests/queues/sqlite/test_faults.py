"""SQLite files that are locked, full, damaged or replaced."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from support.brokers.outage import LONGEST, shut_down_without
from support.brokers.sqlite import Gate, finish, message, messages, other_connection, thread_of

from background._support import clock
from background.queues import JobQueue
from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.abc import Message, Settlement
from background.queues.sqlite import SQLiteBroker, library, schema, wal
from background.queues.sqlite.library import Connection
from background.queues.sqlite.thread import _data_version

LIBRARIES = list(dict.fromkeys([library.newest, sqlite3]))


@pytest.fixture(autouse=True, params=LIBRARIES, ids=lambda library: library.__name__)
def one_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open all files with each library, because each has error classes of its own."""
    monkeypatch.setattr(library, "newest", request.param)
    monkeypatch.setattr(library, "choose", lambda *arguments: request.param)


async def test_lock_timeout(path: Path, anyio_backend: object) -> None:
    """A call fails if the file is locked for longer than the timeout."""
    broker = SQLiteBroker(path, timeout=0.02)
    await broker.open()
    with other_connection(path) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            BrokerUnavailableError, match=r"jobs\.db: database is locked.* timeout of 0.02 s"
        ):
            await broker.enqueue([message()])
        assert await broker.get("one") is None
        db.execute("ROLLBACK")
        assert await broker.enqueue([message()]) == [True]
    await broker.close()


async def test_lease_after_lock_wait(
    path: Path, monkeypatch: pytest.MonkeyPatch, anyio_backend: object
) -> None:
    """A lease begins when the claim has the write lock, not before its wait for the lock."""
    broker = SQLiteBroker(path)
    await broker.open()
    monkeypatch.setattr(clock, "wall", lambda: 1000.0)
    await broker.enqueue([message(retention=1e9)])
    with other_connection(path) as db:
        db.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as group:
            group.start_soon(partial(broker.claim, ["q"], 1, lease=30))
            await anyio.wait_all_tasks_blocked()
            monkeypatch.setattr(clock, "wall", lambda: 2000.0)
            db.execute("ROLLBACK")
        ((ends,),) = db.execute("SELECT changes_at FROM background_jobs").fetchall()
    assert ends == 2030.0
    await broker.close()


@pytest.mark.realtime
async def test_shutdown_while_locked(path: Path, anyio_backend: object) -> None:
    """A shutdown does not wait for a lock that another connection holds."""
    with other_connection(path) as db:
        took = await shut_down_without(SQLiteBroker(path), lambda: db.execute("BEGIN IMMEDIATE"))
    assert took < LONGEST


class CountingBroker(SQLiteBroker):
    calls = 0

    async def enqueue(self, messages: Sequence[Message]) -> list[bool]:
        self.calls += 1
        return await super().enqueue(messages)


async def test_locked_enqueue_once(path: Path, anyio_backend: object) -> None:
    """An enqueue that timed out at the lock is not repeated, because it has changed nothing."""
    broker = CountingBroker(path, timeout=0.02)
    async with JobQueue(broker) as jobs:
        with other_connection(path) as db:
            db.execute("BEGIN IMMEDIATE")
            with pytest.raises(BrokerUnavailableError, match="timeout"):
                await jobs.enqueue("h")
    assert broker.calls == 1


async def test_locked_while_created(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The creation of a file waits for a lock, as several processes may open a new file."""
    broker = SQLiteBroker(path)
    with other_connection(path) as db:
        db.execute("CREATE TABLE other (x)")
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(BrokerUnavailableError, match="locked"):
            await SQLiteBroker(path, timeout=0.001).open()
        retries: list[float] = []

        def release_lock(seconds: float) -> None:
            retries.append(seconds)
            db.execute("ROLLBACK")

        with monkeypatch.context() as patch:
            patch.setattr(schema.time, "sleep", release_lock)
            await broker.open()
    assert len(retries) == 1
    assert await broker.count() == 0
    await broker.close()


@contextmanager
def full_disk(broker: SQLiteBroker, path: Path) -> Iterator[Callable[[int], Awaitable[None]]]:
    """Yield a function that limits the file to its size plus a number of pages."""

    async def limit_growth(pages: int) -> None:
        def set_limit(db: Connection) -> None:
            (used,) = db.execute("PRAGMA page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {used + pages}")

        await thread_of(broker).call(set_limit, writes=False)

    yield limit_growth
    with other_connection(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_full_disk(broker: SQLiteBroker, path: Path) -> None:
    """Enqueueing fails while the disk is full, loses no accepted job, and works again later."""
    with full_disk(broker, path) as limit_growth:
        await limit_growth(20)
        accepted = 0
        with pytest.raises(BrokerUnavailableError, match=r"jobs\.db: database or disk is full"):
            while await broker.enqueue(messages(accepted + 5, body=b"x" * 1000)):
                accepted += 5
        assert accepted
        assert await broker.count() == accepted
        claims = await broker.claim(["q"], accepted, lease=30)
        assert len(claims) == accepted
        assert all(await finish(broker, claims))
        await limit_growth(1000)
        assert await broker.enqueue([message("more")]) == [True]
    assert await broker.count() == accepted + 1


@pytest.mark.parametrize("large_part", ["job", "result"])
async def test_full_disk_fails_one_call(broker: SQLiteBroker, path: Path, large_part: str) -> None:
    """A call that finds the disk full does not fail other calls of its transaction.

    SQLite may roll back the whole transaction that they share.
    """
    refused: list[BrokerUnavailableError] = []
    accepted: list[bool] = []
    large = b"x" * 1_000_000
    await broker.enqueue([message("held")])
    (claim,) = await broker.claim(["q"], 1, lease=30)
    success = Settlement(id="held", token=claim.token, state=JobState.SUCCEEDED, result=large)

    async def exceed_limit() -> None:
        with pytest.raises(BrokerUnavailableError) as caught:
            if large_part == "job":
                await broker.enqueue([message("large", body=large)])
            else:
                await broker.settle([success])
        refused.append(caught.value)

    async def enqueue_small(id: str) -> None:
        accepted.extend(await broker.enqueue([message(id)]))

    with full_disk(broker, path) as limit_growth:
        await limit_growth(3)
        await Gate(broker).run(lambda: enqueue_small("a"), exceed_limit, lambda: enqueue_small("b"))
    assert len(refused) == 1
    assert accepted == [True, True]
    assert sorted([job.message.id async for job in broker.scan()]) == ["a", "b", "held"]
    assert await broker.count(state=JobState.RUNNING) == 1


async def test_large_wal(
    broker: SQLiteBroker,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A log that a reader makes grow is reported once, and truncated when the reader is gone."""
    monkeypatch.setattr(wal, "BOUND", 1_000_000)
    monkeypatch.setattr(wal, "_INTERVAL", 0.0)
    file = path.with_name(f"{path.name}-wal")
    with other_connection(path) as db:
        db.execute("BEGIN")
        db.execute("SELECT * FROM background_jobs").fetchall()
        for id in ("a", "b", "c"):
            await broker.enqueue([message(id, body=b"x" * 1_000_000)])
        await broker.get("a")
        assert file.stat().st_size > 3_000_000
        db.execute("COMMIT")
    await broker.maintain()
    await broker.get("a")  # the check follows the answer of a call
    assert file.stat().st_size < 1_000_000
    (record,) = caplog.records
    assert "jobs.db-wal has 1 MB and can't be truncated" in record.getMessage()


async def test_space_for_log(
    broker: SQLiteBroker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs are refused while the disk has no space to write the log back."""
    space = 0
    monkeypatch.setattr(wal, "_INTERVAL", 0.0)
    monkeypatch.setattr(wal.shutil, "disk_usage", lambda path: SimpleNamespace(free=space))
    with other_connection(path) as db:
        db.execute("BEGIN")
        db.execute("SELECT * FROM background_jobs").fetchall()
        await broker.enqueue([message("a")])
        await broker.get("a")  # the check follows the answer of a call
        with pytest.raises(
            BrokerUnavailableError, match="less free space than is needed to write this log back"
        ):
            await broker.enqueue([message("b")])
        (claim,) = await broker.claim(["q"], 1, lease=30)
        assert await finish(broker, [claim]) == [True]
        db.execute("COMMIT")
    space = 1_000_000
    await broker.get("a")
    await broker.get("a")
    assert await broker.enqueue([message("b")]) == [True]


async def test_missing_table(broker: SQLiteBroker, path: Path) -> None:
    """A file without its tables makes calls fail."""
    await broker.enqueue([message()])
    with other_connection(path) as db:
        db.execute("DROP TABLE background_jobs")
    with pytest.raises(BrokerUnavailableError, match="no such table"):
        await broker.enqueue([message()])


@pytest.mark.skipif(sys.platform == "win32", reason="open files can't be removed")
@pytest.mark.parametrize("replaced", [False, True])
async def test_removed_file(broker: SQLiteBroker, path: Path, replaced: bool) -> None:
    """Calls fail once the file is removed or replaced.

    No other process would find a job that is acknowledged after that.
    """
    remove_file(path, replaced=replaced)
    for call in (broker.enqueue([message("a")]), broker.get("a"), broker.maintain()):
        with pytest.raises(BrokerUnavailableError, match="removed or replaced"):
            await call
    await broker.close()
    remove_file(path, replaced=False)
    await broker.open()
    assert await broker.enqueue([message("a")]) == [True]


def remove_file(path: Path, *, replaced: bool) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    if replaced:
        path.touch()


async def test_data_version_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed query for changes by other connections does not fail the broker."""
    errors: list[Exception] = [library.newest.OperationalError("busy")]

    def fail_once(db: Connection) -> int:
        if errors:
            raise errors.pop()
        return _data_version(db)

    monkeypatch.setattr("background.queues.sqlite.thread._data_version", fail_once)
    broker = SQLiteBroker(path)
    await broker.open()
    assert await broker.enqueue([message()]) == [True]
    await broker.close()


async def test_data_version_denied(broker: SQLiteBroker) -> None:
    """A broker notices its own changes even if it can't check for other changes."""

    def deny_pragmas(db: Connection) -> None:
        denied = {sqlite3.SQLITE_PRAGMA: sqlite3.SQLITE_DENY}
        db.set_authorizer(lambda action, *_: denied.get(action, sqlite3.SQLITE_OK))

    await thread_of(broker).call(deny_pragmas, writes=False)
    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        group.start_soon(broker.wait_for_work, ["q"], 80_000)
        await anyio.sleep(1)
        await broker.enqueue([message()])
    assert anyio.current_time() - began < 2
