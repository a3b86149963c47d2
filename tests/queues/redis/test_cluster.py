"""A broker in a cluster of Redis servers."""

from __future__ import annotations

import anyio
import pytest
from support.brokers.jobs import claim_one, claimed, message, settle
from support.brokers.redis import open_broker, wait_for_waiter
from support.brokers.redis_servers import Server
from support.brokers.redis_topologies import (
    client,
    cluster_port,
    redis_cluster,
    shared_cluster,
)
from support.time import SOON

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.redis import RedisBroker, RedisResults


async def eventually_count(broker: RedisBroker) -> int:
    """Return the number of jobs as soon as the broker finds their server."""
    with anyio.fail_after(3 * SOON):
        while True:
            try:
                return await broker.count()
            except BrokerUnavailableError:
                await anyio.sleep(0.02)


async def test_one_slot(server: Server, anyio_backend: object) -> None:
    """All keys of a prefix are on one server of the cluster, under one hash tag."""
    cluster = shared_cluster(server.name)
    results = RedisResults(cluster.url, prefix="orders")
    await results.open()
    async with open_broker(cluster.url, prefix="orders") as broker:
        await broker.enqueue([message(), message("two", depends_on=("one",))])
        await broker.wait_for_work(["q"], SOON)
        claim = await claim_one(broker)
        await broker.save("one", claim.token, b"1")
        assert await settle(broker, claim, JobState.SUCCEEDED, result=b"2")
        await settle(broker, await claim_one(broker), JobState.DEAD, error={"type": "E"})
        await broker.maintain()
        await results.save("a", b"1", retention=60)
        keys = cluster.keys(other="moved")
        assert keys.pop(cluster.owner("orders").port) >= {
            f"{{orders}}:{name}" for name in ("messages", "jobs", "version", "result:a")
        }
        assert not any(keys.values())
        await notify_waiter(broker, cluster.owner("orders"))
        await broker.purge()
    await results.close()


async def notify_waiter(broker: RedisBroker, server: Server) -> None:
    """Let a notification wake a waiter."""
    async with anyio.create_task_group() as group:
        group.start_soon(broker.wait_for_work, ["r"], 1000)
        await wait_for_waiter(server, broker, "r")
        await broker.enqueue([message("r", queue="r")])


async def test_moved_slot(server: Server, anyio_backend: object) -> None:
    """A broker follows its slot to another server, and fails while the slot is being moved."""
    cluster = shared_cluster(server.name)
    source = cluster.owner("moved")
    target = next(node for node in cluster.servers if node is not source)
    async with open_broker(cluster.url, prefix="moved") as broker:
        await broker.enqueue([message()])
        cluster.start_migration("moved", target)
        with pytest.raises(BrokerUnavailableError, match=r"TRYAGAIN|ASK"):
            await broker.enqueue([message("two")])
        cluster.finish_migration("moved", target)
        assert await eventually_count(broker) == 1
        assert await broker.enqueue([message("two")]) == [True]
        keys = cluster.keys()
        assert "{moved}:jobs" not in keys[source.port]
        assert "{moved}:messages" in keys[target.port]


async def test_fail_over(server: Server, anyio_backend: object) -> None:
    """A broker finds all nodes through one that it knows, and follows a promotion."""
    with redis_cluster(server.name, "orders") as cluster:
        owner = cluster.owner("orders")
        seed = next(node for node in cluster.servers if node is not owner)
        async with open_broker(f"redis+cluster://127.0.0.1:{seed.port}", prefix="orders") as broker:
            await broker.enqueue([message()])
            await broker.wait_for_work(["q"], SOON)
            await anyio.to_thread.run_sync(cluster.fail_over)
            assert await eventually_count(broker) == 1
            assert await claimed(broker) == ["one"]
            await notify_waiter(broker, cluster.replica)
            seed.kill()
            with client(cluster.replica) as connected:
                connected.client_kill_filter(_type="normal")
            assert await eventually_count(broker) == 2


async def test_plain_url(server: Server, anyio_backend: object) -> None:
    """A node of a cluster is refused, if the URL is not that of a cluster, and the reverse."""
    cluster = shared_cluster(server.name)
    wrong = next(node for node in cluster.servers if node is not cluster.owner("orders"))
    with pytest.raises(BrokerUnavailableError, match=r"use a URL like redis\+cluster://"):
        await RedisBroker(wrong.url, prefix="orders").open()
    with pytest.raises(BrokerUnavailableError, match="cluster support disabled"):
        await RedisBroker(server.url.replace("redis:", "redis+cluster:")).open()


async def test_missing_slot(server: Server, anyio_backend: object) -> None:
    """A cluster without a server for the prefix is refused."""
    own = Server(server.name, "--cluster-enabled", "yes", port=cluster_port())
    try:
        with pytest.raises(BrokerUnavailableError, match=r"slot \d+ has no primary"):
            await RedisBroker(own.url.replace("redis:", "redis+cluster:")).open()
    finally:
        own.close()
