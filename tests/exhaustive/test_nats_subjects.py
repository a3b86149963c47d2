"""Streams of NATS with many subjects."""

from __future__ import annotations

from typing import Any

from support.brokers.nats import virtual
from support.brokers.nats_servers import served_nats_broker

from background.queues.nats.requests import Request


@virtual
async def test_many_subjects() -> None:
    """More subjects than the server lists in one answer are listed."""
    broker: Any
    async with served_nats_broker() as broker:
        count = 100_001
        for start in range(0, count, 2_000):
            requests = [
                Request(broker._layout.ready_job("q", str(number), again=False))
                for number in range(start, min(start + 2_000, count))
            ]
            await broker._api.publish_all(requests)
        assert len(await broker._inspection.hinted()) == count
