"""The SQLite broker beyond the contract: its file, its thread, and other processes."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.time import SOON
from support.cancellation.injection import How, Point, World
from support.processes.process import PROGRAMS, running
from support.cancellation.stepping import When

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.abc import Claim, MaintenanceStats, Message, Settlement
from background.queues.sqlite import SQLiteBroker, schema, statements, transitions
from background.queues.sqlite import broker as module
from background.queues.sqlite.thread import _data_version
from background.testing import virtual_time, virtual_wall_clock

SCRIPT = PROGRAMS / "sqlite_worker.py"

#: What a file of version 1 is made with; never to be changed.
VERSION_1 = """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, handler TEXT,
        queue TEXT NOT NULL, state TEXT NOT NULL, token TEXT, changes_at REAL, expires_at REAL,
        attempt INTEGER NOT NULL DEFAULT 0, crashes INTEGER NOT NULL DEFAULT 0,
        cancelled INTEGER NOT NULL DEFAULT 0, delay REAL NOT NULL, at REAL, expires REAL,
        retention REAL NOT NULL, dead_retention REAL NOT NULL, depends_on TEXT NOT NULL,
        blocked INTEGER NOT NULL,
        enqueued_at REAL NOT NULL, started_at REAL, finished_at REAL,
        error TEXT, result BLOB, body BLOB NOT NULL
    );
    CREATE TABLE dependencies (
        job INTEGER NOT NULL, place INTEGER NOT NULL, depends_on TEXT NOT NULL,
        met INTEGER NOT NULL DEFAULT 0, result BLOB, PRIMARY KEY (job, place)
    ) WITHOUT ROWID;
    CREATE INDEX dependencies_unmet ON dependencies (depends_on) WHERE NOT met;
    CREATE TRIGGER dependencies_end AFTER DELETE ON jobs WHEN old.depends_on != '[]'
    BEGIN DELETE FROM dependencies WHERE job = old.number; END;
    CREATE INDEX jobs_ready ON jobs (queue, number) WHERE state = 'ready';
    CREATE INDEX jobs_changing ON jobs (changes_at)
        WHERE finished_at IS NULL AND changes_at IS NOT NULL;
    CREATE INDEX jobs_ended ON jobs (changes_at) WHERE finished_at IS NOT NULL;
    CREATE TABLE results (
        key TEXT NOT NULL PRIMARY KEY, result BLOB NOT NULL, until REAL NOT NULL
    );
    CREATE INDEX results_until ON results (until);
    PRAGMA user_version = 1;
    PRAGMA journal_mode = WAL;
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
async def broker(path: Path, anyio_backend: object) -> AsyncIterator[SQLiteBroker]:
    broker = SQLiteBroker(path)
    with virtual_wall_clock(datetime(2030, 1, 1, tzinfo=UTC)):
        await broker.open()
        yield broker
        await broker.close()


def message(id: str = "one", **options: Any) -> Message:
    return Message(
        **{
            "id": id,
            "handler": "h",
            "queue": "q",
            "body": b"{}",
            "retention": 60,
            "dead_retention": 60,
            **options,
        }
    )


def messages(count: int, **options: Any) -> list[Message]:
    return [message(f"{number:04}", **options) for number in range(count)]


async def finish(broker: SQLiteBroker, claims: list[Claim]) -> list[bool]:
    return await broker.settle(
        [
            Settlement(id=each.message.id, token=each.token, state=JobState.SUCCEEDED)
            for each in claims
        ]
    )


@contextmanager
def other_connection(path: Path) -> Iterator[sqlite3.Connection]:
    options: dict[str, Any] = {"isolation_level": None, "check_same_thread": False}
    with closing(sqlite3.connect(path, **options)) as db:
        yield db


def thread_of(broker: SQLiteBroker) -> Any:
    return broker._file._thread


def threads_of(path: Path) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if str(path) in each.name]


