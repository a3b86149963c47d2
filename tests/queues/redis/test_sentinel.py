"""A Redis server that sentinels supervise."""

from __future__ import annotations

import anyio
import pytest
from redis import Redis
from support.brokers.jobs import claimed, message
from support.brokers.redis import QUOTED, open_broker, own_server, until
from support.brokers.redis_servers import Server
from support.brokers.redis_topologies import Replicated, client, replicated
from support.time import SOON

from background.queues._errors import BrokerUnavailableError
from background.queues.redis import RedisBroker, RedisResults


async def eventually_enqueue(broker: RedisBroker, id: str) -> None:
    """Enqueue a job as soon as the broker finds the primary."""
    with anyio.fail_after(3 * SOON):
        while True:
            try:
                await broker.enqueue([message(id)])
            except BrokerUnavailableError:
                await anyio.sleep(0.02)
            else:
                return


async def test_fail_over(server: Server, anyio_backend: object) -> None:
    """A broker and its notifications move to the new primary."""
    with replicated(server.name) as servers:
        async with open_broker(servers.url) as broker:
            assert await broker.enqueue([message("before")]) == [True]
            await broker.wait_for_work(["q"], SOON)
            await anyio.to_thread.run_sync(servers.fail_over)
            await eventually_enqueue(broker, "after")
            assert await claimed(broker) == ["before", "after"]
            async with anyio.create_task_group() as group:
                group.start_soon(broker.wait_for_work, ["r"], 2 * SOON)
                with Redis(port=servers.primary()) as primary:
                    await until(lambda: primary.hexists("{background}:idle", "r"))
                await broker.enqueue([message("r", queue="r")])
        async with open_broker(servers.url) as broker:
            assert await broker.count() == 3


async def test_unreachable_sentinels(server: Server, anyio_backend: object) -> None:
    """Sentinels that can't be reached are skipped; the next ones are asked first from then on."""
    with replicated(server.name) as servers:
        url = servers.url.replace("//", "//127.0.0.1:1,127.0.0.1:2,")
        async with open_broker(url) as broker:
            assert await broker.count() == 0
            discovery = broker._address._discovery
            assert discovery is not None
            assert discovery._nodes[0].port == servers.sentinels[0].port


async def test_no_primary(server: Server, anyio_backend: object) -> None:
    """The error says why no primary was found."""
    with replicated(server.name) as servers:
        wrong = servers.url.replace("/jobs", "/mail")
        with pytest.raises(BrokerUnavailableError, match=r"knows no 'mail'") as caught:
            await RedisBroker(wrong).open()
        assert str(caught.value).startswith(f"{wrong}/0: no node knows the primary: 127.0.0.1:")
        with pytest.raises(BrokerUnavailableError, match=r"no node knows .*(efused|onnect)"):
            await RedisBroker("redis+sentinel://127.0.0.1:1/jobs").open()


async def test_replica(server: Server, anyio_backend: object) -> None:
    """A broker does not use a server that is a replica, although a sentinel names it."""
    with replicated(server.name) as servers:
        address = f"127.0.0.1 {servers.servers[1].port} 1"
        config = f"sentinel monitor {Replicated.SERVICE} {address}\n"
        with own_server(server.name, "--sentinel", config=config) as wrong:
            url = f"redis+sentinel://127.0.0.1:{wrong.port}/{Replicated.SERVICE}"
            with pytest.raises(BrokerUnavailableError, match=r"127.0.0.1:\d+ is a replica now"):
                await RedisBroker(url).open()


async def test_credentials(server: Server, anyio_backend: object) -> None:
    """Servers and sentinels have separate credentials."""
    options = "--requirepass", "s3cr3t/p@ss", "--masterauth", "s3cr3t/p@ss"
    with replicated(server.name) as servers:
        for own in servers.servers:
            with client(own) as connected:
                connected.config_set("masterauth", options[1])
                connected.config_set("requirepass", options[1])
        with client(servers.sentinels[0]) as connected:
            connected.sentinel_set(Replicated.SERVICE, "auth-pass", options[1])
            rights = "-@all", "+@connection", "+sentinel|get-master-addr-by-name"
            connected.execute_command("ACL", "SETUSER", "watcher", "on", ">sentinel", *rights)
            connected.execute_command("ACL", "SETUSER", "default", "off")
        url = servers.url.replace("//", f"//:{QUOTED}@")
        with pytest.raises(BrokerUnavailableError, match="uthentication"):
            await RedisBroker(url).open()
        results = RedisResults(f"{url}?sentinel_username=watcher&sentinel_password=sentinel")
        await results.open()
        await results.save("a", b"1", retention=60)
        assert await results.get("a") == b"1"
        await results.close()
