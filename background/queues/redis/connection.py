"""A Redis connection that sends requests in a pipeline and reads the answers in order.

The connection belongs to its own task, so the cancellation of a caller can't separate a request
from its answer. Requests that arrive while the server is busy are sent together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from os import getpid
from typing import Any

from redis.asyncio.connection import Connection, UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from ..._support import validation
from .._errors import BrokerUnavailableError

_MOST_TOGETHER = 100  # requests that are sent at once

#: Options of URLs that the broker sets itself.
_FIXED_OPTIONS = (
    *("socket_timeout", "socket_connect_timeout", "retry_on_timeout", "retry_on_error", "protocol"),
    *("health_check_interval", "decode_responses", "max_connections", "timeout"),
)


class Address:
    """The address of a server, with the options of connections; `str()` of it has no secrets.

    Args:
        url: The URL.
        timeout: Seconds to wait for a connection, and for an answer.

    Raises:
        ValueError: An argument is not valid; the message names it.
    """

    def __init__(self, url: str, timeout: float) -> None:
        validation.seconds("timeout", timeout, above=0)
        try:
            options: dict[str, Any] = dict(parse_url(url))
            for name in _FIXED_OPTIONS:
                options.pop(name, None)
            self._class: Callable[..., Any] = options.pop("connection_class", Connection)
            self.timeout = timeout
            self._options = {
                **options,
                "socket_timeout": None,  # `RedisConnection` limits the time of each answer
                "socket_connect_timeout": timeout,
                "retry": Retry(NoBackoff(), 0),
                "protocol": 2,
                "driver_info": None,
            }
            connection = self.connection()
        except (TypeError, ValueError, AttributeError, RedisError):
            # The message does not quote the URL, because the URL may contain a password.
            raise ValueError(
                "url must be like redis://host:6379/0, rediss://… for TLS or unix:///path?db=0, "
                "with options that redis-py accepts and a percent-encoded password"
            ) from None
        self.db = int(connection.db)
        self._text = _text(connection)

    def __str__(self) -> str:
        return self._text

    def connection(self) -> Any:
        """Return a new redis-py connection that is not connected yet."""
        return self._class(**self._options)


def _text(connection: Any) -> str:
    if isinstance(connection, UnixDomainSocketConnection):
        return f"unix://{connection.path}?db={connection.db}"
    scheme = "redis" if type(connection) is Connection else "rediss"
    return f"{scheme}://{connection.host}:{connection.port}/{connection.db}"


class _RedisCall:
    """A request, and its answer."""

    __slots__ = ("answer", "request")

    def __init__(self, request: bytes, answer: asyncio.Future[Any]) -> None:
        self.request = request
        self.answer = answer

    def succeed(self, value: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(value)

    def fail(self, error: BrokerUnavailableError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class RedisConnection:
    """A connection that connects at the first request, and again after it was lost.

    Args:
        address: The server.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._connection = address.connection()
        self._process = getpid()
        self._is_open = True
        self._waiting: deque[_RedisCall] = deque()
        self._sent: deque[_RedisCall] = deque()
        self._called = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(
            self._serve(), name=f"connection to {address}", context=Context()
        )

    @property
    def is_inherited(self) -> bool:
        """Whether the connection was opened before a fork, by the parent process."""
        return self._process != getpid()

    async def call(self, request: bytes) -> Any:
        """Send a request and wait for the answer.

        Args:
            request: A command in the server's protocol.

        Returns:
            The answer, or a `ResponseError`.

        Raises:
            BrokerUnavailableError: The server did not answer.
        """
        if self.is_inherited:
            raise BrokerUnavailableError(
                f"{self._address} was opened by another process, before a fork; "
                "open a broker in each process"
            )
        if not self._is_open:
            raise self._not_open()
        call = _RedisCall(request, self._loop.create_future())
        self._waiting.append(call)
        self._called.set()
        return await call.answer

    async def close(self) -> None:
        """Disconnect; requests without an answer fail."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _serve(self) -> None:
        try:
            while True:
                await self._called.wait()
                self._called.clear()
                while self._waiting:
                    await self._exchange()
        finally:
            self._is_open = False
            self._fail(self._sent, self._not_open())
            self._fail(self._waiting, self._not_open())
            await disconnect(self._connection)

    def _not_open(self) -> BrokerUnavailableError:
        return BrokerUnavailableError(f"{self._address} is not open")

    def _fail(self, calls: deque[_RedisCall], error: BrokerUnavailableError) -> None:
        while calls:
            calls.popleft().fail(error)

    async def _exchange(self) -> None:
        """Send waiting requests, and read the answers."""
        while self._waiting and len(self._sent) < _MOST_TOGETHER:
            call = self._waiting.popleft()
            if not call.answer.done():  # otherwise the caller was cancelled
                self._sent.append(call)
        if not self._sent:
            return
        try:
            async with asyncio.timeout(self._address.timeout) as limit:
                await self._connect()
                await self._connection.send_packed_command(
                    b"".join([call.request for call in self._sent])
                )
                while self._sent:
                    value = await self._read()
                    self._sent.popleft().succeed(value)
                    limit.reschedule(self._loop.time() + self._address.timeout)
                    await self._leave_if_read_only(value)
        except Exception as error:
            self._fail(self._sent, explained(self._address, error))
            await disconnect(self._connection, at_once=True)

    async def _connect(self) -> None:
        # The server never sends unrequested data here, so readable means closed.
        if self._connection.is_connected and await self._connection.can_read():
            await disconnect(self._connection, at_once=True)
        await self._connection.connect()

    async def _read(self) -> Any:
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            return error

    async def _leave_if_read_only(self, value: Any) -> None:
        """Disconnect from a server that became a replica; its address may lead to a new primary."""
        if isinstance(value, ResponseError) and "READONLY" in text(value) and not self._sent:
            await disconnect(self._connection, at_once=True)


async def disconnect(connection: Any, *, at_once: bool = False) -> None:
    """Close a connection, and ignore errors."""
    with suppress(Exception):
        await connection.disconnect(nowait=at_once)


def explained(address: Address, error: Exception) -> BrokerUnavailableError:
    """Return the error to raise for an error of redis-py or the operating system."""
    reason = text(error)
    if isinstance(error, TimeoutError):
        reason = f"no answer within {address.timeout:g} s"
    return BrokerUnavailableError(f"{address}: {reason}")


def text(error: Exception) -> str:
    """Return an error's message, with the error code that redis-py removes from it."""
    code = getattr(error, "status_code", None)
    return f"{code} {error}" if code else str(error)
