"""A TCP proxy that injects network faults: resets, black holes, delays.

The proxy does not parse the traffic; a fault is aimed at the request that contains certain bytes.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum

_PIECE = 65_536
_RESET = struct.pack("ii", 1, 0)  # no lingering, so that the peer receives a reset


class Cut(Enum):
    """Where a connection is cut, relative to a request."""

    BEFORE = "before the request has reached the server"
    WITHIN = "in the middle of the request"
    AFTER = "after the request, before its answer"
    SILENTLY = "after the request, without a reset"


class _Connection:
    """A client's connection and the matching connection to the server."""

    def __init__(self, client: socket.socket, server: socket.socket | None) -> None:
        self.client = client
        self.server = server
        self.answers_cut = False  # cut at the next answer
        self.silent = False  # all data is discarded

    def reset(self) -> None:
        """Reset the connection to the client, and close the one to the server."""
        with suppress(OSError):
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        for end in (self.client, self.server):
            if end is not None:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RD)  # ends the thread that reads from it
                end.close()


class Proxy:
    """Forwards connections from its own `port` to a server's; use `proxied()`.

    Attributes:
        delay: Seconds by which each piece of data is delayed.
        connections: Number of connections accepted so far.
    """

    def __init__(self, port: int) -> None:
        self.delay = 0.0
        self.connections = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._open: set[_Connection] = set()
        self._threads: list[threading.Thread] = []
        self._aim: tuple[Cut, bytes] | None = None
        self._hit = threading.Event()
        self._discards = False
        self._refuses = False
        self._start(self._accept)

    def _start(self, fn: object, *args: object) -> None:
        thread = threading.Thread(target=fn, args=args)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    # Faults

    def aim(self, cut: Cut, request: bytes) -> threading.Event:
        """Cut the first connection whose client sends these bytes, and then set the event."""
        with self._lock:
            self._hit = threading.Event()
            self._aim = (cut, request)
        return self._hit

    def cut(self) -> None:
        """Reset all connections."""
        for connection in self._take_open():
            connection.reset()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Reset all connections and refuse new ones."""
        self._refuses = True
        self.cut()
        try:
            yield
        finally:
            self._refuses = False

    @contextmanager
    def black_hole(self) -> Iterator[None]:
        """Discard all data of existing and new connections, without closing them.

        Later connections work again; these ones stay dead.
        """
        with self._lock:
            self._discards = True
            for connection in self._open:
                connection.silent = True
        try:
            yield
        finally:
            self._discards = False

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    # Threads

    def _take_open(self) -> list[_Connection]:
        with self._lock:
            taken = list(self._open)
            self._open.clear()
        return taken

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        server = None
        if not self._discards and not self._refuses:
            with suppress(OSError):
                server = socket.create_connection(("127.0.0.1", self._target))
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(client, server)
        connection.silent = self._discards
        if server is None and not self._discards:
            connection.reset()
            return
        with self._lock:
            self._open.add(connection)
        self._start(self._pass_requests, connection)
        if server is not None:
            self._start(self._pass_answers, connection)

    def _pass_requests(self, connection: _Connection) -> None:
        seen = b""
        for piece in self._pieces(connection, connection.client):
            seen = seen[-_PIECE:] + piece
            cut = self._cut_at(seen)
            if cut is Cut.BEFORE:
                break
            if cut is Cut.AFTER:
                connection.answers_cut = True
            passes = not connection.silent
            if cut is Cut.SILENTLY:
                connection.silent = True  # before the server can answer
            if passes and connection.server is not None:
                data = piece[: len(piece) // 2] if cut is Cut.WITHIN else piece
                if not _send(connection.server, data):
                    break
            if cut is Cut.WITHIN:
                break
        self._end(connection)

    def _pass_answers(self, connection: _Connection) -> None:
        assert connection.server is not None
        for piece in self._pieces(connection, connection.server):
            if connection.answers_cut:
                break
            if not connection.silent and not _send(connection.client, piece):
                break
        if not connection.silent:  # the client must not notice that the server has gone
            self._end(connection)

    def _pieces(self, connection: _Connection, end: socket.socket) -> Iterator[bytes]:
        with suppress(OSError):
            while piece := end.recv(_PIECE):
                time.sleep(self.delay)
                yield piece

    def _cut_at(self, seen: bytes) -> Cut | None:
        with self._lock:
            if self._aim is None or self._aim[1] not in seen:
                return None
            cut, self._aim = self._aim[0], None
        self._hit.set()
        return cut

    def _end(self, connection: _Connection) -> None:
        with self._lock:
            was_open = connection in self._open
            self._open.discard(connection)
        if was_open:
            connection.reset()


def _send(end: socket.socket, piece: bytes) -> bool:
    try:
        end.sendall(piece)
    except OSError:
        return False
    return True


@contextmanager
def proxied(port: int) -> Iterator[Proxy]:
    """Run a proxy to a port of 127.0.0.1 until the block ends."""
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
