"""A NATS cluster of three servers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest
from support.brokers.nats import eventually, in_real_time, message
from support.brokers.nats_servers import NatsServer

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
