"""The connection to NATS."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from secrets import token_hex
from typing import Any

import anyio
import pytest
from support.brokers.nats import (
    eventually,
    finish,
    in_real_time,
    message,
    messages,
    opened,
    virtual,
)
from support.brokers.nats_servers import (
    NatsServer,
    nats_server,
    remove_streams,
    served_nats_broker,
    shared_server,
    with_real_time,
)
from support.brokers.outage import LONGEST, shut_down_without
from support.time import SOON

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.nats import NatsBroker
from background.queues.nats.address import NatsAddress
from background.queues.nats.clock import ServerClock
from background.queues.nats.connection import PATIENCE, NatsConnection
from background.queues.nats.requests import Request, Requests


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("background.queues.nats.connection.PATIENCE", 0.3)


@in_real_time
async def test_server_restart(server: NatsServer) -> None:
    """Acknowledged calls survive a killed server; failed calls have no effect later."""
    async with opened(server) as broker:
        await broker.enqueue(messages(20))
        claims = await broker.claim(["q"], 10, lease=30)
        assert await finish(broker, claims[:5]) == [True] * 5
        waiting = asyncio.create_task(broker.wait("0005", 60))
        connection = broker._requests.connection
        connection.patience, patience = 0.2, connection.patience
        await asyncio.to_thread(server.kill)
        connection._changed.clear()
        try:
            for call in (
                lambda: broker.enqueue([message("lost")]),
                lambda: broker.claim(["q"], 1, lease=30),
                lambda: waiting,
            ):
                with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1"):
                    await call()
            with pytest.raises(BrokerUnavailableError, match="buffer"):
                await broker._requests._send(
                    broker._requests.connection._client, Request("lost"), 1, {}
                )
            broker._requests._waiting.clear()
        finally:
            connection.patience = patience
        await asyncio.to_thread(server.start)
        assert await eventually(lambda: broker.count(state=JobState.SUCCEEDED)) == 5
        assert await broker.get("lost") is None
        assert await finish(broker, claims[5:]) == [True] * 5
        rest = await broker.claim(["q"], 50, lease=30)
        assert [claim.message.id for claim in rest] == [f"{number:04}" for number in range(10, 20)]


@pytest.mark.skipif(sys.platform == "win32", reason="can't stop a process for a while")
@in_real_time
async def test_unresponsive_server(server: NatsServer, impatient: None) -> None:
    """A call fails if the server does not answer in time; later calls succeed."""
    async with opened(server) as broker:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(BrokerUnavailableError, match=r"did not answer within 0\.3 s"):
                while True:  # its threads do not stop at once
                    await broker.enqueue([message()])
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await eventually(lambda: broker.enqueue([message()]))
        assert await eventually(broker.count) == 1
        assert not broker._requests._waiting


@in_real_time
async def test_cancelled_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker whose opening is cancelled after it has connected is not open."""
    broker = NatsBroker(shared_server().url)
    with anyio.CancelScope() as scope:

        async def read(clock: ServerClock) -> None:
            scope.cancel()
            await anyio.sleep_forever()

        monkeypatch.setattr(ServerClock, "read", read)
        await broker.open()
    assert scope.cancelled_caught
    assert not broker._requests.connection.is_open
    assert broker._requests.connection.current is None


@pytest.mark.skipif(sys.platform == "win32", reason="can't stop a process for a while")
@in_real_time
async def test_shutdown_without_server(server: NatsServer) -> None:
    """A shutdown does not wait for a server that does not answer."""
    broker = NatsBroker(server.url)
    try:
        took = await shut_down_without(broker, lambda: os.kill(server.pid, signal.SIGSTOP))
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert took < LONGEST


@in_real_time
async def test_closed_client() -> None:
    """A client that was closed is replaced at the next call."""
    async with opened(shared_server()) as broker:
        await broker._requests.connection._client.close()
        assert await broker.enqueue([message()]) == [True]
        assert len(await broker.claim(["q"], 1, lease=30)) == 1
        await remove_streams(broker)


