"""Fixtures for the tests of all brokers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.brokers.kinds import Kind

from background.queues.abc import Broker


@pytest.fixture
async def broker(broker_kind: Kind, anyio_backend: object, tmp_path: Path) -> AsyncIterator[Broker]:
    """An open broker without jobs."""
    async with broker_kind.opened(broker_kind.make(tmp_path)) as broker:
        yield broker