class Gate:
    """Keeps a broker's thread busy until it is opened."""

    def __init__(self, broker: SQLiteBroker) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        self._call = thread_of(broker).call

    async def wait(self) -> None:
        await self._call(self._hold, writes=False)

    def _hold(self, db: sqlite3.Connection) -> None:
        self.reached.set()
        assert self.opened.wait(SOON)

    async def run(self, *others: Callable[[], Awaitable[Any]]) -> None:
        """Let others call while the thread is busy."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.wait)
            await anyio.to_thread.run_sync(self.reached.wait, SOON)
            for other in others:
                group.start_soon(other)
                await anyio.wait_all_tasks_blocked()
            self.opened.set()


# The file


def test_what_is_no_file_is_refused() -> None:
    with pytest.raises(ValueError, match="MemoryBroker"):
        SQLiteBroker(":memory:")
    with pytest.raises(ValueError, match="MemoryBroker"):
        SQLiteBroker("")


def test_synchronous_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="synchronous"):
        SQLiteBroker("jobs.db", synchronous="OFF")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "number"), [("NORMAL", 1), ("FULL", 2)])
async def test_synchronous_reaches_sqlite(path: Path, name: Any, number: int) -> None:
    broker = SQLiteBroker(str(path), synchronous=name)
    await broker.open()

    def read(db: sqlite3.Connection) -> list[Any]:
        pragmas = ["synchronous", "journal_mode"]
        return [db.execute(f"PRAGMA {each}").fetchone()[0] for each in pragmas]

    assert await thread_of(broker).call(read, writes=False) == [number, "wal"]
    await broker.close()


@pytest.mark.skipif(sys.platform == "win32", reason="has no file modes")
async def test_only_the_owner_may_read_the_file(broker: SQLiteBroker, path: Path) -> None:
    """Whatever the umask is; also SQLite's other files."""
    await broker.enqueue([message()])
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes == dict.fromkeys(["jobs.db", "jobs.db-wal", "jobs.db-shm"], 0o600)


@pytest.mark.skipif(sys.platform == "win32", reason="has no file modes")
async def test_the_file_keeps_the_mode_that_somebody_gave_it(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT, 0o640))
    broker = SQLiteBroker(path)
    await broker.open()
    await broker.close()
    assert [stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()] == [0o640]


async def test_jobs_outlive_the_broker(path: Path) -> None:
    for expected in ([True, True], [False, False]):
        broker = SQLiteBroker(path)
        await broker.open()
        assert await broker.enqueue(messages(2)) == expected
        await broker.close()


@pytest.mark.parametrize("place", ["missing/jobs.db", ".", "text"])
async def test_what_can_not_be_opened(tmp_path: Path, place: str) -> None:
    (tmp_path / "text").write_text("This is not a database." * 100)
    broker = SQLiteBroker(tmp_path / place)
    with pytest.raises(BrokerUnavailableError, match=re.escape(str(tmp_path / place))):
        await broker.open()
    with pytest.raises(BrokerUnavailableError, match="not open"):
        await broker.get("one")
    await broker.close()


async def test_an_old_sqlite_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("background.queues.sqlite.schema._OLDEST", (99,))
    with pytest.raises(BrokerUnavailableError, match="too old"):
        await SQLiteBroker(path).open()


def test_without_wal_there_is_no_broker() -> None:
    with closing(sqlite3.connect(":memory:")) as db, pytest.raises(sqlite3.Error, match="WAL"):
        schema._use_wal(db)


async def test_a_network_file_system_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = path.with_name("mounts")
    mounts.write_text(f"server:/ {path.parent} nfs4 rw 0 0\n")
    monkeypatch.setattr("background.queues.sqlite.schema._MOUNTS", mounts)
    with pytest.raises(BrokerUnavailableError, match="nfs4"):
        await SQLiteBroker(path).open()
    mounts.unlink()
    broker = SQLiteBroker(path)
    await broker.open()
    await broker.close()


@pytest.mark.skipif(sys.platform == "win32", reason="mounts are Linux's")
async def test_mounts_may_have_any_names(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = path.with_name("mounts")
    mounts.write_bytes(b"disk /media/Ger\xe4t vfat rw 0 0\n")
    monkeypatch.setattr("background.queues.sqlite.schema._MOUNTS", mounts)
    broker = SQLiteBroker(path)
    await broker.open()
    await broker.close()


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/jobs.db", None),
        ("/home/a/jobs.db", "nfs"),
        ("/home/b/jobs.db", None),
        ("/homes/jobs.db", None),
        ("/my files/jobs.db", "cifs"),
    ],
)
def test_which_file_system_a_path_is_on(place: str, kind: str | None) -> None:
    mounts = """\
disk / ext4 rw 0 0
server:/ /home nfs rw 0 0
disk /home/b ext4 rw 0 0
server:/ /my\\040files ext4 rw 0 0
server:/ /my\\040files cifs rw 0 0
"""
    assert schema.network_file_system(place, mounts) == kind


