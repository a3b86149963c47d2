"""The TCP proxy in front of an echo server."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from support.brokers.proxy import Cut, Proxy, proxied
from support.time import SOON


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self._lines():
            self.server.received.append(line)  # type: ignore[attr-defined]
            with suppress(ConnectionError):
                self.wfile.write(line)

    def _lines(self) -> Iterator[bytes]:
        with suppress(ConnectionError):
            yield from self.rfile


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.received: list[bytes] = []


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    server = EchoServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def proxy(echo: EchoServer) -> Iterator[Proxy]:
    with proxied(echo.server_address[1]) as proxy:
        yield proxy


class Client:
    def __init__(self, proxy: Proxy) -> None:
        self.socket = socket.create_connection(("127.0.0.1", proxy.port), timeout=SOON)
        self.file = self.socket.makefile("rwb", buffering=0)

    def request(self, line: bytes) -> bytes:
        self.file.write(line)
        return self.answer()

    def answer(self) -> bytes:
        return self.file.readline()

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Client]:
    client = Client(proxy)
    assert client.request(b"hello\n") == b"hello\n"
    yield client
    client.close()


@pytest.mark.parametrize(
    ("cut", "received"), [(Cut.BEFORE, []), (Cut.WITHIN, [b"the "]), (Cut.AFTER, [b"the one\n"])]
)
def test_cut_at_request(
    proxy: Proxy, echo: EchoServer, client: Client, cut: Cut, received: list[bytes]
) -> None:
    """The connection is cut before, within or after the request with the bytes."""
    hit = proxy.aim(cut, b"one")
    assert client.request(b"other\n") == b"other\n"
    assert not hit.is_set()
    with pytest.raises(ConnectionError):
        client.request(b"the one\n")
    assert hit.wait(SOON)
    new = Client(proxy)
    assert new.request(b"the one\n") == b"the one\n"
    new.close()
    proxy.close()
    echo.server_close()  # waits for its threads, of which either may be first
    assert echo.received[:2] == [b"hello\n", b"other\n"]
    assert sorted(echo.received[2:]) == sorted([*received, b"the one\n"])
    assert proxy.connections == 2


def test_request_in_pieces(proxy: Proxy, client: Client) -> None:
    """A request is recognized although it arrives in two pieces."""
    hit = proxy.aim(Cut.AFTER, b"the one")
    client.file.write(b"the o")
    with pytest.raises(ConnectionError):
        client.request(b"ne\n")
    assert hit.is_set()


def test_silent_cut(proxy: Proxy, echo: EchoServer, client: Client) -> None:
    """A silent cut loses the answer, without a reset; new connections work."""
    hit = proxy.aim(Cut.SILENTLY, b"one")
    client.file.write(b"the one\n")
    assert hit.wait(SOON)
    client.socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.request(b"more\n")
    new = Client(proxy)
    assert new.request(b"more\n") == b"more\n"
    new.close()
    assert echo.received == [b"hello\n", b"the one\n", b"more\n"]


def test_black_hole(proxy: Proxy, echo: EchoServer, client: Client) -> None:
    """A black hole discards the data of existing and new connections."""
    with proxy.black_hole():
        new = Client(proxy)
        for connected in (client, new):
            connected.socket.settimeout(0.05)
            with pytest.raises(TimeoutError):
                connected.request(b"lost\n")
            connected.close()
    third = Client(proxy)
    assert third.request(b"hello\n") == b"hello\n"
    third.close()
    assert echo.received == [b"hello\n"] * 2


def check_refused(proxy: Proxy) -> None:
    with pytest.raises(ConnectionError), closing(Client(proxy)) as client:
        client.request(b"hello\n")


def test_refusing(proxy: Proxy, client: Client) -> None:
    """The proxy resets existing and new connections while it refuses."""
    with proxy.refusing():
        with pytest.raises(ConnectionError):
            client.request(b"hello\n")
        check_refused(proxy)
    third = Client(proxy)
    assert third.request(b"hello\n") == b"hello\n"
    third.close()


def test_delay_and_close(proxy: Proxy, client: Client) -> None:
    """The server sees the client's close; its fixture waits for that."""
    proxy.delay = 0.01
    assert client.request(b"hello\n") == b"hello\n"


def test_no_server() -> None:
    """Connections are reset while the server does not listen."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with proxied(unused.getsockname()[1]) as proxy:
            check_refused(proxy)
