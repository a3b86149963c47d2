"""A NATS cluster of three servers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.brokers.nats import eventually, finish, in_real_time, message
from support.brokers.nats_servers import NatsServer

from background.queues._errors import BrokerUnavailableError
from background.queues.abc import Claim, LeaseStatus
from background.queues.nats import NatsBroker


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[NatsServer]]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for reserved in sockets:
            reserved.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{reserved.getsockname()[1]}" for reserved in sockets]
    routes = ", ".join(f'"nats://{address}"' for address in addresses)
    with ExitStack() as stack:
        servers: list[NatsServer] = []
        for number, address in enumerate(addresses):
            folder = tmp_path / str(number)
            folder.mkdir()
            config = f'cluster {{ name: c, listen: "{address}", routes: [{routes}] }}'
            servers.append(NatsServer(folder, f"server_name: s{number}\n{config}"))
            stack.callback(servers[-1].kill)
        yield servers


@in_real_time
async def _open_together(servers: list[NatsServer]) -> None:
    await asyncio.gather(*(asyncio.to_thread(server.start) for server in servers))
    url = "nats://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)

    async def open_and_close() -> None:
        broker = NatsBroker(url, prefix="first", replicas=3)
        await broker.open()
        await broker.close()

    await eventually(open_and_close)  # the cluster itself may have no leader yet
    for number in range(3):
        async with AsyncExitStack() as stack:
            brokers = [NatsBroker(url, prefix=f"p{number}", replicas=3) for _ in range(3)]
            for broker in brokers:
                stack.push_async_callback(broker.close)
            await asyncio.gather(*(broker.open() for broker in brokers))
            await brokers[0].enqueue([message()])
            assert await brokers[1].count() == 1
            assert len(await brokers[2].claim(["q"], 5, lease=30)) == 1


def test_opening_together(cluster: list[NatsServer]) -> None:
    """Several brokers can open a new prefix of a cluster at the same time."""
    _open_together(cluster)


#: Seconds after the election of all leaders within which calls must succeed.
RECOVERY = 5.0


async def _kill_leader(servers: list[NatsServer], stream: str) -> None:
    await asyncio.gather(*(asyncio.to_thread(server.start) for server in servers))
    url = "nats://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)
    broker: Any = NatsBroker(url, prefix="first", replicas=3)
    await eventually(broker.open)
    await broker.enqueue([message(str(number)) for number in range(3)])
    claims: list[Claim] = []
    while not claims:  # a consumer of a cluster may lag behind its stream
        claims = await eventually(lambda: broker.claim(["q"], 1, lease=60))
    info = await broker._api._ask(f"STREAM.INFO.{getattr(broker._layout, stream)}")
    leader = int(info["cluster"]["leader"].removeprefix("s"))
    left = ",".join(f"127.0.0.1:{server.port}" for server in servers if server != servers[leader])
    observer: Any = NatsBroker(f"nats://{left}", prefix="first", replicas=3)
    await observer.open()
    await asyncio.to_thread(servers[leader].kill)
    elected_at, succeeded_at = await asyncio.gather(_elected(observer), _succeeded(broker, claims))
    await asyncio.gather(broker.close(), observer.close())
    assert succeeded_at - elected_at < RECOVERY


async def _elected(broker: Any) -> float:
    """Return when all streams and consumers have a leader that answers."""
    ready = broker._layout.ready
    consumers = [broker._layout.consumer("q", again=again)[0] for again in (True, False)]
    subjects = [f"STREAM.INFO.{name}" for name in broker._layout.streams]
    subjects += [f"CONSUMER.INFO.{ready}.{name}" for name in consumers]

    async def wait(subject: str) -> None:
        while True:
            try:
                async with asyncio.timeout(0.1):
                    if (await broker._streams._ask(subject))["cluster"].get("leader"):
                        return
            except (TimeoutError, BrokerUnavailableError):
                pass

    await asyncio.gather(*map(wait, subjects))
    return asyncio.get_running_loop().time()


async def _succeeded(broker: NatsBroker, claims: list[Claim]) -> float:
    """Return when jobs have been enqueued, claimed, renewed and settled."""
    await eventually(lambda: broker.enqueue([message("new")]))
    await eventually(lambda: broker.claim(["q"], 1, lease=60))
    assert await eventually(lambda: broker.renew(claims, lease=60)) == [LeaseStatus.HELD]
    assert await eventually(lambda: finish(broker, claims)) == [True]
    await eventually(broker.maintain)
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("stream", ["jobs", "ready", "timers"])
def test_death_of_leader(cluster: list[NatsServer], stream: str) -> None:
    """Calls succeed soon after the streams of a leader that was killed have new leaders."""

    async def test() -> None:
        async with asyncio.timeout(60):
            await _kill_leader(cluster, stream)

    asyncio.run(test())
