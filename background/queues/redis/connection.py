"""A Redis connection that sends requests in a pipeline and reads the answers in order.

The connection belongs to its own task, so the cancellation of a caller can't separate a request
from its answer. Requests that arrive while the server is busy are sent together.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from contextvars import Context
from os import getpid
from typing import Any

from redis.exceptions import ResponseError

from .._errors import BrokerUnavailableError, refusal
from .address import Address
from .discovery import disconnect

_MOST_TOGETHER = 100  # requests that are sent at once

#: Errors of a server that is not the primary of the keys.
_MOVED = re.compile(r"\b(READONLY|NOREPLICAS|MASTERDOWN|MOVED|ASK|TRYAGAIN|CLUSTERDOWN)\b")


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
                    await self._leave_if_moved(value)
        except Exception as error:
            self._fail(self._sent, explained(self._address, error))
            await disconnect(self._connection, at_once=True)

    async def _connect(self) -> None:
        # The server never sends unrequested data here, so readable means closed.
        if self._connection.is_connected and await self._connection.can_read():
            await disconnect(self._connection, at_once=True)
        await self._address.connect(self._connection)

    async def _read(self) -> Any:
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            return error

    async def _leave_if_moved(self, value: Any) -> None:
        """Disconnect from a server that is no primary, so that the next request finds the new one.

        It became a replica, or another node of the cluster has the slot of the keys.
        """
        if isinstance(value, ResponseError) and _MOVED.search(text(value)) and not self._sent:
            await disconnect(self._connection, at_once=True)


def explained(address: Address, error: Exception) -> BrokerUnavailableError:
    """Return the error to raise for an error of redis-py or the operating system."""
    reason = text(error)
    if not address.is_found:
        reason = refusal(error.__context__) or reason
    if isinstance(error, TimeoutError):
        reason = f"no answer within {address.timeout:g} s"
    if reason.startswith("MOVED") and not address.is_cluster:
        reason = f"the server is part of a cluster; use a URL like redis+cluster:// ({reason})"
    return BrokerUnavailableError(f"{address}: {reason}")


def text(error: Exception) -> str:
    """Return an error's message, with the error code that redis-py removes from it."""
    code = getattr(error, "status_code", None)
    return f"{code} {error}" if code else str(error)
