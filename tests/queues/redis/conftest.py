"""Fixtures for the tests of the Redis broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.brokers.kinds import KINDS
from support.brokers.redis_servers import Server


@pytest.fixture
def server(redis_server: Server) -> Server:
    return redis_server


@pytest.fixture
async def broker(server: Server, anyio_backend: object, tmp_path: Path) -> AsyncIterator[Any]:
    kind = KINDS[server.name]
    async with kind.opened(kind.make(tmp_path)) as broker:
        yield broker
