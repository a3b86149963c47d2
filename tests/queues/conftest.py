"""What the tests of durable jobs share: a broker that several queues use, and one such queue."""

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
    """A broker that is open for as long as the test runs, whoever else opens and closes it."""
    async with broker_kind.opened(broker_kind.make(tmp_path)) as real:
        yield FaultyBroker(real)


@pytest.fixture
def renewing_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers ask the broker soon, with a lease that no slow machine loses."""
    monkeypatch.setattr("background.queues._worker.heartbeat._OFTEN", 0.1)


@pytest.fixture
async def jobs(broker: FaultyBroker, manager: Manager) -> AsyncIterator[JobQueue]:
    """An open queue; after the test what it runs is cancelled."""
    async with JobQueue(broker) as jobs:
        yield jobs
        await manager.close(timeout=0)
