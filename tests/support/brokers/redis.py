"""Helpers for the tests of the Redis broker."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import anyio
from redis import Redis

from background.queues._states import JobState
from background.queues.abc import Claim, Message
from background.queues.redis import RedisBroker
from support.brokers.jobs import message, settlement
from support.brokers.redis_servers import Server
from support.time import SOON


def messages(count: int, **options: Any) -> list[Message]:
    return [message(f"{number:04}", **options) for number in range(count)]


async def until(holds: Callable[[], Any]) -> None:
    """Wait until the condition is true."""
    with anyio.fail_after(SOON):
        while True:
            if holds():
                return
            await anyio.sleep(0.001)


@contextmanager
def own_server(name: str, *options: str, config: str = "") -> Iterator[Server]:
    server = Server(name, *options, config=config)
    try:
        yield server
    finally:
        server.close()


@asynccontextmanager
async def open_broker(url: str, **options: Any) -> AsyncIterator[RedisBroker]:
    broker = RedisBroker(url, **options)
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


async def finish(broker: RedisBroker, claims: list[Claim]) -> list[bool]:
    return await broker.settle([settlement(claim, JobState.SUCCEEDED) for claim in claims])


class Relay:
    """Forwards bytes between a broker and its server.

    Attributes:
        swallows: Whether it discards all bytes.
        cuts: The bytes at which it closes a connection, without forwarding them: `"requests"`,
            `"answers"` of scripts, or `""`.
        connected: The number of connections.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._tls = tls
        self._listening: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.swallows = False
        self.cuts = ""
        self.connected = 0

    async def __aenter__(self) -> Relay:
        self._listening = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        scheme = "rediss" if self._tls else "redis"
        self.url = f"{scheme}://127.0.0.1:{self._listening.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _accept(self, reader: Any, writer: Any) -> None:
        self.connected += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, server_writer}
        with suppress(OSError):
            await asyncio.gather(
                self._forward(reader, server_writer, "requests"),
                self._forward(server_reader, writer, "answers"),
            )

    async def _forward(self, reader: Any, writer: Any, what: str) -> None:
        while data := await reader.read(65536):
            # Bulk strings; those of handshakes are of other kinds.
            if self.cuts == what and (what == "requests" or data.startswith(b"$")):
                break
            if not self.swallows:
                writer.write(data)
        writer.close()


async def wait_for_waiter(server: Server, broker: RedisBroker, queue: str) -> None:
    """Wait until the server has registered a waiter for work of this queue."""
    with Redis.from_url(server.url) as client:
        await until(lambda: client.hexists(f"{{{broker.prefix}}}:idle", queue))


async def wait_without_work(broker: RedisBroker, server: Server) -> None:
    """Wait for work until the server has registered the waiter, then stop."""
    async with anyio.create_task_group() as group:
        group.start_soon(broker.wait_for_work, ["r", "s"], 1000)
        await wait_for_waiter(server, broker, "s")
        group.cancel_scope.cancel()


QUOTED = "s3cr3t%2Fp%40ss"


def count_waiters(broker: Any) -> int:
    """Return the number of queues and jobs that have waiters."""
    return len(broker._session.notifications._events)
