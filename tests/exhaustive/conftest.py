"""Workers in processes, for every durable broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.brokers.stores import NAMES, STORES
from support.processes.workers import Cluster


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """The kind of broker."""
    return request.param


@pytest.fixture
def cluster(name: str, tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(STORES[name], tmp_path) as cluster:
        yield cluster
