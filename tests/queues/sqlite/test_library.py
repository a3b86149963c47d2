"""The SQLite library that opens a file."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from support.brokers.sqlite import message, thread_of

from background.queues import BrokerUnavailableError
from background.queues.sqlite import SQLiteBroker, library

needs_newer = pytest.mark.skipif(
    library.newest is sqlite3, reason="no newer SQLite than the standard library's is installed"
)


@pytest.fixture
def one_library() -> None:
    """Replace the fixture of the folder, so that files are opened as in programs."""


async def opened(path: Path) -> Any:
    """Return the library that opens a file, and check that it works."""
    broker = SQLiteBroker(path)
    await broker.open()
    assert await broker.enqueue([message()]) == [True]
    used = broker._file.library
    assert isinstance(thread_of(broker).library, type(sqlite3))
    await broker.close()
    return used


async def test_new_file(path: Path) -> None:
    """A file of jobs is opened with the newest library."""
    assert await opened(path) is library.newest
    broker = SQLiteBroker(path)
    await broker.open()  # now it has tables
    assert broker._file.library is library.newest
    await broker.close()


async def test_file_of_application(path: Path) -> None:
    """A file with tables of an application is opened as the application opens it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY AUTOINCREMENT)")
        assert await opened(path) is sqlite3
        db.execute("INSERT INTO orders VALUES (1)")


async def test_similar_names(path: Path) -> None:
    """Only the names of this library's own tables are those of a file of jobs."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE background_images (x)")
        assert await opened(path) is sqlite3


@needs_newer
async def test_file_opened_twice(path: Path) -> None:
    """A file that is open in this process is opened with the same library again."""
    broker, second = SQLiteBroker(path), SQLiteBroker(path)
    await broker.open()
    with closing(library.newest.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE orders (id)")
    await second.open()
    assert second._file.library is broker._file.library is library.newest
    await second.close()
    await broker.close()


@needs_newer
def test_two_libraries(path: Path) -> None:
    """Two libraries in one process get the same lock, which is why a file has only one."""
    options: dict[str, Any] = {"isolation_level": None, "timeout": 0}
    with (
        closing(sqlite3.connect(path, **options)) as first,
        closing(library.newest.connect(path, **options)) as second,
    ):
        first.execute("PRAGMA journal_mode = WAL")
        first.execute("BEGIN IMMEDIATE")
        second.execute("BEGIN IMMEDIATE")
        assert first.in_transaction
        assert second.in_transaction


async def test_no_newer_library(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the standard library's SQLite is the newest, it opens all files."""
    monkeypatch.setattr(library, "newest", sqlite3)
    assert await opened(path) is sqlite3


@pytest.mark.parametrize("kind", ["missing", "older"])
def test_standard_library(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a newer library, the standard library's is used."""
    older = SimpleNamespace(sqlite_version_info=(3, 7, 0))
    monkeypatch.setitem(sys.modules, "pysqlite3", None if kind == "missing" else older)
    monkeypatch.setitem(sys.modules, "pysqlite3.dbapi2", None if kind == "missing" else older)
    assert library._newest() is sqlite3


async def test_unreadable_file(path: Path) -> None:
    """A file that can't be read is refused, although its tables are unknown."""
    await anyio.Path(path).write_bytes(b"This is not a database." * 100)
    with pytest.raises(BrokerUnavailableError, match="file is not a database"):
        await SQLiteBroker(path).open()