# Versions of the file


async def test_a_file_of_version_1(path: Path) -> None:
    with other_connection(path) as db:
        db.executescript(VERSION_1)
        db.execute(
            "INSERT INTO jobs"
            " (id, handler, queue, state, delay, retention, dead_retention, depends_on, blocked,"
            " enqueued_at, body)"
            " VALUES ('old', 'h', 'q', 'ready', 0, 60, 60, '[]', 0, 1.5, x'7b7d')"
        )
    broker = SQLiteBroker(path)
    await broker.open()
    (claim,) = await broker.claim(["q"], 2, lease=30)
    assert (claim.message, claim.attempt, claim.enqueued_at) == (message("old"), 1, 1.5)
    assert await finish(broker, [claim]) == [True]
    await broker.close()
    with other_connection(path) as db:
        versions = db.execute("PRAGMA user_version").fetchone()
    assert versions == (len(schema.MIGRATIONS),)


async def test_a_file_of_a_newer_version_is_refused(path: Path) -> None:
    with other_connection(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(
        BrokerUnavailableError, match=r"jobs\.db has version 99, from a newer version"
    ):
        await SQLiteBroker(path).open()


def test_migrations_are_applied_once_and_in_order(path: Path) -> None:
    steps = [["CREATE TABLE a (x)"], ["ALTER TABLE a ADD y", "INSERT INTO a VALUES (1, 2)"]]
    with other_connection(path) as db:
        for known in (1, 2, 2):
            schema.migrate(db, "", steps[:known])
            assert db.execute("PRAGMA user_version").fetchone() == (known,)
        assert db.execute("SELECT x, y FROM a").fetchall() == [(1, 2)]


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    with other_connection(path) as db:
        with pytest.raises(sqlite3.OperationalError):
            schema.migrate(db, "", [["CREATE TABLE a (x)"], ["DROP TABLE b"]])
        assert db.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
        assert db.execute("PRAGMA user_version").fetchone() == (0,)


# Speed


HOT = [
    "INSERT",
    "CLAIM",
    "RENEW",
    "END",
    "RELEASE_CLAIM",
    "GET",
    "STATE",
    "HAS_READY",
    "NEXT_CHANGE",
]
HOT += [
    "CHANGING",
    "BECOMES_READY",
    "LOSES_ITS_LEASE",
    "ENDS_BY_TIME",
    "DELETE_IF_OLD",
    "DELETE_OLD",
]
HOT += ["CANCEL_RUNNING", "CANCEL_WAITING", "REQUEUE", "PAGE", "PURGE_PAGE", "COUNT_READY"]


def plan(path: Path, statement: str) -> list[str]:
    with other_connection(path) as db:
        values = (None,) * statement.count("?")
        return [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", values)]


@pytest.mark.parametrize("name", HOT)
async def test_no_statement_looks_at_all_jobs(broker: SQLiteBroker, path: Path, name: str) -> None:
    """So that jobs cost the same however many there are; nothing is sorted either."""
    details = plan(path, getattr(statements, name))
    assert not [each for each in details if "SCAN" in each or "TEMP B-TREE" in each]


async def test_jobs_are_claimed_by_the_index_of_those_that_are_ready(
    broker: SQLiteBroker, path: Path
) -> None:
    details = plan(path, statements.CLAIM)
    assert any("jobs_ready (queue=?)" in each for each in details)
    assert any("jobs_changing" in each for each in plan(path, statements.CHANGING))
    assert any("jobs_ended" in each for each in plan(path, statements.DELETE_OLD))


async def test_large_numbers_are_dealt_with_in_parts(
    broker: SQLiteBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no transaction keeps others waiting."""
    monkeypatch.setattr("background.queues.sqlite.transitions.CHUNK", 4)
    await broker.enqueue([*messages(10, delay=5), message("z", queue="r")])
    assert [job.message.id async for job in broker.scan(queue="r")] == ["z"]
    assert len([job async for job in broker.scan()]) == 11
    await anyio.sleep(6)
    assert await broker.maintain() == MaintenanceStats(due=10)
    await finish(broker, await broker.claim(["q"], 10, lease=30))
    assert await broker.purge(state=JobState.DEAD) == 0
    await anyio.sleep(61)
    assert await broker.maintain() == MaintenanceStats(deleted=10)
    await broker.enqueue(messages(12))
    await finish(broker, await broker.claim(["q"], 12, lease=30))
    assert await broker.purge(state=JobState.SUCCEEDED) == 12
    assert await broker.count() == 1


async def test_what_is_over_is_unknown_even_before_it_is_forgotten(broker: SQLiteBroker) -> None:
    await broker.enqueue([message(retention=5), message("two", expires=5)])
    await finish(broker, await broker.claim(["q"], 1, lease=30))
    await anyio.sleep(6)
    assert await broker.get("one") is None
    assert await broker.cancel("one") is None
    assert not await broker.requeue("one")
    assert await broker.claim(["q"], 1, lease=30) == []
    assert [job.message.id async for job in broker.scan()] == ["two"]
    assert await broker.count() == 1
    assert await broker.count(queue="q", state=JobState.READY) == 0


async def test_what_time_has_changed_but_not_ended_is_known(broker: SQLiteBroker) -> None:
    """Even before maintenance has come across it."""
    sent = [message(), message("due", delay=5), message("late", expires=5, queue="r")]
    await broker.enqueue(sent)
    await broker.claim(["q"], 1, lease=5)
    await anyio.sleep(6)
    assert await broker.enqueue(sent) == [False, False, False]
    assert await broker.count() == 3


async def test_a_job_handed_back_can_be_delayed(broker: SQLiteBroker) -> None:
    await broker.enqueue([message()])
    (claim,) = await broker.claim(["q"], 1, lease=30)
    back = Settlement(id="one", token=claim.token, state=JobState.READY, delay=10)
    assert await broker.settle([back]) == [True]
    began = anyio.current_time()
    await broker.wait_for_work(["q"], 100)
    assert anyio.current_time() - began == pytest.approx(10, abs=0.1)


async def test_waiting_for_a_job_that_expires(broker: SQLiteBroker) -> None:
    """Nobody else has to do maintenance for that."""
    await broker.enqueue([message(expires=10)])
    job = await broker.wait("one", 100)
    assert job is not None
    assert job.state is JobState.EXPIRED


# The thread


async def test_calls_that_wait_share_a_transaction(broker: SQLiteBroker) -> None:
    """And one that fails spoils nothing for the others."""
    done: dict[str, Any] = {}
    statements: list[str] = []

    async def enqueue(*ids: str) -> None:
        try:
            done[ids[-1]] = await broker.enqueue([message(id) for id in ids])
        except UnicodeEncodeError as error:
            done[ids[-1]] = error

    def trace(db: sqlite3.Connection) -> None:
        db.set_trace_callback(statements.append)

    await thread_of(broker).call(trace, writes=False)
    await Gate(broker).run(
        lambda: enqueue("a"), lambda: enqueue("b", "\ud800"), lambda: enqueue("c")
    )
    assert (done["a"], done["c"]) == ([True], [True])
    assert isinstance(done["\ud800"], UnicodeEncodeError)
    assert statements.count("BEGIN IMMEDIATE") == 1
    assert [job.message.id async for job in broker.scan()] == ["a", "c"]


async def test_one_call_that_fails_leaves_nothing(broker: SQLiteBroker) -> None:
    with pytest.raises(UnicodeEncodeError):
        await broker.enqueue([message("a"), message("\ud800")])
    assert await broker.count() == 0


async def test_only_so_many_calls_share_a_transaction(broker: SQLiteBroker) -> None:
    accepted: list[bool] = []

    async def enqueue() -> None:
        accepted.extend(await broker.enqueue([message(str(len(accepted)))]))

    await Gate(broker).run(*[enqueue] * 300)
    assert accepted.count(True) == 1
    assert accepted.count(False) == 299


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("number", range(9))
async def test_cancelled_at_any_point_a_call_is_done_or_not(
    broker: SQLiteBroker, how: How, number: int, anyio_backend_name: str
) -> None:
    """At each suspension in turn; the broker goes on working."""
    if anyio_backend_name == "trio" and how is How.NATIVE:
        how = How.SCOPE
    calls: list[Callable[[], Any]] = [
        lambda: broker.enqueue(messages(3)),
        lambda: broker.claim(["q"], 3, lease=30),
        lambda: broker.wait_for_work(["q", "r"], 1),
        lambda: broker.renew([], lease=30),
        lambda: broker.settle([]),
        lambda: broker.cancel("0001"),
        lambda: broker.wait("0002", 1),
        lambda: broker.purge(),
        lambda: broker.maintain(),
    ]
    points = 0
    for when in When:
        for suspension in range(1, 50):
            world = World(Point(suspension, when, how))
            outcome = await world.drive(calls[number]())
            assert outcome.cancelled or outcome.error is None
            assert await broker.count() in (0, 3)
            assert await broker.requeue("?") is False
            if world.injected_at is None:
                break
            points += 1
        else:
            raise AssertionError("there is no end to the suspensions")
    assert points
    assert await broker.enqueue([message("last", queue="s")]) == [True]
    assert len(await broker.claim(["s"], 1, lease=30)) == 1


async def test_cancelled_a_claim_is_not_lost(broker: SQLiteBroker) -> None:
    """By a scope: whoever claimed gets what was claimed, and can hand it back."""
    await broker.enqueue([message()])
    claims: list[Claim] = []

    async def claim() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            claims.extend(await broker.claim(["q"], 1, lease=30))

    scopes: list[anyio.CancelScope] = []
    gate = Gate(broker)

    async def cancel() -> None:
        scopes[0].cancel()

    await gate.run(claim, cancel)
    assert [each.message.id for each in claims] == ["one"]


async def test_opening_and_closing_again(path: Path) -> None:
    broker = SQLiteBroker(path)
    await broker.close()
    threads = threading.active_count()
    for _ in range(2):
        async with anyio.create_task_group() as group:
            group.start_soon(broker.open)
            group.start_soon(broker.open)
        assert len(threads_of(path)) == 1
        async with anyio.create_task_group() as group:
            group.start_soon(broker.close)
            group.start_soon(broker.close)
        assert not threads_of(path)
        with pytest.raises(BrokerUnavailableError, match="not open"):
            await broker.count()
    assert threading.active_count() <= threads + 1  # which anyio keeps for later


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("action", ["open", "close"])
async def test_cancelled_while_opening_or_closing(
    path: Path, how: How, action: str, anyio_backend_name: str
) -> None:
    """No thread is left, and the broker can be opened again."""
    if anyio_backend_name == "trio" and how is How.NATIVE:
        how = How.SCOPE
    for when in When:
        for suspension in range(1, 50):
            broker = SQLiteBroker(path)
            if action == "close":
                await broker.open()
            world = World(Point(suspension, when, how))
            await world.drive(getattr(broker, action)())
            await broker.close()
            for thread in threads_of(path):
                await anyio.to_thread.run_sync(thread.join, SOON)
            assert not threads_of(path)
            await broker.open()
            assert await broker.count() == 0
            await broker.close()
            if world.injected_at is None:
                break
        assert 1 < suspension < 49


async def test_closed_while_somebody_waits(broker: SQLiteBroker) -> None:
    async def wait() -> None:
        with pytest.raises(BrokerUnavailableError, match="not open"):
            await broker.wait_for_work(["q"], 80_000)
        refused.append(True)

    refused: list[bool] = []
    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.sleep(1)
        await broker.close()
    assert refused == [True]


async def test_who_waits_for_the_same_job(broker: SQLiteBroker) -> None:
    """One leaves early, the others hear of the end."""
    await broker.enqueue([message()])
    states: list[JobState] = []

    async def wait(timeout: float) -> None:
        job = await broker.wait("one", timeout)
        assert job is not None
        states.append(job.state)

    async with anyio.create_task_group() as group:
        group.start_soon(wait, 5)
        group.start_soon(wait, 80_000)
        group.start_soon(wait, 80_000)
        await anyio.sleep(10)
        await broker.cancel("one")
    assert states == [JobState.READY, JobState.CANCELLED, JobState.CANCELLED]
    assert not broker._ends


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_event_loop_that_ends_without_closing(backend: Any, path: Path) -> None:
    """The thread takes no harm from having nobody to answer."""
    broker = SQLiteBroker(path)

    async def main() -> None:
        await broker.open()
        await broker.enqueue([message()])

    name, options = virtual_time(backend)
    anyio.run(main, backend=name, backend_options=options)
    thread = thread_of(broker)
    thread._queue.put(thread._new_call(lambda db: db.execute("DELETE FROM jobs"), writes=True))
    thread._queue.put(None)
    thread._thread.join(SOON)
    assert not thread._thread.is_alive()
    with other_connection(path) as db:
        assert db.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


@pytest.mark.realtime
async def test_the_thread_ends_with_the_main_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("background.queues.sqlite.thread._IDLE", 0.01)
    broker = SQLiteBroker(path)
    await broker.open()
    with monkeypatch.context() as patch:
        ended = threading.Thread(target=int)
        patch.setattr(threading, "main_thread", lambda: ended)
        await anyio.to_thread.run_sync(thread_of(broker)._thread.join, SOON)
    await broker.close()


# Faults


async def test_locked_for_too_long(
    path: Path, monkeypatch: pytest.MonkeyPatch, anyio_backend: object
) -> None:
    monkeypatch.setattr("background.queues.sqlite.schema.BUSY_TIMEOUT", 0.02)
    broker = SQLiteBroker(path)
    await broker.open()
    with other_connection(path) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(BrokerUnavailableError, match=r"jobs\.db: database is locked"):
            await broker.enqueue([message()])
        assert await broker.get("one") is None
        db.execute("ROLLBACK")
        assert await broker.enqueue([message()]) == [True]
    await broker.close()


async def test_locked_while_it_is_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes may open a new file at once."""
    broker = SQLiteBroker(path)
    with other_connection(path) as db:
        db.execute("CREATE TABLE other (x)")
        db.execute("BEGIN IMMEDIATE")
        with monkeypatch.context() as patch:
            patch.setattr("background.queues.sqlite.schema.BUSY_TIMEOUT", -1)
            with pytest.raises(BrokerUnavailableError, match="locked"):
                await broker.open()
        tries: list[float] = []

        def give_way(seconds: float) -> None:
            tries.append(seconds)
            db.execute("ROLLBACK")

        with monkeypatch.context() as patch:
            patch.setattr(schema.time, "sleep", give_way)
            await broker.open()
    assert len(tries) == 1
    assert await broker.count() == 0
    await broker.close()


@contextmanager
def full_disk(broker: SQLiteBroker, path: Path) -> Iterator[Callable[[int], Awaitable[None]]]:
    """Give a function that leaves room for so many pages more."""

    async def leave(pages: int) -> None:
        def limit(db: sqlite3.Connection) -> None:
            (used,) = db.execute("PRAGMA page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {used + pages}")

        await thread_of(broker).call(limit, writes=False)

    yield leave
    with other_connection(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_full_disk(broker: SQLiteBroker, path: Path) -> None:
    """Enqueueing raises, nothing accepted is lost, and it goes on once there is room."""
    with full_disk(broker, path) as leave:
        await leave(20)
        accepted = 0
        with pytest.raises(BrokerUnavailableError, match=r"jobs\.db: database or disk is full"):
            while await broker.enqueue(messages(accepted + 5, body=b"x" * 1000)):
                accepted += 5
        assert accepted
        assert await broker.count() == accepted
        claims = await broker.claim(["q"], accepted, lease=30)
        assert len(claims) == accepted
        assert all(await finish(broker, claims))
        await leave(1000)
        assert await broker.enqueue([message("more")]) == [True]
    assert await broker.count() == accepted + 1


@pytest.mark.parametrize("what", ["job", "result"])
async def test_a_full_disk_spoils_nothing_for_calls_that_need_no_room(
    broker: SQLiteBroker, path: Path, what: str
) -> None:
    """Though SQLite may take back the whole transaction that they shared."""
    refused: list[BrokerUnavailableError] = []
    accepted: list[bool] = []
    large = b"x" * 1_000_000
    await broker.enqueue([message("held")])
    (claim,) = await broker.claim(["q"], 1, lease=30)
    success = Settlement(id="held", token=claim.token, state=JobState.SUCCEEDED, result=large)

    async def enqueue_large() -> None:
        with pytest.raises(BrokerUnavailableError) as caught:
            if what == "job":
                await broker.enqueue([message("large", body=large)])
            else:
                await broker.settle([success])
        refused.append(caught.value)

    async def enqueue_small(id: str) -> None:
        accepted.extend(await broker.enqueue([message(id)]))

    with full_disk(broker, path) as leave:
        await leave(3)
        await Gate(broker).run(
            lambda: enqueue_small("a"), enqueue_large, lambda: enqueue_small("b")
        )
    assert len(refused) == 1
    assert accepted == [True, True]
    assert sorted([job.message.id async for job in broker.scan()]) == ["a", "b", "held"]
    assert await broker.count(state=JobState.RUNNING) == 1


async def test_a_file_that_is_damaged(broker: SQLiteBroker, path: Path) -> None:
    await broker.enqueue([message()])
    with other_connection(path) as db:
        db.execute("DROP TABLE jobs")
    with pytest.raises(BrokerUnavailableError, match="no such table"):
        await broker.enqueue([message()])


@pytest.mark.skipif(sys.platform == "win32", reason="it keeps files that are open")
@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_is_taken_away(broker: SQLiteBroker, path: Path, replaced: bool) -> None:
    """Nothing is acknowledged that nobody would find."""
    take_away(path, replaced=replaced)
    for call in (broker.enqueue([message("a")]), broker.get("a"), broker.maintain()):
        with pytest.raises(BrokerUnavailableError, match="removed or replaced"):
            await call
    await broker.close()
    take_away(path, replaced=False)
    await broker.open()
    assert await broker.enqueue([message("a")]) == [True]


def take_away(path: Path, *, replaced: bool) -> None:
    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()
    if replaced:
        path.touch()


async def test_others_that_can_not_be_looked_out_for_at_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Exception] = [sqlite3.OperationalError("busy")]

    def ask(db: sqlite3.Connection) -> int:
        if answers:
            raise answers.pop()
        return _data_version(db)

    monkeypatch.setattr("background.queues.sqlite.thread._data_version", ask)
    broker = SQLiteBroker(path)
    await broker.open()
    assert await broker.enqueue([message()]) == [True]
    await broker.close()


async def test_others_that_can_not_be_looked_out_for(broker: SQLiteBroker) -> None:
    """What is done here is noticed all the same."""

    def refuse(db: sqlite3.Connection) -> None:
        denied = {sqlite3.SQLITE_PRAGMA: sqlite3.SQLITE_DENY}
        db.set_authorizer(lambda action, *_: denied.get(action, sqlite3.SQLITE_OK))

    await thread_of(broker).call(refuse, writes=False)
    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        group.start_soon(broker.wait_for_work, ["q"], 80_000)
        await anyio.sleep(1)
        await broker.enqueue([message()])
    assert anyio.current_time() - began < 2


# Other processes


@pytest.mark.realtime
@pytest.mark.filterwarnings("ignore:several connections")
async def test_each_job_goes_to_one_process(path: Path, anyio_backend_name: str) -> None:
    ids = [f"{number:04}" for number in range(200)]
    broker = SQLiteBroker(path)
    await broker.open()
    command = SCRIPT, "work", path, anyio_backend_name
    with running(*command) as one, running(*command) as two, running(*command) as three:
        for process in (one, two, three):
            await anyio.to_thread.run_sync(process.wait_for, "ready")
        await broker.enqueue(messages(200))
        await broker.enqueue([message(f"end {number}", queue="end") for number in range(3)])
        seen: list[str] = []
        for process in (one, two, three):
            line = await anyio.to_thread.run_sync(process.wait_for, "claimed ")
            seen += json.loads(line.removeprefix("claimed "))
            assert await anyio.to_thread.run_sync(process.wait) == 0
    assert sorted(seen) == [*ids, "end 0", "end 1", "end 2"]
    assert await broker.count(state=JobState.SUCCEEDED) == 203
    await broker.close()


@pytest.mark.realtime
@pytest.mark.filterwarnings("ignore:several connections")
async def test_work_from_another_process_is_noticed(path: Path) -> None:
    """Also by those who wait for a job's end."""
    broker, other = SQLiteBroker(path), SQLiteBroker(path)
    await broker.open()
    await other.open()
    await broker.enqueue([message("first", queue="r")])
    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], 1000)
            await anyio.wait_all_tasks_blocked()
            await other.enqueue([message()])
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait, "first", 1000)
            await anyio.wait_all_tasks_blocked()
            await other.cancel("first")
    await other.close()
    await broker.close()


