"""Redis servers and connections that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from redis import Redis
from support.brokers.jobs import claimed, message, state_of
from support.brokers.kinds import make_redis
from support.brokers.outage import LONGEST, shut_down_without
from support.brokers.redis import (
    Relay,
    finish,
    messages,
    open_broker,
    own_server,
    until,
    wait_without_work,
)
from support.brokers.redis_servers import Server
from support.time import SOON

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.abc import LeaseStatus
from background.queues.redis import RedisBroker


async def test_flushed_scripts(broker: RedisBroker, server: Server) -> None:
    """A script that is missing on the server is sent again, once."""
    await broker.enqueue([message()])
    with Redis.from_url(server.url) as client:
        client.script_flush()
        assert await claimed(broker) == ["one"]
        before = client.info("commandstats")["cmdstat_eval"]["calls"]
        assert await claimed(broker) == []
        assert client.info("commandstats")["cmdstat_eval"]["calls"] == before


async def test_server_restart(server: Server, anyio_backend: object) -> None:
    """Acknowledged calls survive a killed server, and the broker reconnects by itself."""
    durable = "--appendonly", "yes", "--appendfsync", "always", "--save", ""
    with own_server(server.name, *durable) as own:
        async with open_broker(own.url) as broker:
            acknowledged: list[str] = []
            settled: list[str] = []

            async def enqueue(first: int) -> None:
                for number in range(first, 10_000, 5):
                    await broker.enqueue([message(str(number))])
                    acknowledged.append(str(number))

            async def work() -> None:
                while True:
                    await broker.wait_for_work(["q"], 1)
                    claims = await broker.claim(["q"], 5, lease=30)
                    if all(await finish(broker, claims)):
                        settled.extend(claim.message.id for claim in claims)

            async def until_killed(fn: Any, *args: Any) -> None:
                with pytest.raises(BrokerUnavailableError, match="redis://127"):
                    await fn(*args)
                ends.append(fn)

            ends: list[Any] = []
            async with anyio.create_task_group() as group:
                for number in range(5):
                    group.start_soon(until_killed, enqueue, number)
                group.start_soon(until_killed, work)
                await until(lambda: len(settled) >= 50)
                await anyio.to_thread.run_sync(own.kill)
            assert len(ends) == 6
            with pytest.raises(BrokerUnavailableError, match="redis://127"):
                await broker.count()
            await anyio.to_thread.run_sync(own.start)
            found = {job.message.id: job.state async for job in broker.scan()}
            assert set(acknowledged) <= set(found)
            assert {found[id] for id in settled} == {JobState.SUCCEEDED}
            with anyio.fail_after(SOON):
                await broker.wait_for_work(["q"], 1000)
            assert await broker.claim(["q"], 1, lease=30)


async def test_open_timeout(server: Server, anyio_backend: object) -> None:
    """Opening fails if the server does not answer within the timeout."""
    async with Relay(server.port) as relay:
        relay.swallows = True
        with pytest.raises(BrokerUnavailableError, match=r"no answer within 0\.1 s$"):
            await RedisBroker(relay.url, timeout=0.1).open()


async def test_broken_connections(
    server: Server, anyio_backend: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is half-open or cut fails a call and is replaced at the next one."""
    monkeypatch.setattr("background.queues.redis.pubsub._RECONNECT", 0.01)
    prefix = make_redis(server.name, Path()).prefix
    async with (
        Relay(server.port) as relay,
        open_broker(relay.url, prefix=prefix, timeout=0.3) as broker,
    ):
        await broker.wait_for_work(["q"], 0.01)
        relay.swallows = True
        with pytest.raises(BrokerUnavailableError, match=r"no answer within 0\.3 s"):
            await broker.enqueue([message()])
        relay.swallows = False
        assert await broker.enqueue([message()]) == [True]
        connected = relay.connected
        relay.cut()
        await until(lambda: relay.connected > connected)  # the listener reconnects
        assert await broker.count() == 1
        async with anyio.create_task_group() as group:
            relay.swallows = True

            async def fail_to_enqueue() -> None:
                with pytest.raises(BrokerUnavailableError, match="closed"):
                    await broker.enqueue([message("two")])

            group.start_soon(fail_to_enqueue)
            await anyio.wait_all_tasks_blocked()
            relay.cut()
        relay.swallows = False
        assert await broker.enqueue([message("two")]) == [True]


async def test_wait_for_work_without_server(server: Server, anyio_backend: object) -> None:
    """Waiting for work fails if the server is gone."""
    with own_server(server.name) as own:
        async with open_broker(own.url) as broker:
            own.kill()
            with pytest.raises(BrokerUnavailableError, match="redis://127"):
                await broker.wait_for_work(["q"], 1000)


async def test_server_out_of_memory(server: Server, anyio_backend: object) -> None:
    """Only enqueueing fails when the server is out of memory; workers free memory."""
    with own_server(server.name, "--save", "") as own, Redis.from_url(own.url) as client:
        async with open_broker(own.url) as broker:
            await broker.enqueue([*messages(3), message("late", delay=1000)])
            (first,) = await broker.claim(["q"], 1, lease=30)
            client.config_set("maxmemory", 1)
            for sent in (message("more"), message("more", handler=None)):
                with pytest.raises(BrokerUnavailableError, match="OOM"):
                    await broker.enqueue([sent])
            assert await broker.renew([first], lease=30) == [LeaseStatus.HELD]
            assert await broker.save("0000", first.token, b"1")
            await wait_without_work(broker, own)
            claims = await broker.claim(["q"], 10, lease=30)
            assert len(claims) == 2
            assert await finish(broker, [first, *claims]) == [True] * 3
            assert await broker.wait("late", 0.01) is not None
            assert await broker.cancel("late") is JobState.SCHEDULED
            await broker.maintain()
            assert await broker.purge() == 4
            client.config_set("maxmemory", 0)
            assert await broker.enqueue([message("more")]) == [True]


async def test_server_becomes_replica(server: Server, anyio_backend: object) -> None:
    """The broker reconnects after its server has become a replica.

    The address may belong to the new primary by then.
    """
    with own_server(server.name) as own, Redis.from_url(own.url) as client:
        async with open_broker(own.url) as broker:
            client.replicaof("127.0.0.1", 1)
            before = client.info("stats")["total_connections_received"]
            for _ in range(2):
                with pytest.raises(BrokerUnavailableError, match="READONLY"):
                    await broker.enqueue([message()])
            assert client.info("stats")["total_connections_received"] == before + 1
            client.replicaof("no", "one")
            assert await broker.enqueue([message()]) == [True]
            assert await state_of(broker) is JobState.READY


@pytest.mark.parametrize("name", ["order", "messages", "ready"])
async def test_keys_of_wrong_type(broker: RedisBroker, server: Server, name: str) -> None:
    """A call that failed at a key of the wrong type can be repeated."""
    with Redis.from_url(server.url) as client:
        client.set(f"{{{broker.prefix}}}:{name}", "other")
        with pytest.raises(BrokerUnavailableError, match="WRONGTYPE"):
            await broker.enqueue([message()])
        client.delete(f"{{{broker.prefix}}}:{name}")
    assert await broker.enqueue([message()]) == [True]
    assert await claimed(broker) == ["one"]


async def test_shutdown_without_server(server: Server) -> None:
    """A shutdown does not wait for a server that does not answer."""
    async with Relay(server.port) as relay:
        broker = RedisBroker(relay.url, prefix="shutdown")
        took = await shut_down_without(broker, lambda: setattr(relay, "swallows", True))
    assert took < LONGEST
