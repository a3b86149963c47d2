"""The connection of the NATS broker.

nats-py reconnects after a connection is lost, but it closes its client for good if the server
refuses it. The next call then makes a new client.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

from nats.aio.client import Client
from nats.errors import Error as ClientError

from ..._support.log import log
from .._errors import BrokerUnavailableError, refusal
from .address import NatsAddress

#: Seconds within which a call must find a connection, and a request must be answered.
PATIENCE = 5.0
#: Seconds between pings; the connection is considered lost after two without an answer.
PING_INTERVAL = 5.0
_RECONNECT_WAIT = 0.25  # seconds between two attempts to connect
_CLOSE_TIMEOUT = 1.0  # seconds that closing a client may take
_MAX_ERRORS = 16  # the most errors of nats-py, and missing rights, that are stored
_FORBIDDEN = "permissions violation"  # in errors about a missing right


class NatsConnection:
    """A connection, for one event loop of one process.

    Args:
        address: The servers.
        prepare: Called with every new client before it is used.
        lost: Called when the connection is lost, and when it is closed.
        refused: Called with the server's text when the user lacks a right.
        purpose: What the connection is for if it is not the main one; it then logs at DEBUG.

    Attributes:
        violation: The latest text about a right that the user lacks on this connection, or empty.
    """

    def __init__(
        self,
        address: NatsAddress,
        prepare: Callable[[Client], Awaitable[None]],
        lost: Callable[[], None],
        refused: Callable[[str], None],
        purpose: str = "",
    ) -> None:
        self._address = address
        self.shown = str(address)
        self.patience = PATIENCE
        self._prepare = prepare
        self._lost = lost
        self._refused = refused
        self._purpose = purpose
        self.violation = ""
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._errors: list[Exception] = []
        self._violations: set[str] = set()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def is_open(self) -> bool:
        """Whether `open` was called, and `close` was not; the connection may be lost."""
        return self._loop is not None

    @property
    def current(self) -> Client | None:
        """The client, if it is connected at this moment."""
        client = self._client
        return client if client is not None and client.is_connected else None

    def prepare_to_connect(self) -> None:
        """Open without a connection; the first call that needs one connects."""
        self._loop, self._process = asyncio.get_running_loop(), os.getpid()
        self._connecting, self._changed = asyncio.Lock(), asyncio.Event()

    async def open(self) -> None:
        """Connect.

        Raises:
            BrokerUnavailableError: No server can be reached.
        """
        self.prepare_to_connect()
        try:
            await self.connected()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect."""
        self.begin_to_close()
        await self.has_closed()

    def begin_to_close(self) -> None:
        """Do what `close` does, but for the wait, which a cancellation may interrupt.

        In a forked child this only drops the client, because the parent still uses its socket.
        """
        client, self._client = self._client, None
        inherited = self._loop is not None and self._process != os.getpid()
        self._loop = None
        self._lost()
        if inherited:
            self._closing.clear()
            return
        if client is not None:
            self._close_soon(client)

    async def has_closed(self) -> None:
        """Wait for the end of clients that are being closed."""
        if self._closing:
            await asyncio.wait(self._closing)

    def check(self) -> None:
        """Raise `BrokerUnavailableError` unless it is open in this process and event loop."""
        if self._loop is None:
            raise BrokerUnavailableError(f"{self.shown} is not open")
        if self._process != os.getpid():
            raise BrokerUnavailableError(
                f"{self.shown} was opened by another process, before a fork; open a broker in each "
                f"process"
            )
        if self._loop is not asyncio.get_running_loop():
            raise BrokerUnavailableError(f"{self.shown} was opened in another event loop")

    async def connected(self) -> Client:
        """Return a connected client; wait up to `patience` seconds for the connection.

        Raises:
            BrokerUnavailableError: There is no connection.
        """
        self.check()
        if (current := self.current) is not None:
            return current
        try:
            async with asyncio.timeout(self.patience):
                while True:
                    self._changed.clear()
                    client = await self._usable_client()
                    if client.is_connected:
                        return client
                    await self._changed.wait()
                    self.check()
        except TimeoutError:
            error = self._errors[-1] if self._errors else TimeoutError("no connection")
            raise self.unavailable(error) from None

    def unavailable(self, error: Exception) -> BrokerUnavailableError:
        """Return the error to raise for an error of nats-py or of the system."""
        reason = str(error) or type(error).__name__
        if "," not in self.shown:
            reason = refusal(error) or reason
        return BrokerUnavailableError(f"{self.shown}: {reason}")

    async def _usable_client(self) -> Client:
        """Return a client that is connected or reconnecting; make one if there is none."""
        async with self._connecting:
            if self._client is None or self._client.is_closed:
                client = await self._connect()
                try:
                    self.check()  # it may have been closed meanwhile
                except BrokerUnavailableError:
                    self._close_soon(client)
                    raise
                self._client = client
            return self._client

    async def _connect(self) -> Client:
        """Connect a new client, and try each server once."""
        client: Any = self._address.new_client()
        self._errors.clear()
        self.violation = ""

        async def on_error(error: Exception) -> None:
            if _FORBIDDEN in str(error):
                self._report(str(error))
                return
            self._errors.append(error)
            del self._errors[:-_MAX_ERRORS]
            if client is not self._client and len(self._errors) >= len(self._address.servers):
                raise _NoServerError  # otherwise nats-py would try for ever
            if not client.is_connected and client._transport:
                client._transport.close()  # nats-py would leave it open, and try again
            await self._address.read_credentials()

        async def on_lost() -> None:
            if client is self._client:
                self._disconnected()
                await self._address.read_credentials()

        try:
            await client.connect(
                **await self._address.client_options(),
                error_cb=on_error,
                disconnected_cb=on_lost,
                reconnected_cb=self._reconnected,
                closed_cb=on_lost,
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RECONNECT_WAIT,
                connect_timeout=PATIENCE,
                ping_interval=PING_INTERVAL,
                pending_size=0,
            )
            await self._prepare(client)
        except (_NoServerError, ClientError, OSError) as error:
            self._close_soon(client)
            cause = self._errors[-1] if self._errors else error
            raise self.unavailable(cause) from None
        except BaseException:
            self._close_soon(client)
            raise
        return cast(Client, client)

    def _report(self, violation: str) -> None:
        """Log once that a right is missing; the server does not answer such a request.

        Violations name a subject, which may be that of a job, so their number is limited.
        """
        self.violation = violation
        self._refused(violation)
        if violation not in self._violations and len(self._violations) < _MAX_ERRORS:
            self._violations.add(violation)
            log(logging.ERROR, "%s: %s", self.shown, violation)

    def _disconnected(self) -> None:
        self._lost()
        self._changed.set()
        self._log(logging.WARNING, "connection lost")

    async def _reconnected(self) -> None:
        self._errors.clear()
        self.violation = ""
        self._changed.set()
        self._log(logging.INFO, "reconnected")

    def _log(self, level: int, text: str) -> None:
        if self._purpose:
            level, text = logging.DEBUG, f"{text} ({self._purpose})"
        log(level, "%s: %s", self.shown, text)

    def _close_soon(self, client: Client) -> None:
        """Close a client in a task, which the caller's cancellation does not interrupt."""
        task = asyncio.get_running_loop().create_task(_close(client))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class _NoServerError(Exception):
    """All servers have been tried."""


async def _close(client: Client) -> None:
    with suppress(Exception):
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await client.close()
