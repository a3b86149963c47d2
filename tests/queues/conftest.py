"""Fixtures of the tests of durable jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.brokers.faulty import FaultyBroker
from support.brokers.kinds import Kind

from background import Manager
from background.queues import JobQueue


@pytest.fixture
async def broker(
    broker_kind: Kind, anyio_backend: object, tmp_path: Path
) -> AsyncIterator[FaultyBroker]:
    """A broker that stays open during the test, although queues open and close it."""
    async with broker_kind.opened(broker_kind.make(tmp_path)) as real:
        yield FaultyBroker(real)


@pytest.fixture
def renewing_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make workers renew their leases often, so that they soon notice a cancellation."""
    monkeypatch.setattr("background.queues._worker.heartbeat._OFTEN", 0.1)


@pytest.fixture
async def jobs(broker: FaultyBroker, manager: Manager) -> AsyncIterator[JobQueue]:
    """An open queue, whose jobs are cancelled after the test."""
    async with JobQueue(broker) as jobs:
        yield jobs
        await manager.close(timeout=0)
