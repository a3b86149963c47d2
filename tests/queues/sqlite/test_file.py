"""The file of the SQLite broker: where it may be, its mode, and its migrations."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.brokers.sqlite import finish, message, messages, other_connection, thread_of

from background.queues._errors import BrokerUnavailableError
from background.queues.sqlite import SQLiteBroker, schema

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
