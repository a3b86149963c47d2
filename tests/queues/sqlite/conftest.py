"""Fixtures for the tests of the SQLite broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from background.queues.sqlite import SQLiteBroker, library
from background.testing import virtual_wall_clock


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


@pytest.fixture(autouse=True)
def one_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open all files with one library, because tests use several connections in one process."""
    monkeypatch.setattr(library, "choose", lambda *arguments: library.newest)
