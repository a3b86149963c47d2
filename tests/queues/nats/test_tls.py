"""TLS to NATS servers, and attackers between a broker and its server."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from support.brokers.nats import eventually, in_real_time, message, opened
from support.brokers.nats_servers import nats_server
from support.brokers.nats_tls import Attacker, Authority, tls_server

from background.queues._errors import BrokerUnavailableError
from background.queues.nats import NatsBroker
from background.queues.nats.address import NatsAddress
from background.queues.nats.connection import NatsConnection
from background.queues.nats.secure_client import SecureClient

USER = "authorization { user: me, password: s3cret }"
STRIPPED = {"tls_required": None, "tls_available": None, "tls_verify": None}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@in_real_time
async def test_certificate(authority: Authority) -> None:
    """The certificate of a TLS server is verified."""
    with tls_server(authority) as server:
        url = server.url.replace("nats:", "tls:")
        async with opened(server, url=url, tls=authority.context) as broker:
            assert await broker.enqueue([message()]) == [True]
        with pytest.raises(BrokerUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            await NatsBroker(url).open()


@in_real_time
async def test_optional_tls(authority: Authority) -> None:
    """TLS is used if the server offers it without requiring it."""
    with tls_server(authority, config="allow_non_tls: true") as server:
        async with opened(server, tls=authority.context) as broker:
            client = broker._requests.connection.current
            assert client._transport._io_writer.get_extra_info("ssl_object") is not None


@pytest.mark.parametrize("scheme", ["tls", "nats"])
@in_real_time
async def test_server_without_tls(authority: Authority, scheme: str) -> None:
    """A server without TLS is refused if the URL or an argument asks for TLS."""
    with nats_server() as server:
        url = server.url.replace("nats:", f"{scheme}:")
        tls = authority.context if scheme == "nats" else None
        with pytest.raises(BrokerUnavailableError, match="TLS is required, and the server"):
            await NatsBroker(url, tls=tls).open()


@pytest.mark.parametrize(
    "options",
    [
        {"tls_hostname": "h"},
        {"tls_handshake_first": True},
        {"ssl_ca_certs": "/ca"},
        {"ssl_ca_path": "/ca"},
        {"ssl_cert_reqs": "none"},
        {"ssl_certfile": "/pem"},
        {"ssl_certfile": "/pem", "ssl_keyfile": "/key"},
        {"ssl_check_hostname": False},
        {"ssl_password": "s3cret"},
    ],
)
def test_option_of_tls(options: Any) -> None:
    """Each option of TLS requires TLS, in the URL and as an argument."""
    query = "&".join(f"{name}={value}" for name, value in options.items())
    for address in (
        NatsAddress(f"nats://h?{query}", None, {}, {}),
        NatsAddress("nats://h", None, {}, options),
    ):
        assert isinstance(address.new_client(), SecureClient)


@in_real_time
async def test_hostname_without_tls() -> None:
    """A broker with a host name for TLS sends no password to a server without TLS."""
    with nats_server(USER) as server:
        async with Attacker(server.port) as attacker:
            url = attacker.url.replace("tls:", "nats:")
            with pytest.raises(BrokerUnavailableError, match="TLS is required"):
                await NatsBroker(url, tls_hostname="localhost").open()
            assert attacker.sent
            assert_no_credentials(attacker)


def assert_no_credentials(attacker: Attacker) -> None:
    """Check that no client has sent anything but the beginning of TLS."""
    handshake = b"\x16\x03"
    assert [sent[:2] for sent in attacker.sent if sent] in ([], [handshake])
    assert not [sent for sent in attacker.sent if b"CONNECT" in sent or b"s3cret" in sent]


@pytest.mark.parametrize("scheme", ["tls", "nats"])
@in_real_time
async def test_downgrade(authority: Authority, scheme: str) -> None:
    """A broker sends no password to an attacker that removes TLS from the server's message."""
    with tls_server(authority, config=USER) as server:
        async with Attacker(server.port) as attacker:
            attacker.changes = STRIPPED
            url = attacker.url.replace("tls:", f"{scheme}:")
            with pytest.raises(BrokerUnavailableError, match="TLS is required") as caught:
                await NatsBroker(url, tls=authority.context).open()
            assert "s3cret" not in str(caught.value)
            assert attacker.sent
            assert_no_credentials(attacker)


@in_real_time
async def test_downgrade_at_reconnect(authority: Authority) -> None:
    """A broker that reconnects sends no password without TLS, and goes on when TLS is back."""
    with tls_server(authority, config=USER) as server:
        async with (
            Attacker(server.port) as attacker,
            opened(server, url=attacker.url, tls=authority.context) as broker,
        ):
            attacker.changes = STRIPPED
            attacker.cut()
            await attacker.connected(4)
            assert not any(attacker.sent[1:])
            assert_no_credentials(attacker)
            attacker.changes = {}
            assert await eventually(broker.count) == 0


@in_real_time
async def test_added_server(authority: Authority) -> None:
    """A broker connects to no server that an attacker has added to the server's message."""
    with tls_server(authority, config=USER) as server:
        async with Attacker(server.port) as attacker, Attacker(server.port) as added:
            attacker.changes = {"connect_urls": [f"localhost:{added.port}"]}
            async with opened(server, url=attacker.url, tls=authority.context) as broker:
                for connections in (2, 3, 4):
                    attacker.cut()
                    await attacker.connected(connections)
                assert await eventually(broker.count) == 0
                assert not added.sent


@in_real_time
async def test_discovered_server(authority: Authority) -> None:
    """A server that joins the cluster is announced in an encrypted message, and used."""
    cluster = "cluster { name: c, listen: '127.0.0.1:-1', routes: [%s] }"
    found = asyncio.Event()

    async def prepare(client: Any) -> None:
        async def on_discovery() -> None:
            found.set()

        client._discovered_server_cb = on_discovery

    with tls_server(authority, config=cluster % "", jetstream=False) as first:
        url = first.url.replace("nats:", "tls:")
        address = NatsAddress(url, authority.context, {}, {})
        connection = NatsConnection(address, prepare, lambda: None, lambda _: None)
        await connection.open()
        while not (ports := re.findall(r"route .*:(\d+)", "\n".join(first.lines))):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        routes = cluster % f"nats://127.0.0.1:{ports[0]}"
        with tls_server(authority, config=routes, jetstream=False) as second:
            await found.wait()
            pool = connection.current._server_pool  # type: ignore[union-attr]
            assert {server.uri.port for server in pool} == {first.port, second.port}
        await connection.close()


@pytest.mark.parametrize("method", ["_process_info", "_connect_command"])
def test_unknown_client(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of nats-py in which TLS can't be enforced is refused."""
    monkeypatch.delattr(Client, method)
    with pytest.raises(AttributeError, match=method):
        SecureClient()
