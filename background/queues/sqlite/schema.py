"""The schema of the jobs in a SQLite file, and its creation, opening and migration.

The file may belong to an application. All names begin with `background_`, the version of the schema
is in a table, and the file's own `user_version` and `application_id` are never written.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from functools import cache
from typing import Any

from .._errors import BrokerRefusedError
from . import file_system, library
from .library import SQLITE_BUSY, Connection
from .wal import BOUND

#: Milliseconds that SQLite waits for a lock before the thread checks the bounds of its calls.
_BUSY_TIMEOUT = 50

_OLDEST = (3, 35, 0)  # the first version that has RETURNING

Migrations = tuple[tuple[str, ...], ...]

#: The table with the version of the schema, in one row.
_VERSION = "background_version"

#: By name in lower case: an object's type, table and column, for each of its columns.
_Objects = dict[str, list[tuple[Any, ...]]]

#: The statements that migrate a file to version 1, 2, and so on. They never change after a release.
#: `changes_at` is the time of a job's next transition without an action of a worker or a user.
MIGRATIONS: Migrations = (
    (
        """
        CREATE TABLE background_jobs (
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
            unconfirmed INTEGER NOT NULL DEFAULT 0,
            confirmed INTEGER NOT NULL DEFAULT 0,
            lost TEXT,
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
        """
        CREATE INDEX background_jobs_ready ON background_jobs (queue, number)
        WHERE state = 'ready'
        """,
        """
        CREATE INDEX background_jobs_changing ON background_jobs (changes_at)
        WHERE finished_at IS NULL AND changes_at IS NOT NULL
        """,
        """
        CREATE INDEX background_jobs_ended ON background_jobs (changes_at)
        WHERE finished_at IS NOT NULL
        """,
        """
        CREATE TABLE background_dependencies (
            job INTEGER NOT NULL,
            place INTEGER NOT NULL,
            depends_on TEXT NOT NULL,
            met INTEGER NOT NULL DEFAULT 0,
            result BLOB,
            PRIMARY KEY (job, place)
        ) WITHOUT ROWID
        """,
        """
        CREATE INDEX background_dependencies_unmet ON background_dependencies (depends_on)
        WHERE NOT met
        """,
        """
        CREATE TRIGGER background_dependencies_end
        AFTER DELETE ON background_jobs WHEN old.depends_on != '[]'
        BEGIN DELETE FROM background_dependencies WHERE job = old.number; END
        """,
        """
        CREATE TABLE background_results (
            key TEXT NOT NULL PRIMARY KEY, result BLOB NOT NULL, until REAL NOT NULL
        )
        """,
        "CREATE INDEX background_results_until ON background_results (until)",
    ),
    (
        """
        CREATE TABLE background_schedules (
            name TEXT NOT NULL PRIMARY KEY, tick REAL NOT NULL, until REAL NOT NULL
        )
        """,
    ),
)

#: The version to which this library migrates a file, and the latest that it reads. A release that
#: changes the schema first adds a migration, and the next release makes it: two releases that
#: follow each other can run at the same time.
WRITES, READS = len(MIGRATIONS), len(MIGRATIONS)

#: The path, the process and the file of each open connection.
_open: dict[Connection, tuple[str, int, object]] = {}
_opening = threading.Lock()  # held by brokers' threads only


def connect(path: str, synchronous: str, timeout: float) -> Connection:
    """Open the file, create it if necessary, and apply all migrations.

    Args:
        path: The file.
        synchronous: SQLite's setting `PRAGMA synchronous`.
        timeout: Seconds that opening waits for the locks of other connections.

    Raises:
        BrokerRefusedError: SQLite or the file can't be used.
        OSError: The file can't be created.
        sqlite3.Error: SQLite can't open it.
    """
    place = file_system.resolved(path)
    file_system.check(place)
    # One at a time, because `create` closes a descriptor, which drops all locks of the process on
    # the file: https://sqlite.org/howtocorrupt.html
    with _opening:
        if any(used == path and process != os.getpid() for used, process, _ in _open.values()):
            raise BrokerRefusedError(
                f"{path} was open when this process was forked; SQLite can't share it after a fork"
            )
        file_system.create(place)
        file = file_system.identity(place)
        opened = [library.of(db) for db, (*_, used) in _open.items() if used == file]
        sqlite = opened[0] if opened else library.choose(path, timeout, _made_by(MIGRATIONS))
        if sqlite.sqlite_version_info < _OLDEST:
            raise BrokerRefusedError(
                f"SQLite {sqlite.sqlite_version} is too old; 3.35 or later is required"
            )
        db: Connection = sqlite.connect(path, timeout=timeout, isolation_level=None)
        db.text_factory = _text
        try:
            with _transaction(db, "BEGIN"):  # before WAL mode, which changes the file
                version = stored_version(db, path, MIGRATIONS)
            _use_wal(db, timeout)
            db.execute(f"PRAGMA synchronous = {synchronous}")
            db.execute("PRAGMA mmap_size = 0")
            db.execute(f"PRAGMA journal_size_limit = {BOUND}")
            if version < WRITES:
                migrate(db, path, MIGRATIONS, WRITES)
            db.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT}")
        except BaseException:
            db.close()
            raise
        _open[db] = path, os.getpid(), file
        return db


