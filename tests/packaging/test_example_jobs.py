"""The example of durable jobs runs wherever its URL says."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.brokers import redis_servers as servers
from support.brokers.nats_servers import shared_server
from support.processes.process import running

EXAMPLE = Path(__file__).parents[2] / "examples" / "jobs.py"
RECEIPTS = [f"the receipt of order {order} is out" for order in range(1, 7)]


@pytest.mark.parametrize("where", [*servers.available(), "nats"])
def test_jobs_on_a_server(where: str) -> None:
    url = shared_server().url if where == "nats" else servers.server(where).url
    with running(EXAMPLE, url) as process:
        assert process.wait() == 0
    assert "0 jobs are left from before" in process.lines
    assert [line for line in process.lines if line in RECEIPTS] == RECEIPTS
    assert "306 sales in the first quarter" in process.lines
