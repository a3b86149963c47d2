"""The NATS broker's connection, made anew as often as it takes.

nats-py reconnects; once it has given up for good, which it does when it is refused, whoever next
needs a connection begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast
from urllib.parse import urlsplit

from nats.aio.client import Client
from nats.errors import Error as ClientError

from ..._support.log import log
from .._errors import BrokerUnavailableError

#: Seconds until a call fails that nobody answers, and one that finds no connection.
PATIENCE = 5.0
#: Seconds between signs of life; after two without an answer, a connection is taken to be dead.
PING_INTERVAL = 5.0
_RECONNECT_WAIT = 0.25  # seconds between two tries
_CLOSING = 1.0  # seconds that a server gets to take note of a goodbye
_ERRORS = 16  # that are remembered at most


class NatsConnection:
    """A connection, for one event loop of one process.

    Every new client is first handed to `prepare`; when the connection was lost, or is closed,
    `lost` is called.
    """

    def __init__(
        self,
        url: str,
        tls: ssl.SSLContext | None,
        prepare: Callable[[Client], Awaitable[None]],
        lost: Callable[[], None],
    ) -> None:
        self._servers = [each.strip() for each in url.split(",")]
        self.shown = ",".join(_show(each) for each in self._servers)  # without secrets
        self.patience = PATIENCE
        self._tls = tls
        self._prepare = prepare
        self._lost = lost
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._errors: list[Exception] = []
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def is_open(self) -> bool:
        return self._loop is not None

    @property
    def current(self) -> Client | None:
        """The client, if it has a connection at this moment."""
        client = self._client
        return client if client is not None and client.is_connected else None

    async def open(self) -> None:
        """Connect. Raises `BrokerUnavailableError`."""
        self._loop, self._process = asyncio.get_running_loop(), os.getpid()
        self._connecting, self._changed = asyncio.Lock(), asyncio.Event()
        try:
            await self.connected()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect; what was inherited by a fork is only let go."""
        client, self._client = self._client, None
        inherited = self._loop is not None and self._process != os.getpid()
        self._loop = None
        self._lost()
        if inherited:
            self._ending.clear()
            return
        if client is not None:
            self._end(client)
        if self._ending:
            await asyncio.wait(self._ending)

    def check(self) -> None:
        """Raise `BrokerUnavailableError` unless it is open, and here."""
        if self._loop is None:
            raise BrokerUnavailableError(f"{self.shown} is not open")
        if self._process != os.getpid():
            raise BrokerUnavailableError(
                f"{self.shown} was opened by another process, before a fork; make a broker here"
            )
        if self._loop is not asyncio.get_running_loop():
            raise BrokerUnavailableError(f"{self.shown} was opened in another event loop")

    async def connected(self) -> Client:
        """Return a client that has a connection, waiting a moment for it."""
        self.check()
        if (current := self.current) is not None:
            return current
        try:
            async with asyncio.timeout(self.patience):
                while True:
                    self._changed.clear()
                    client = await self._living()
                    if client.is_connected:
                        return client
                    await self._changed.wait()
                    self.check()
        except TimeoutError:
            error = self._errors[-1] if self._errors else TimeoutError("no connection")
            raise self.failed(error) from None

    def failed(self, error: Exception) -> BrokerUnavailableError:
        return BrokerUnavailableError(f"{self.shown}: {str(error) or type(error).__name__}")

    async def _living(self) -> Client:
        """Return a client that has a connection, or tries to have one again."""
        async with self._connecting:
            if self._client is None or self._client.is_closed:
                client = await self._connect()
                try:
                    self.check()  # it may have been closed meanwhile
                except BrokerUnavailableError:
                    self._end(client)
                    raise
                self._client = client
            return self._client

    async def _connect(self) -> Client:
        client: Any = Client()
        self._errors.clear()

        async def failed(error: Exception) -> None:
            self._errors.append(error)
            del self._errors[:-_ERRORS]
            if client is not self._client and len(self._errors) >= len(self._servers):
                raise _NoServerError  # or it would go on trying

        async def lost() -> None:
            if client is self._client:
                self._disconnected()

        try:
            await client.connect(
                list(self._servers),
                name="background",
                tls=self._tls,
                error_cb=failed,
                disconnected_cb=lost,
                reconnected_cb=self._reconnected,
                closed_cb=lost,
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RECONNECT_WAIT,
                connect_timeout=PATIENCE,
                ping_interval=PING_INTERVAL,
                pending_size=0,
            )
            await self._prepare(client)
        except (_NoServerError, ClientError, OSError) as error:
            self._end(client)
            known = self._errors[-1] if self._errors else error
            raise self.failed(known) from None
        except BaseException:
            self._end(client)
            raise
        return cast(Client, client)

    def _disconnected(self) -> None:
        self._lost()
        self._changed.set()
        log(logging.WARNING, "%s: the connection was lost", self.shown)

    async def _reconnected(self) -> None:
        self._errors.clear()
        self._changed.set()
        log(logging.INFO, "%s: connected again", self.shown)

    def _end(self, client: Client) -> None:
        """Close a client, whoever is cancelled meanwhile."""
        task = asyncio.get_running_loop().create_task(_close(client))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class _NoServerError(Exception):
    """There is no server left to try."""


async def _close(client: Client) -> None:
    with suppress(Exception):
        async with asyncio.timeout(_CLOSING):
            await client.close()


def _show(url: str) -> str:
    """Return a URL without what is secret. Raises `ValueError`, which does not show it either."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("nats", "tls") or not host:
        raise ValueError("url must be like nats://user:password@host:4222, or begin with tls://")
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port or 4222}"