def disconnect(db: Connection) -> None:
    """Close a connection that `connect` returned."""
    with _opening:
        db.close()
        del _open[db]


def _text(stored: bytes) -> str | bytes:
    """Decode a text; return one that is no UTF-8 unchanged, which affects only its own row."""
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return stored


def _use_wal(db: Connection, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        except library.OPERATIONAL_ERRORS as error:
            # Processes that do this at the same time get SQLITE_BUSY in spite of the timeout.
            code: int = getattr(error, "sqlite_errorcode", 0)
            if code != SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            if mode != "wal":
                raise library.newest.OperationalError(
                    f"WAL mode is not available here; the mode is {mode!r}"
                )
            return


def migrate(db: Connection, path: str, migrations: Migrations, upto: int) -> None:
    """Apply the missing migrations in one transaction.

    Args:
        db: The connection.
        path: The file, for messages.
        migrations: The statements of all migrations.
        upto: The version to which the file is migrated, unless it has a later one.

    Raises:
        BrokerRefusedError: The tables in the file are not those of a known version.
    """
    with _transaction(db, "BEGIN IMMEDIATE"):
        version = stored_version(db, path, migrations)
        if version < upto:
            _apply(db, migrations[:upto], version)


def _apply(db: Connection, migrations: Migrations, version: int) -> None:
    if version == 0:
        db.execute(f"CREATE TABLE {_VERSION} (version INTEGER NOT NULL)")
        db.execute(f"INSERT INTO {_VERSION} VALUES (0)")
    for statements in migrations[version:]:
        for statement in statements:
            db.execute(statement)
    db.execute(f"UPDATE {_VERSION} SET version = ?", (len(migrations),))


def stored_version(db: Connection, path: str, migrations: Migrations) -> int:
    """Return the version of the tables in the file, or 0 if there are none; change nothing.

    The rest of the file may belong to an application.

    Raises:
        BrokerRefusedError: The tables are not those of a known version.
    """
    found = _objects(db)
    version = 0
    if found.get(_VERSION) == [("table", _VERSION, "version", "INTEGER", 1, 0)]:
        version = _number(db)
    if version > len(migrations):
        raise BrokerRefusedError(_newer(path, version, len(migrations)))
    latest = expected = _made_by(migrations)
    if version < len(migrations):
        expected = _made_by(migrations[:version]) if version else {}
    # Any other trigger on one of our tables would run inside our transactions, perhaps without end.
    triggers = {
        name
        for name, ((kind, table, *_), *_) in found.items()
        if kind == "trigger" and table in latest
    }
    checked = latest.keys() | triggers
    unknown = sorted(name for name in checked if found.get(name) != expected.get(name))
    if unknown:
        raise BrokerRefusedError(
            f"{path} has objects that this library did not make, or that were changed since: "
            f"{', '.join(unknown)}; use another file"
        )
    return version


def refusal(db: Connection, path: str) -> str | None:
    """Return why an open file is refused, if a newer version of the library has migrated it."""
    version = _number(db)
    return _newer(path, version, READS) if version > READS else None


def _number(db: Connection) -> int:
    ((number,),) = db.execute(f"SELECT max(version) FROM {_VERSION}").fetchall()
    return number if isinstance(number, int) and number > 0 else 0


def _newer(path: str, version: int, most: int) -> str:
    return (
        f"{path} has job tables of version {version}, from a newer version of this library; this "
        f"one supports versions up to {most}"
    )


@cache
def _made_by(migrations: Migrations) -> _Objects:
    """Return what migrations make in an empty file."""
    with closing(library.newest.connect(":memory:", isolation_level=None)) as db:
        _apply(db, migrations, 0)
        return _objects(db)


def _objects(db: Connection) -> _Objects:
    found: _Objects = {}
    for name, *column in db.execute(
        """
        SELECT lower(o.name), o.type, lower(o.tbl_name), c.name, c.type, c."notnull", c.pk
        FROM sqlite_schema AS o LEFT JOIN pragma_table_info(o.name) AS c
        WHERE lower(o.name) GLOB 'background_*'
            OR (o.type = 'trigger' AND lower(o.tbl_name) GLOB 'background_*')
        ORDER BY c.cid
        """
    ):
        found.setdefault(name, []).append(tuple(column))
    return found


@contextmanager
def _transaction(db: Connection, begin: str) -> Generator[None]:
    db.execute(begin)
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
