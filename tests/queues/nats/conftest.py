"""Fixtures for the tests of the NATS broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.brokers.nats_servers import (
    NatsServer,
    nats_server,
)


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server
