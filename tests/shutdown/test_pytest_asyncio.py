"""Fixtures of pytest-asyncio, which runs their setup and their teardown in different tasks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from support.processes.process import running

pytestmark = pytest.mark.skipif(
    find_spec("pytest_asyncio") is None, reason="pytest-asyncio is not installed"
)

MODULE = """
import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from background import Manager
from background.queues import JobQueue

jobs = JobQueue.from_url("memory://")

@jobs.handler(name="double")
async def double(number: int) -> int:
    return 2 * number

@pytest_asyncio.fixture
async def manager() -> AsyncIterator[Manager]:
    async with Manager() as manager:
        yield manager
    assert manager.state == "closed"

@pytest_asyncio.fixture
async def worker(manager: Manager) -> AsyncIterator[None]:
    async with jobs:
        await jobs.start(manager)
        yield

@pytest_asyncio.fixture
async def opened() -> AsyncIterator[Manager]:
    manager = Manager()
    await manager.open()
    yield manager
    assert len((await manager.close()).succeeded) == 1

@pytest.mark.asyncio
async def test_manager(manager: Manager) -> None:
    assert await manager.run(asyncio.sleep, 0, "done") == "done"
    manager.run(asyncio.sleep, 0.01)

@pytest.mark.asyncio
async def test_queue(worker: None) -> None:
    job = await double.enqueue(21)
    assert await job.result(timeout=10) == 42

@pytest.mark.asyncio
async def test_opened(opened: Manager) -> None:
    opened.run(asyncio.sleep, 0.01)
"""


def test_fixtures(tmp_path: Path) -> None:
    """A yield fixture can hold a manager and a queue, with a block or with `open()`."""
    program = tmp_path / "test_fixtures.py"
    program.write_text(MODULE, "utf-8")
    options = ("-q", "-p", "no:cacheprovider", "-W", "error", "--rootdir", tmp_path)
    scope = "asyncio_default_fixture_loop_scope=function"
    with running("-m", "pytest", *options, "-o", scope, program) as process:
        assert process.wait() == 0, process.output
    assert "3 passed" in process.output
