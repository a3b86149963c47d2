"""The file of the SQLite broker: its location, mode, versions and migrations."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.brokers.sqlite import finish, message, messages, other_connection, thread_of

from background.queues._errors import BrokerRefusedError, BrokerUnavailableError
from background.queues.abc import MaintenanceStats
from background.queues.sqlite import SQLiteBroker, file_system, schema
from background.queues.sqlite.library import Connection, newest

#: The schema of version 1. It must not change, as files with it exist.
VERSION_1 = """
    CREATE TABLE background_jobs (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, handler TEXT,
        queue TEXT NOT NULL, state TEXT NOT NULL, token TEXT, changes_at REAL, expires_at REAL,
        attempt INTEGER NOT NULL DEFAULT 0, crashes INTEGER NOT NULL DEFAULT 0,
        unconfirmed INTEGER NOT NULL DEFAULT 0, confirmed INTEGER NOT NULL DEFAULT 0,
        lost TEXT, cancelled INTEGER NOT NULL DEFAULT 0, delay REAL NOT NULL, at REAL, expires REAL,
        retention REAL NOT NULL, dead_retention REAL NOT NULL, depends_on TEXT NOT NULL,
        blocked INTEGER NOT NULL,
        enqueued_at REAL NOT NULL, started_at REAL, finished_at REAL,
        error TEXT, result BLOB, body BLOB NOT NULL
    );
    CREATE TABLE background_dependencies (
        job INTEGER NOT NULL, place INTEGER NOT NULL, depends_on TEXT NOT NULL,
        met INTEGER NOT NULL DEFAULT 0, result BLOB, PRIMARY KEY (job, place)
    ) WITHOUT ROWID;
    CREATE INDEX background_dependencies_unmet ON background_dependencies (depends_on)
        WHERE NOT met;
    CREATE TRIGGER background_dependencies_end
        AFTER DELETE ON background_jobs WHEN old.depends_on != '[]'
    BEGIN DELETE FROM background_dependencies WHERE job = old.number; END;
    CREATE INDEX background_jobs_ready ON background_jobs (queue, number) WHERE state = 'ready';
    CREATE INDEX background_jobs_changing ON background_jobs (changes_at)
        WHERE finished_at IS NULL AND changes_at IS NOT NULL;
    CREATE INDEX background_jobs_ended ON background_jobs (changes_at)
        WHERE finished_at IS NOT NULL;
    CREATE TABLE background_results (
        key TEXT NOT NULL PRIMARY KEY, result BLOB NOT NULL, until REAL NOT NULL
    );
    CREATE INDEX background_results_until ON background_results (until);
    CREATE TABLE background_version (version INTEGER NOT NULL);
    INSERT INTO background_version VALUES (1);
    PRAGMA journal_mode = WAL;
