"""Jobs whose records have many bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any

import pytest
from support.brokers.nats import finish, in_real_time, message, messages, opened, virtual
from support.brokers.nats_servers import nats_server, served_nats_broker
from support.time import SOON

from background.queues.abc import LeaseStatus

_LARGE = bytes(500_000)


@asynccontextmanager
async def opened_with_limit() -> AsyncGenerator[Any]:
    """Yield a broker with 40 large jobs, on a server that disconnects slow clients early."""
    with nats_server("max_pending: 8MB") as server:
        async with opened(server) as broker:
            await broker.enqueue(messages(40, body=_LARGE))
            yield broker


@in_real_time
async def test_inspection_of_large_jobs(caplog: pytest.LogCaptureFixture) -> None:
    """Jobs that exceed the server's limit for one client are counted, listed and purged."""
    async with opened_with_limit() as broker:
        assert await broker.count() == 40
        found = [job.message.id async for job in broker.scan()]
        assert found == [f"{number:04}" for number in range(40)]
        (claim,) = await broker.claim(["q"], 1, lease=30)
        assert await finish(broker, [claim]) == [True]
        assert await broker.purge() == 1
        assert await broker.count() == 39
    assert "connection lost" not in caplog.text


@virtual
async def test_claim_of_many_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim is limited, because the leases of more jobs could end before it returns."""
    monkeypatch.setattr("background.queues.nats.claims._MOST", 5)
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(12))
        claimed = [len(await broker.claim(["q"], 100, lease=30)) for _ in range(3)]
    assert claimed == [5, 5, 2]


@pytest.mark.parametrize("options", [{}, {"depends_on": ("first",)}], ids=["new", "again"])
@virtual
async def test_claim_of_large_jobs(options: dict[str, Any]) -> None:
    """A claim ends with the job that brings it to 4 MB, and the next one finds the others."""
    async with served_nats_broker() as broker:
        await broker.enqueue([message("first", queue="r")])
        await broker.enqueue(messages(13, body=bytes(900_000), **options))
        await broker.enqueue([message("other", queue="s")])
        await finish(broker, await broker.claim(["r"], 1, lease=30))
        claimed: list[list[str]] = []
        began = asyncio.get_running_loop().time()
        while sum(map(len, claimed)) < 14:
            await broker.wait_for_work(["q", "s"], 30)
            claims = await broker.claim(["q", "s"], 500, lease=30)
            claimed.append([claim.message.id for claim in claims])
        assert asyncio.get_running_loop().time() - began < 0.5
        ids = [f"{number:04}" for number in range(13)]
        assert claimed[:2] == [ids[:5], ids[5:10]]
        assert list(chain(*claimed)) == [*ids, "other"]


@virtual
async def test_claim_of_small_jobs() -> None:
    """Jobs of less than 4 MB in total are claimed by one call."""
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(400, body=bytes(9_000)))
        assert len(await broker.claim(["q"], 500, lease=30)) == 400


@in_real_time
async def test_lost_inspection() -> None:
    """Leases and settlements continue while the connection of an inspection is lost."""
    async with opened_with_limit() as broker:
        claims = await broker.claim(["q"], 2, lease=30)
        assert await broker.count() == 40
        lost, client = asyncio.Event(), broker._requests.connection.current
        broker._requests._on_lost = broker._requests.connection._lost = lost.set
        await broker._inspection.requests.connection._client.close()
        assert await broker.renew(claims, lease=30) == [LeaseStatus.HELD] * 2
        assert await finish(broker, claims) == [True] * 2
        async with asyncio.timeout(SOON):
            assert await broker.count() == 40
        assert broker._requests.connection.current is client
        assert not lost.is_set()
