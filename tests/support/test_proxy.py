"""The proxy, before a server that answers each line with the same line."""

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
            self.server.heard.append(line)  # type: ignore[attr-defined]
            with suppress(ConnectionError):
                self.wfile.write(line)

    def _lines(self) -> Iterator[bytes]:
        with suppress(ConnectionError):
            yield from self.rfile


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.heard: list[bytes] = []


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

    def ask(self, line: bytes) -> bytes:
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
    assert client.ask(b"hello\n") == b"hello\n"
    yield client
    client.close()


@pytest.mark.parametrize(
    ("cut", "heard"), [(Cut.BEFORE, []), (Cut.WITHIN, [b"the "]), (Cut.AFTER, [b"the one\n"])]
)
def test_cut_at_a_request(
    proxy: Proxy, echo: EchoServer, client: Client, cut: Cut, heard: list[bytes]
) -> None:
    hit = proxy.aim(cut, b"one")
    assert client.ask(b"other\n") == b"other\n"
    assert not hit.is_set()
    with pytest.raises(ConnectionError):
        client.ask(b"the one\n")
    assert hit.wait(SOON)
    new = Client(proxy)
    assert new.ask(b"the one\n") == b"the one\n"
    new.close()
    proxy.close()
    assert echo.heard == [b"hello\n", b"other\n", *heard, b"the one\n"]
    assert proxy.connections == 2


def test_a_request_in_pieces(proxy: Proxy, client: Client) -> None:
    hit = proxy.aim(Cut.AFTER, b"the one")
    client.file.write(b"the o")
    with pytest.raises(ConnectionError):
        client.ask(b"ne\n")
    assert hit.is_set()


def test_cut_and_nobody_is_told(proxy: Proxy, echo: EchoServer, client: Client) -> None:
    hit = proxy.aim(Cut.SILENTLY, b"one")
    client.file.write(b"the one\n")
    assert hit.wait(SOON)
    client.socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.ask(b"more\n")
    new = Client(proxy)
    assert new.ask(b"more\n") == b"more\n"
    new.close()
    assert echo.heard == [b"hello\n", b"the one\n", b"more\n"]


def test_a_black_hole(proxy: Proxy, echo: EchoServer, client: Client) -> None:
    with proxy.black_hole():
        new = Client(proxy)
        for each in (client, new):
            each.socket.settimeout(0.05)
            with pytest.raises(TimeoutError):
                each.ask(b"lost\n")
            each.close()
    later = Client(proxy)
    assert later.ask(b"hello\n") == b"hello\n"
    later.close()
    assert echo.heard == [b"hello\n"] * 2


def check_refused(proxy: Proxy) -> None:
    with pytest.raises(ConnectionError), closing(Client(proxy)) as client:
        client.ask(b"hello\n")


def test_refused(proxy: Proxy, client: Client) -> None:
    with proxy.refusing():
        with pytest.raises(ConnectionError):
            client.ask(b"hello\n")
        check_refused(proxy)
    later = Client(proxy)
    assert later.ask(b"hello\n") == b"hello\n"
    later.close()


def test_a_delay_and_an_end(proxy: Proxy, client: Client) -> None:
    """What the client closes, the server is told of: its fixture waits for that."""
    proxy.delay = 0.01
    assert client.ask(b"hello\n") == b"hello\n"


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with proxied(unused.getsockname()[1]) as proxy:
            check_refused(proxy)