@in_real_time
async def test_notifications() -> None:
    """Changes by another broker wake waiters before they would poll."""
    async with opened(shared_server()) as broker:
        async with opened(shared_server(), prefix=broker._layout.prefix) as second:
            await broker.enqueue([message("first", queue="r")])
            loop = asyncio.get_running_loop()
            broker_module = sys.modules[NatsBroker.__module__]
            broker_module._POLL, poll = 1000.0, broker_module._POLL  # type: ignore[attr-defined]
            try:
                for wait, act in (
                    (
                        lambda: broker.wait_for_work(["q"], 1000),
                        lambda: second.enqueue([message()]),
                    ),
                    (lambda: broker.wait("first", 1000), lambda: second.cancel("first")),
                ):
                    task = loop.create_task(wait())
                    while not broker._requests._listeners:  # noqa: ASYNC110
                        await asyncio.sleep(0)
                    await broker.get("first")
                    await act()
                    async with asyncio.timeout(SOON):
                        await task
            finally:
                broker_module._POLL = poll  # type: ignore[attr-defined]
            assert not broker._requests._listeners
        await remove_streams(broker)


@in_real_time
async def test_log_of_outage(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    """The main connection logs an outage, and that for inspection only at DEBUG."""
    caplog.set_level(logging.DEBUG, "background")
    async with opened(server) as broker:
        assert await broker.count() == 0  # connects the inspection
        changes = [
            requests.connection._changed
            for requests in (broker._requests, broker._inspection.requests)
        ]
        for step in (server.kill, server.start):
            for change in changes:
                change.clear()
            await asyncio.to_thread(step)
            async with asyncio.timeout(3 * SOON):
                for change in changes:
                    await change.wait()
        assert await broker.count() == 0
        caplog.set_level(logging.CRITICAL, "background")  # closing logs the end, too
    texts = [
        (record.levelname, record.getMessage().rpartition(": ")[2])
        for record in caplog.records
        if record.name == "background"
    ]
    assert sorted(texts) == [
        ("DEBUG", "connection lost (inspection)"),
        ("DEBUG", "reconnected (inspection)"),
        ("INFO", "reconnected"),
        ("WARNING", "connection lost"),
    ]


def limited_user(permissions: str) -> str:
    """Return the configuration of a server whose user may not send all subjects."""
    user = f"user: a, password: a, permissions {{ {permissions} }}"
    return f"authorization {{ users: [{{ {user} }}] }}"


@pytest.mark.parametrize(
    ("rights", "violation"),
    [
        ('publish: { deny: "$JS.API.STREAM.INFO.>" }', r'publish to "\$js.api.stream.info.kv_'),
        ('subscribe: { deny: "_INBOX.>" }', r'subscription to "_inbox\.'),
    ],
)
@in_real_time
async def test_missing_rights(rights: str, violation: str) -> None:
    """A request fails at once if the server refuses it, or its answer."""
    with nats_server(limited_user(rights)) as server:
        broker = NatsBroker(server.url.replace("//", "//a:a@"))
        for _ in range(2):
            begin = asyncio.get_running_loop().time()
            with pytest.raises(
                BrokerUnavailableError, match=f"permissions violation .*{violation}"
            ):
                await broker.open()
            assert asyncio.get_running_loop().time() < begin + PATIENCE


@in_real_time
async def test_refused_inbox() -> None:
    """Without the right to receive answers, all requests of a connection fail at once."""
    with nats_server(limited_user('subscribe: { deny: "_INBOX.>" }')) as server:
        address = NatsAddress(server.url.replace("//", "//a:a@"), None, {}, {})
        requests = Requests(address)
        await requests.connection.open()
        for _ in range(2):
            with pytest.raises(BrokerUnavailableError, match=r'subscription to "_inbox\.'):
                await requests.call([Request("$JS.API.INFO")])
        await requests.connection.close()


@in_real_time
async def test_missing_right_of_job() -> None:
    """A request that the server refuses does not affect others."""
    with nats_server(limited_user('publish: { deny: "$KV.*.denied" }')) as server:
        async with opened(server, url=server.url.replace("//", "//a:a@")) as broker:
            with pytest.raises(BrokerUnavailableError, match=r'violation .*"\$kv\..*\.denied"'):
                await broker.enqueue([message("denied")])
            assert await broker.enqueue([message("allowed")]) == [True]


@in_real_time
async def test_unanswered_request_after_violation() -> None:
    """The error of a request without an answer has the latest missing right."""
    with nats_server(limited_user('publish: ">", subscribe: { deny: "denied" }')) as server:
        async with opened(server, url=server.url.replace("//", "//a:a@")) as broker:
            requests = broker._requests
            requests.connection.patience = 0.3
            client = requests.connection.current
            await client.subscribe("silent")
            await client.subscribe("denied")
            with pytest.raises(BrokerUnavailableError) as caught:
                await requests.call([Request("silent")])
            assert str(caught.value).endswith(
                "did not answer within 0.3 s; the user lacks a right: nats: permissions violation "
                'for subscription to "denied"'
            )


@in_real_time
async def test_close_while_connecting() -> None:
    """Closing fails a pending connection attempt and leaves no client open."""
    clients: list[Any] = []
    proceed = asyncio.Event()

    async def prepare(client: Any) -> None:
        clients.append(client)
        if len(clients) == 2:
            await proceed.wait()

    address = NatsAddress(shared_server().url, None, {}, {})
    connection = NatsConnection(address, prepare, lambda: None, lambda _: None)
    await connection.open()
    await clients[0].close()
    connecting = asyncio.create_task(connection.connected())
    while len(clients) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await connection.close()
    proceed.set()
    with pytest.raises(BrokerUnavailableError, match="is not open"):
        await connecting
    assert connection.current is None
    while not clients[1].is_closed:  # noqa: ASYNC110
        await asyncio.sleep(0)


@in_real_time
async def test_cancel_connecting(impatient: None) -> None:
    """A cancelled attempt to connect leaves no connection."""
    accepted, ended = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await reader.read()
        ended.set()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        opening = asyncio.create_task(NatsBroker(f"nats://127.0.0.1:{port}").open())
        await accepted.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await ended.wait()


@virtual
async def test_incomplete_scan() -> None:
    """A count fails if only some jobs could be read, instead of returning their number."""
    async with served_nats_broker() as broker:
        await broker.enqueue(messages(3))
        api: Any = broker._inspection._api
        read_all = api.read_all

        async def interrupted(stream: str) -> tuple[str, int]:
            name, size = await read_all(stream)
            await api._ask(f"CONSUMER.DELETE.{stream}.{name}")
            return name, size

        async def emptied(stream: str) -> tuple[str, int]:
            name, size = await read_all(stream)
            await api._ask(f"STREAM.PURGE.{stream}")
            return name, size

        api.read_all = interrupted
        with pytest.raises(BrokerUnavailableError, match=r"only a part of stream KV_\S+ was read"):
            await broker.count()
        api.read_all = read_all
        assert await broker.count() == 3
        api.read_all = emptied
        assert await broker.count() == 0


@virtual
async def test_close_while_waiting() -> None:
    """Waiting for work fails when the broker is closed."""
    async with served_nats_broker() as broker:
        waiting = asyncio.create_task(broker.wait_for_work(["q"], 80_000))
        await asyncio.sleep(5)
        await with_real_time(broker._requests.connection.close())
        with pytest.raises(BrokerUnavailableError, match="is not open"):
            await waiting
        await with_real_time(broker.open())
        await with_real_time(broker._inspection.requests.connection.connected())


def test_another_event_loop() -> None:
    """A broker can't be used in another event loop than the one that opened it."""
    broker: Any = NatsBroker(shared_server().url, prefix=f"test-{token_hex(8)}")

    async def use() -> None:
        with pytest.raises(BrokerUnavailableError, match="opened in another event loop"):
            await broker.count()

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(broker.open())
        second.run(use())
        first.run(remove_streams(broker))
        first.run(broker.close())


@in_real_time
async def test_concurrent_calls() -> None:
    """Concurrent calls get their own answers and leave no pending requests."""
    async with opened(shared_server()) as broker:
        await asyncio.gather(*(broker.enqueue([message(str(n))]) for n in range(50)))
        claims = await asyncio.gather(*(broker.claim(["q"], 5, lease=30) for _ in range(20)))
        ids = [claim.message.id for batch in claims for claim in batch]
        assert sorted(ids) == sorted(str(n) for n in range(50))
        accepted = await asyncio.gather(*(finish(broker, batch) for batch in claims))
        assert all(all(batch) for batch in accepted)
        assert not broker._requests._waiting
        assert not broker._requests._fetching
        await remove_streams(broker)
