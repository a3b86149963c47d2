"""The rights in the guide on connections, tried on servers."""

from __future__ import annotations

import re
from pathlib import Path

import anyio
import pytest
from redis import Redis
from support.brokers import redis_servers as servers
from support.brokers.jobs import claim_one, message, settle
from support.brokers.nats_servers import nats_server
from support.brokers.redis import own_server
from support.brokers.redis_topologies import shared_cluster

from background.queues import BrokerUnavailableError, JobState
from background.queues._urls import make_broker
from background.queues.redis import RedisResults

PAGE = Path(__file__).parents[2] / "docs/guides/connections.md"


def block(beginning: str) -> str:
    """Return the block of text on the page that begins like this."""
    (found,) = re.findall(rf"```text\n({beginning}.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return str(found)


async def use(url: str) -> None:
    """Call all methods of a broker."""
    broker = make_broker(url)
    await broker.open()
    await broker.enqueue([message(), message("two", depends_on=("one",)), message("three")])
    await broker.wait_for_work(["q"], 1)
    claim = await claim_one(broker)
    await broker.renew([claim], lease=30)
    await broker.save("one", claim.token, b"1")
    assert await settle(broker, claim, JobState.SUCCEEDED, result=b"2")
    await broker.cancel("three")
    await broker.requeue("three")
    await broker.cancel("two")
    assert await broker.wait("two", 1)
    await broker.wait_for_work(["empty"], 0.1)
    assert await broker.count() == 3
    assert [job.message.id async for job in broker.scan()]
    await broker.maintain()
    assert await broker.purge() == 2
    await broker.close()


@pytest.mark.parametrize("name", servers.available())
def test_rights_in_redis(name: str) -> None:
    """The rights in the guide are sufficient, and limited to the prefix."""
    with own_server(name) as server:
        with Redis.from_url(server.url) as client:
            client.execute_command(*block("ACL ").split())
        url = server.url.replace("//", "//worker:password@")
        anyio.run(use, f"{url}?prefix=shop")
        anyio.run(use_results, url)
        with pytest.raises(BrokerUnavailableError, match="NOPERM"):
            anyio.run(use, f"{url}?prefix=other")


@pytest.mark.parametrize("name", servers.available())
def test_rights_in_cluster(name: str) -> None:
    """The rights in the guide are sufficient in a cluster."""
    cluster = shared_cluster(name)
    for server in cluster.servers:
        with Redis.from_url(server.url) as client:
            client.execute_command(*block("ACL ").split())
    url = cluster.url.replace("//", "//worker:password@")
    anyio.run(use, f"{url}?prefix=shop")


async def use_results(url: str) -> None:
    results = RedisResults(url, prefix="shop")
    await results.open()
    await results.save("a", b"1", retention=60)
    assert await results.get("a") == b"1"
    await results.delete("a")
    await results.close()


def test_rights_in_nats(caplog: pytest.LogCaptureFixture) -> None:
    """The rights in the guide are sufficient, and limited to the prefix."""
    with nats_server(block("authorization ")) as server:
        url = server.url.replace("//", "//worker:password@")
        anyio.run(use, f"{url}?prefix=shop")
        assert "ermissions" not in caplog.text
        anyio.run(fail_to_open, f"{url}?prefix=other")
        assert caplog.text.count("permissions violation for publish to") == 1


async def fail_to_open(url: str) -> None:
    broker = make_broker(url)
    for _ in range(2):
        with pytest.raises(BrokerUnavailableError, match="permissions violation"):
            await broker.open()
