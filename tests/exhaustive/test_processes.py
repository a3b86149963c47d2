"""What several processes agree on, none of which is lost."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry import propagate
from support.brokers.stores import NAMES, STORES
from support.processes.history import Entry
from support.processes.workers import Fleet

pytestmark = [
    pytest.mark.filterwarnings("ignore:several connections"),
    pytest.mark.skipif(sys.platform == "win32", reason="the workers need signals"),
]

BEATS = 6


@pytest.fixture(params=NAMES)
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(STORES[request.param], tmp_path) as fleet:
        yield fleet


def test_a_schedule_of_many_processes_enqueues_each_tick_once(fleet: Fleet) -> None:
    with fleet.client() as client:
        for _ in range(3):
            fleet.started(every=0.2)
        fleet.log.wait_for(lambda entries: len(starts(entries)) >= BEATS)
        ids = list(client.ends())
        entries = fleet.log.entries()
    assert set(starts(entries).values()) == {1}
    ticks = sorted(float(".".join(id.rsplit(".", 2)[1:])) for id in ids)
    assert len(set(ticks)) == len(ids) >= BEATS
    assert [tick for tick in ticks if abs(tick / 0.2 - round(tick / 0.2)) > 0.01] == []


def starts(entries: Sequence[Entry]) -> Counter[str]:
    """Return how often each job was begun."""
    return Counter(each.job for each in entries if each.what == "started")


def test_the_trace_context_reaches_another_process(fleet: Fleet) -> None:
    carrier = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "baggage": "tenant=seven",
    }
    with fleet.client() as client:
        fleet.started()
        id = client.enqueue("carry", context=propagate.extract(carrier))
        assert client.result(id) == carrier
        assert client.result(client.enqueue("carry")) == {}