@pytest.mark.realtime
@pytest.mark.parametrize("mended", [(0,), (99,)])
async def test_warned_of_other_connections_once(
    path: Path, mended: tuple[int], monkeypatch: pytest.MonkeyPatch, recwarn: Any
) -> None:
    """By SQLite's version, as not all of them can be shared without risk."""
    monkeypatch.setattr(module, "_FIXED", mended)
    broker, other = SQLiteBroker(path), SQLiteBroker(path)
    await broker.open()
    await other.open()
    await broker.enqueue([message("own")])
    await broker.wait_for_work(["q"], 1000)
    assert not list(recwarn)
    for number in range(2):
        with anyio.fail_after(SOON):
            async with anyio.create_task_group() as group:
                group.start_soon(broker.wait_for_work, ["r"], 1000)
                await anyio.wait_all_tasks_blocked()
                await other.enqueue([message(str(number), queue="r")])
                await anyio.wait_all_tasks_blocked()
        await other.claim(["r"], 1, lease=30)
    assert [each.category for each in recwarn] == [RuntimeWarning] * (mended == (99,))
    assert all(str(path) in str(each.message) for each in recwarn)
    await other.close()
    await broker.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no forking")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_after_a_fork_the_child_is_refused(path: Path, backend: str) -> None:
    with running(SCRIPT, "fork", path, backend) as process:
        assert process.wait() == 0
    ready, using, opening, *lines = process.lines
    assert ready == "ready"
    assert re.fullmatch(r"refused: .*jobs\.db was opened by another process, before a fork", using)
    assert re.fullmatch(r"refused: .*jobs\.db was open when this process was forked.*", opening)
    assert lines == ["child counts 0", "parent counts 0", "done"]


