"""The file of the SQLite broker: how it is created, opened and migrated."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .._errors import BrokerUnavailableError

#: Seconds for which a transaction waits for the transactions of other processes.
BUSY_TIMEOUT = 5.0

_OLDEST = (3, 35, 0)  # the first version that has RETURNING

#: The statements that bring a file to version 1, 2, and so on; not changed once they are released.
#: `changes_at` is when time alone changes a job's state.
MIGRATIONS: Sequence[Sequence[str]] = (
    (
        """
        CREATE TABLE jobs (
            number INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            handler TEXT,
            queue TEXT NOT NULL,
            state TEXT NOT NULL,
            token TEXT,
            changes_at REAL,
            expires_at REAL,
            attempt INTEGER NOT NULL DEFAULT 0,
            crashes INTEGER NOT NULL DEFAULT 0,
            cancelled INTEGER NOT NULL DEFAULT 0,
            delay REAL NOT NULL,
            at REAL,
            expires REAL,
            retention REAL NOT NULL,
            dead_retention REAL NOT NULL,
            depends_on TEXT NOT NULL,
            blocked INTEGER NOT NULL,
            enqueued_at REAL NOT NULL,
            started_at REAL,
            finished_at REAL,
            error TEXT,
            result BLOB,
            body BLOB NOT NULL
        )
        """,
        "CREATE INDEX jobs_ready ON jobs (queue, number) WHERE state = 'ready'",
        """
        CREATE INDEX jobs_changing ON jobs (changes_at)
        WHERE finished_at IS NULL AND changes_at IS NOT NULL
        """,
        "CREATE INDEX jobs_ended ON jobs (changes_at) WHERE finished_at IS NOT NULL",
        """
        CREATE TABLE dependencies (
            job INTEGER NOT NULL,
            place INTEGER NOT NULL,
            depends_on TEXT NOT NULL,
            met INTEGER NOT NULL DEFAULT 0,
            result BLOB,
            PRIMARY KEY (job, place)
        ) WITHOUT ROWID
        """,
        "CREATE INDEX dependencies_unmet ON dependencies (depends_on) WHERE NOT met",
        """
        CREATE TRIGGER dependencies_end AFTER DELETE ON jobs WHEN old.depends_on != '[]'
        BEGIN DELETE FROM dependencies WHERE job = old.number; END
        """,
        """
        CREATE TABLE results (
            key TEXT NOT NULL PRIMARY KEY, result BLOB NOT NULL, until REAL NOT NULL
        )
        """,
        "CREATE INDEX results_until ON results (until)",
    ),
)

#: File systems whose locks and shared memory do not do what SQLite's WAL mode needs.
_NETWORK = frozenset(
    {
        *("afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "glusterfs"),
        *("lustre", "nfs", "nfs4", "smb3", "smbfs"),
    }
)
_MOUNTS = Path("/proc/self/mounts")

#: The path and the process of each open connection.
_open: list[tuple[str, int]] = []
_opening = threading.Lock()  # only the brokers' own threads hold it


def connect(path: str, synchronous: str) -> sqlite3.Connection:
    """Open the file, create it if necessary, and apply all migrations.

    Raises:
        BrokerUnavailableError: SQLite or the file can't be used.
        OSError: The file can't be created.
        sqlite3.Error: SQLite can't open it.
    """
    if sqlite3.sqlite_version_info < _OLDEST:
        raise BrokerUnavailableError(f"SQLite {sqlite3.sqlite_version} is too old: 3.35 is needed")
    with suppress(OSError):
        if kind := network_file_system(str(Path(path).resolve()), _mounts()):
            raise BrokerUnavailableError(
                f"{path}: jobs can't be kept on a network file system ({kind})"
            )
    # One at a time, because closing a file that is being created would end SQLite's locks on it.
    with _opening:
        if any(place == path and process != os.getpid() for place, process in _open):
            raise BrokerUnavailableError(
                f"{path} was open when this process was forked, after which SQLite can't share it"
            )
        _create(path)
        db = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
        try:
            _use_wal(db)
            db.execute(f"PRAGMA synchronous = {synchronous}")
            db.execute("PRAGMA mmap_size = 0")
            migrate(db, path, MIGRATIONS)
        except BaseException:
            db.close()
            raise
        _open.append((path, os.getpid()))
        return db


def disconnect(db: sqlite3.Connection, path: str) -> None:
    """Close a connection that `connect` returned."""
    with _opening:
        db.close()
        _open.remove((path, os.getpid()))


def identity(path: Path) -> tuple[int, int] | None:
    """Return what distinguishes a file from any that replaces it; `None` if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def network_file_system(path: str, mounts: str) -> str | None:
    """Return the kind of network file system that a path is on, given Linux's list of mounts."""
    longest, found = "", ""
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(longest):  # a later mount hides those before it
            longest, found = point, kind
    return found if found in _NETWORK else None


def _mounts() -> str:
    return os.fsdecode(_MOUNTS.read_bytes())  # paths may be in any encoding


def _create(path: str) -> None:
    """Create an empty file for its owner alone; SQLite gives its other files the same mode."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _use_wal(db: sqlite3.Connection) -> None:
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            # SQLite does not wait here for other processes that do the same.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            if mode != "wal":
                raise sqlite3.OperationalError(f"there is no WAL mode here, but {mode!r}")
            return


def migrate(db: sqlite3.Connection, path: str, migrations: Sequence[Sequence[str]]) -> None:
    """Apply the migrations that a file lacks, all or none.

    Raises:
        BrokerUnavailableError: A newer version of this library has migrated the file.
    """
    if _version(db) == len(migrations):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        version = _version(db)  # another process may have migrated it meanwhile
        if version > len(migrations):
            raise BrokerUnavailableError(
                f"{path} has version {version}, from a newer version of this library; this one "
                f"supports versions up to {len(migrations)}"
            )
        for statements in migrations[version:]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {len(migrations)}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _version(db: sqlite3.Connection) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version
