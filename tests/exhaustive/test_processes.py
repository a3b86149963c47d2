"""Schedules and trace contexts across processes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry import propagate
from support.brokers.stores import NAMES, STORES
from support.processes.history import Entry
from support.processes.workers import Cluster

pytestmark = [
    pytest.mark.filterwarnings("ignore:several connections"),
    pytest.mark.skipif(sys.platform == "win32", reason="the workers need signals"),
]

BEATS = 6


@pytest.fixture(params=NAMES)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(STORES[request.param], tmp_path) as cluster:
        yield cluster


def test_schedule_in_many_processes(cluster: Cluster) -> None:
    """A schedule in several processes enqueues one job per tick."""
    with cluster.client() as client:
        for _ in range(3):
            cluster.started(every=0.2)
        cluster.log.wait_for(lambda entries: len(count_starts(entries)) >= BEATS)
        ids = list(client.ends())
        entries = cluster.log.entries()
    assert set(count_starts(entries).values()) == {1}
    ticks = sorted(float(".".join(id.rsplit(".", 2)[1:])) for id in ids)
    assert len(set(ticks)) == len(ids) >= BEATS
    assert [tick for tick in ticks if abs(tick / 0.2 - round(tick / 0.2)) > 0.01] == []


def count_starts(entries: Sequence[Entry]) -> Counter[str]:
    """Return the number of starts of each job."""
    return Counter(entry.job for entry in entries if entry.event == "started")


def test_trace_context(cluster: Cluster) -> None:
    """A job runs in the trace context of its enqueuer, without the baggage, or else in none."""
    carrier = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    sent = {**carrier, "baggage": "tenant=seven"}
    with cluster.client() as client:
        cluster.started()
        id = client.enqueue("carry", context=propagate.extract(sent))
        assert client.result(id) == carrier
        assert client.result(client.enqueue("carry")) == {}
