"""The example of durable jobs on the servers."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.brokers import redis_servers as servers
from support.brokers.nats_servers import shared_server
from support.processes.process import running

EXAMPLE = Path(__file__).parents[2] / "examples" / "jobs.py"
RECEIPTS = [f"the receipt of order {order} is out" for order in range(1, 7)]


@pytest.mark.parametrize("name", [*servers.available(), "nats"])
def test_jobs_on_server(name: str) -> None:
    """The jobs example runs on a server."""
    url = shared_server().url if name == "nats" else servers.server(name).url
    with running(EXAMPLE, url) as process:
        assert process.wait() == 0
    assert "0 jobs are left from before" in process.lines
    assert [line for line in process.lines if line in RECEIPTS] == RECEIPTS
    assert "306 sales in the first quarter" in process.lines
