"""TLS servers of NATS, and a relay that attacks their clients."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives import serialization

from support.brokers.nats_servers import NatsServer, nats_server


class Authority:
    """A certificate authority, with its files in a folder."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca, self.pem = str(folder / "ca"), str(folder / "pem")
        authority.cert_pem.write_to_path(self.ca)
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(self.pem)
        self._key = certificate.private_key_pem.bytes()
        self.context = ssl.create_default_context(cafile=self.ca)

    def encrypt_key(self, path: Path, password: bytes) -> str:
        """Write the encrypted key of the certificate to a file, and return its name."""
        key = serialization.load_pem_private_key(self._key, None)
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        path.write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(password)))
        return str(path)

    def config(self, *options: str) -> str:
        """Return the lines that configure TLS in a server."""
        files = f"cert_file: {self.pem!r}, key_file: {self.pem!r}, ca_file: {self.ca!r}"
        return f"tls {{ {', '.join([files, *options])} }}\n"


@contextmanager
def tls_server(
    authority: Authority, *options: str, config: str = "", jetstream: bool = True
) -> Iterator[NatsServer]:
    """Run a server with TLS until the block ends."""
    with nats_server(authority.config(*options) + config, jetstream=jetstream) as server:
        yield server


class Attacker:
    """Forwards connections to a server, and changes the server's first message.

    Attributes:
        changes: The changes of the first message; `None` removes a key.
        sent: What each client has sent, until it began TLS.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: asyncio.Server
        self._accepted = asyncio.Event()
        self.changes: dict[str, Any] = {}
        self.sent: list[bytes] = []

    async def __aenter__(self) -> Attacker:
        self._listening = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listening.sockets[0].getsockname()[1]
        self.url = f"tls://me:s3cret@127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def connected(self, times: int) -> None:
        """Wait until clients have connected `times` times in total."""
        while len(self.sent) < times:
            self._accepted.clear()
            await self._accepted.wait()

    def cut(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _accept(self, reader: Any, writer: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
            self._writers |= {writer, server_writer}
            info = json.loads((await server_reader.readline()).removeprefix(b"INFO "))
            info.update(self.changes)
            left = {name: value for name, value in info.items() if value is not None}
            writer.write(b"INFO %b\r\n" % json.dumps(left).encode())
            number = len(self.sent)
            self.sent.append(b"")
            self._accepted.set()
            await asyncio.gather(
                self._forward(reader, server_writer, number),
                self._forward(server_reader, writer),
            )

    async def _forward(self, reader: Any, writer: Any, number: int | None = None) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if number is not None:
                    self.sent[number] += data
                writer.write(data)
        writer.close()