"""


# The file


def test_path_without_file() -> None:
    """A path that names no file is rejected, and the error suggests `MemoryBroker`."""
    with pytest.raises(ValueError, match="MemoryBroker"):
        SQLiteBroker(":memory:")
    with pytest.raises(ValueError, match="MemoryBroker"):
        SQLiteBroker("")


def test_invalid_synchronous() -> None:
    """A value of `synchronous` other than NORMAL and FULL is rejected."""
    with pytest.raises(ValueError, match="synchronous"):
        SQLiteBroker("jobs.db", synchronous="OFF")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "number"), [("NORMAL", 1), ("FULL", 2)])
async def test_synchronous(path: Path, name: Any, number: int) -> None:
    """The connection uses WAL and the given value of `synchronous`."""
    broker = SQLiteBroker(str(path), synchronous=name)
    await broker.open()

    def read(db: Connection) -> list[Any]:
        pragmas = ["synchronous", "journal_mode"]
        return [db.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in pragmas]

    assert await thread_of(broker).call(read, writes=False) == [number, "wal"]
    await broker.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
async def test_mode_of_new_files(broker: SQLiteBroker, path: Path) -> None:
    """New files, including SQLite's own, are only for their owner, whatever the umask is."""
    await broker.enqueue([message()])
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(["jobs.db", "jobs.db-wal", "jobs.db-shm"], 0o600)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
@pytest.mark.parametrize(
    ("mode", "warns"), [(0o600, False), (0o640, True), (0o644, True), (0o660, True)]
)
async def test_mode_of_existing_file(
    path: Path, mode: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An existing file keeps its mode; a warning is logged if others can use it."""
    os.close(os.open(path, os.O_CREAT, mode))
    await anyio.Path(path).chmod(mode)
    broker = SQLiteBroker(path)
    await broker.open()
    await broker.close()
    assert [stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()] == [mode]
    assert (f"jobs.db has mode {mode:04o}: other users can" in caplog.text) is warns


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no numbers of users")
async def test_owner_of_existing_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning is logged if an existing file belongs to another user."""
    os.close(os.open(path, os.O_CREAT, 0o600))
    if os.geteuid() == 0:
        os.chown(path, 4711, -1)
    else:
        monkeypatch.setattr("background.queues.sqlite.file_system._user", lambda: 0)
    broker = SQLiteBroker(path)
    await broker.open()
    await broker.close()
    assert re.search(r"jobs\.db belongs to another user \(\d+\)", caplog.text)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
async def test_symbolic_link(path: Path) -> None:
    """A file that a symbolic link names is created for its owner only."""
    place = path.with_name("real.db")
    await anyio.Path(path).symlink_to(place)
    broker = SQLiteBroker(path)
    await broker.open()
    assert stat.S_IMODE((await anyio.Path(place).stat()).st_mode) == 0o600
    assert await broker.enqueue([message()]) == [True]
    await broker.close()


async def test_reopen(path: Path) -> None:
    """Jobs are still stored when the file is opened again."""
    for expected in ([True, True], [False, False]):
        broker = SQLiteBroker(path)
        await broker.open()
        assert await broker.enqueue(messages(2)) == expected
        await broker.close()


@pytest.mark.parametrize("place", ["missing/jobs.db", ".", "text"])
async def test_unusable_path(tmp_path: Path, place: str) -> None:
    """Opening an unusable path fails with an error that contains the path."""
    (tmp_path / "text").write_text("This is not a database." * 100)
    broker = SQLiteBroker(tmp_path / place)
    with pytest.raises(BrokerUnavailableError, match=re.escape(str(tmp_path / place))):
        await broker.open()
    with pytest.raises(BrokerUnavailableError, match="not open"):
        await broker.get("one")
    await broker.close()


async def test_old_sqlite(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of SQLite that is too old is rejected."""
    monkeypatch.setattr("background.queues.sqlite.schema._OLDEST", (99,))
    with pytest.raises(BrokerUnavailableError, match="too old"):
        await SQLiteBroker(path).open()


def test_wal_unavailable() -> None:
    """A database that can't use WAL is rejected."""
    with closing(newest.connect(":memory:")) as db, pytest.raises(newest.Error, match="WAL"):
        schema._use_wal(db, 5)


async def test_network_file_system(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file on a network file system is rejected if the list of mounts can be read."""
    mounts = path.with_name("mounts")
    mounts.write_text(f"server:/ {path.parent} nfs4 rw 0 0\n")
    monkeypatch.setattr("background.queues.sqlite.file_system._MOUNTS", mounts)
    with pytest.raises(BrokerUnavailableError, match="nfs4"):
        await SQLiteBroker(path).open()
    mounts.unlink()
    broker = SQLiteBroker(path)
    await broker.open()
    await broker.close()


@pytest.mark.skipif(sys.platform == "win32", reason="the list of mounts is specific to Linux")
async def test_mount_names(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of mounts may contain any bytes."""
    mounts = path.with_name("mounts")
    mounts.write_bytes(b"disk /media/Ger\xe4t vfat rw 0 0\n")
    monkeypatch.setattr("background.queues.sqlite.file_system._MOUNTS", mounts)
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
        ("/mnt/c/jobs.db", "9p"),
        ("/shared/jobs.db", "virtiofs"),
        ("/vagrant/jobs.db", "vboxsf"),
        ("/bucket/jobs.db", "fuse.s3fs"),
        ("/dav/jobs.db", "fuse"),
        ("/container/jobs.db", None),
        ("/windows/jobs.db", None),
        ("/a\x0bb\u2028c\x85d/jobs.db", "nfs"),
        ("/a\tb\nc\\040#/jobs.db", "nfs4"),
    ],
)
def test_file_system_of_path(place: str, kind: str | None) -> None:
    """A path is on the file system that was mounted last at its nearest mount point."""
    mounts = """\
disk / ext4 rw 0 0
server:/ /home nfs rw 0 0
disk /home/b ext4 rw 0 0
server:/ /my\\040files ext4 rw 0 0
server:/ /my\\040files cifs rw 0 0
C: /mnt/c 9p rw 0 0
home /shared virtiofs rw 0 0
home /vagrant vboxsf rw 0 0
s3fs /bucket fuse.s3fs rw 0 0
https://dav /dav fuse rw 0 0
fuse-overlayfs /container fuse.fuse-overlayfs rw 0 0
/dev/sda1 /windows fuseblk rw 0 0
server:/ /a\x0bb\u2028c\x85d nfs rw 0 0
server:/ /a\\011b\\012c\\134040\\043 nfs4 rw 0 0
"""
    assert file_system.shared_file_system(place, mounts) == kind


# Versions of the file


async def test_version_1(path: Path) -> None:
    """Jobs in a file of version 1 can be claimed after its migration."""
    with other_connection(path) as db:
        db.executescript(VERSION_1)
        db.execute(
            "INSERT INTO background_jobs"
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
        assert version_of(db) == len(schema.MIGRATIONS)


@contextmanager
def refused(path: Path, message: str) -> Iterator[SQLiteBroker]:
    """Check that a broker refuses a file, and that the file stays as it is."""
    content = path.read_bytes()
    with pytest.raises(BrokerUnavailableError, match=message):
        yield SQLiteBroker(path)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_newer_version(path: Path) -> None:
    """A file of a newer version is rejected, and stays as it is."""
    with other_connection(path) as db:
        db.executescript(f"{VERSION_1}; UPDATE background_version SET version = 99")
    with refused(path, r"jobs\.db has job tables of version 99, from a newer version") as broker:
        await broker.open()


async def test_raised_version(path: Path) -> None:
    """A worker that runs while a newer release migrates the file refuses all further calls."""
    broker = SQLiteBroker(path)
    await broker.open()
    await broker.enqueue([message()])
    with other_connection(path) as db:
        db.execute("UPDATE background_version SET version = 99")
        for call in (broker.maintain, broker.maintain, broker.count):
            with pytest.raises(BrokerRefusedError, match=r"has job tables of version 99, from"):
                await call()
        db.execute("UPDATE background_version SET version = ?", (schema.WRITES,))
    await broker.close()
    await broker.open()
    assert await broker.maintain() == MaintenanceStats()
    assert await broker.count() == 1
    await broker.close()


async def test_read_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release opens a file of a version that it reads, but does not write yet."""
    monkeypatch.setattr(schema, "WRITES", 1)
    migrated, reading = SQLiteBroker(path), SQLiteBroker(path)
    await reading.open()
    await reading.close()
    with other_connection(path) as db:
        assert version_of(db) == 1
        monkeypatch.setattr(schema, "WRITES", 2)
        await migrated.open()
        await migrated.close()
        assert version_of(db) == 2
        monkeypatch.setattr(schema, "WRITES", 1)
        await reading.open()
        await reading.maintain()
        assert await reading.enqueue([message()]) == [True]
        await reading.close()
        assert version_of(db) == 2


@pytest.mark.parametrize(
    "statements",
    [
        "CREATE TABLE background_jobs (x)",
        "CREATE TABLE BACKGROUND_JOBS (x)",
        "CREATE TABLE Background_Version (version)",
        "CREATE INDEX background_jobs_ready ON orders (x)",
        "CREATE TRIGGER background_dependencies_end AFTER DELETE ON orders BEGIN SELECT 1; END",
        "CREATE VIEW background_results AS SELECT 1",
        "CREATE TABLE background_version (x)",
        "CREATE TABLE background_version (version INTEGER NOT NULL)",
        f"{VERSION_1} UPDATE background_version SET version = 'one'",
        f"{VERSION_1} UPDATE background_version SET version = -1",
        f"{VERSION_1} ALTER TABLE background_jobs ADD colour TEXT",
        f"{VERSION_1} DROP TABLE background_results",
        f"{VERSION_1} DROP INDEX background_jobs_ready",
    ],
)
async def test_unknown_tables(path: Path, statements: str) -> None:
    """A file whose tables have names of the library, but are not its own, stays as it is."""
    with other_connection(path) as db:
        db.executescript(f"CREATE TABLE orders (x); {statements}")
    with refused(path, "has objects that this library did not make.*: background_") as broker:
        await broker.open()


async def test_foreign_trigger(path: Path) -> None:
    """A file with a trigger of another program on the tables of jobs is rejected.

    It could run without end inside a transaction.
    """
    broker = SQLiteBroker(path)
    await broker.open()
    await broker.close()
    with other_connection(path) as db:
        db.executescript(
            """
            CREATE TRIGGER endless AFTER INSERT ON background_jobs BEGIN
                INSERT INTO background_results SELECT value, value, value FROM (
                    WITH RECURSIVE n (value) AS (VALUES (1) UNION ALL SELECT value + 1 FROM n)
                    SELECT value FROM n
                );
            END
            """
        )
    with refused(path, "objects that this library did not make.*: endless; use another") as broker:
        await broker.open()


async def test_trigger_on_table_of_application(path: Path) -> None:
    """An application may have triggers on its own tables, whatever their names are."""
    with other_connection(path) as db:
        db.executescript(
            """
            CREATE TABLE background_images (x);
            CREATE TRIGGER background_resize AFTER INSERT ON background_images BEGIN SELECT 1; END;
            """
        )
    broker = SQLiteBroker(path)
    for _ in range(2):
        await broker.open()
        await broker.close()


@pytest.mark.parametrize("content", [b"hello", b"This is not a database." * 100])
async def test_not_a_database(path: Path, content: bytes) -> None:
    """A file that is not a database is rejected, and stays as it is."""
    await anyio.Path(path).write_bytes(content)
    with refused(path, r"jobs\.db: file is not a database") as broker:
        await broker.open()


async def test_application_file(path: Path) -> None:
    """Jobs can be stored in a file of an application, which stays usable for it."""
    with other_connection(path) as db:
        db.executescript(
            """
            CREATE TABLE jobs (title);
            CREATE TABLE results (key);
            CREATE TABLE background_tasks (x);
            INSERT INTO jobs VALUES ('pilot');
            PRAGMA user_version = 1;
            PRAGMA application_id = 4711;
            """
        )
        for expected in ([True], [False]):
            broker = SQLiteBroker(path)
            await broker.open()
            assert await broker.enqueue([message()]) == expected
            db.execute("INSERT INTO results VALUES ('own')")
            await broker.close()
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("PRAGMA application_id").fetchone() == (4711,)
        assert db.execute("SELECT * FROM jobs").fetchall() == [("pilot",)]
        assert db.execute("SELECT count(*) FROM results").fetchone() == (2,)


def version_of(db: Connection) -> int:
    ((version,),) = db.execute("SELECT version FROM background_version").fetchall()
    return int(version)


def test_migration_order(path: Path) -> None:
    """Migrations are applied once and in order, and none after the version that is written."""
    add = "ALTER TABLE background_a ADD y", "INSERT INTO background_a VALUES (1, 2)"
    steps = (("CREATE TABLE background_a (x)",), add)
    with other_connection(path) as db:
        for upto, version in ((1, 1), (2, 2), (2, 2), (1, 2)):
            schema.migrate(db, "", steps, upto)
            assert version_of(db) == version
        assert db.execute("SELECT x, y FROM background_a").fetchall() == [(1, 2)]


def test_failed_migration(path: Path) -> None:
    """A failed migration leaves the file unchanged."""
    with other_connection(path) as db:
        with pytest.raises(newest.OperationalError):
            schema.migrate(db, "", (("CREATE TABLE a (x)",), ("DROP TABLE b",)), 2)
        assert db.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)


async def test_open_while_closing(tmp_path: Path) -> None:
    """A broker that is opened while it closes is open afterwards."""
    broker: Any = SQLiteBroker(tmp_path / "jobs.db")
    await broker.open()
    async with anyio.create_task_group() as group, broker._file._exclusively():
        group.start_soon(broker.close)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(broker.open)
        await anyio.wait_all_tasks_blocked()
    assert await broker.count() == 0
    await broker.close()


async def test_restore(path: Path) -> None:
    """A copy that was made while the file was open replaces it, and its jobs run again."""
    broker, log = SQLiteBroker(path), path.with_name("jobs.db-wal")
    await broker.open()
    await broker.enqueue([message("before")])
    copy = path.with_name("backup.db")
    with other_connection(path) as db:
        db.execute("VACUUM INTO ?", [str(copy)])
    await finish(broker, await broker.claim(["q"], 1, lease=30))
    await broker.enqueue([message("after")])
    left = await anyio.Path(log).read_bytes()
    await broker.close()
    await anyio.Path(log).write_bytes(left)  # a process that is killed leaves it
    copy.replace(path)
    log.unlink()
    await broker.open()
    (claim,) = await broker.claim(["q"], 10, lease=30)
    assert claim.message.id == "before"
    assert await finish(broker, [claim]) == [True]
    with other_connection(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    await broker.close()