async def test_what_was_open_before_a_fork_is_not_opened_again(path: Path) -> None:
    """As SQLite would take the locks of the parent for the child's."""
    schema._open.append((str(path), 0))
    with pytest.raises(BrokerUnavailableError, match="was forked"):
        await SQLiteBroker(path).open()
    schema._open.remove((str(path), 0))
    broker = SQLiteBroker(path)
    await broker.open()
    await broker.close()
    assert (str(path), os.getpid()) not in schema._open


async def test_what_another_process_has_opened_is_refused(broker: SQLiteBroker) -> None:
    """As there is no thread that would answer; closing it waits for none."""
    thread = thread_of(broker)
    thread._process = 0
    with pytest.raises(BrokerUnavailableError, match="before a fork"):
        await broker.count()
    await thread.stop()
    thread._process = os.getpid()
    assert await broker.count() == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_process_that_does_not_close_ends_all_the_same(path: Path, backend: str) -> None:
    with running(SCRIPT, "forget", path, backend) as process:
        assert process.wait() == 0
    assert process.lines == ["ready", "done"]


def test_the_cost_of_a_group_after_a_group(tmp_path: Path) -> None:
    """Each job of the second needs all of the first, but looks at none of the others."""

    def steps(size: int) -> int:
        first = [message(f"a{size}.{n}") for n in range(size)]
        needs = tuple(each.id for each in first)
        second = [message(f"b{size}.{n}", depends_on=needs) for n in range(size)]
        done = 0

        def count() -> None:
            nonlocal done
            done += 1

        db.set_progress_handler(count, 100)
        transitions.enqueue(db, [*first, *second], 0.0)
        return done

    path = str(tmp_path / "jobs.db")
    db = schema.connect(path, "NORMAL")
    try:
        db.execute("BEGIN IMMEDIATE")
        assert steps(160) < 5 * steps(80)
        db.execute("ROLLBACK")
    finally:
        schema.disconnect(db, path)


async def test_a_thread_that_was_stopped_takes_no_call(broker: SQLiteBroker) -> None:
    thread = thread_of(broker)
    await broker.close()
    with pytest.raises(BrokerUnavailableError, match="is not open"):
        await thread.call(lambda db: None, writes=False)
