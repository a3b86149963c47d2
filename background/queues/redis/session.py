"""The connection and the notifications of an open broker or result store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from redis.exceptions import ResponseError

from .._errors import BrokerRefusedError, BrokerUnavailableError
from .address import Address
from .checks import EvictionCheck, report_settings
from .connection import RedisConnection, explained
from .pubsub import Notifications
from .script import command

_OLDEST = (6, 2)

#: References in a forked child: a destructor would close the sockets that the parent uses.
_inherited: list[object] = []


class Session:
    """Opens and closes a connection and its notifications; both can be repeated and concurrent.

    Args:
        address: The server.
        channel: The channel of the notifications.
        check: Called with a new connection before the session is open.
    """

    def __init__(
        self,
        address: Address,
        channel: str = "",
        check: Callable[[RedisConnection], Awaitable[None]] | None = None,
    ) -> None:
        self._address = address
        self._channel = channel
        self._check = check
        self._opening = anyio.Lock()  # held while closing, too
        self._connection: RedisConnection | None = None
        self._notifications: Notifications | None = None
        self._refusal = ""
        self._evictions = EvictionCheck(address)
        self._may_ask = False  # whether the user may send INFO

    async def open(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("Redis works on asyncio only, because redis-py does") from None
        async with self._opening:
            self._leave_inherited()
            if self._connection is not None:
                return
            connection = RedisConnection(self._address)
            self._refusal = ""
            try:
                await self._check_server(connection)
                await self._report_settings(connection)
                if self._check is not None:
                    await self._check(connection)
            except BaseException:
                await connection.close()
                raise
            self._connection = connection
            self._notifications = Notifications(self._address, self._channel)

    async def _check_server(self, connection: RedisConnection) -> None:
        answer = await connection.call(command(b"HELLO"))  # allowed for every user
        if isinstance(answer, ResponseError):
            raise BrokerRefusedError(
                f"{self._address}: Redis 6.2 or later is needed; this server says: {answer}"
            )
        version = answer[answer.index(b"version") + 1].decode()
        if tuple(map(int, version.split(".")[:2])) < _OLDEST:
            raise BrokerRefusedError(f"{self._address}: Redis {version} is too old: 6.2 is needed")

    async def _report_settings(self, connection: RedisConnection) -> None:
        answer = await connection.call(command(b"INFO"))
        self._may_ask = not isinstance(answer, ResponseError)  # many users may not send it
        if self._may_ask:
            info = answer.decode(errors="replace")
            report_settings(self._address, info)
            self._evictions.begin(info)

    async def check_evictions(self) -> bool:
        """Report evicted keys, as far as the user may ask; return whether there are new ones."""
        if not self._may_ask:
            return False
        info: bytes = await self.call(command(b"INFO", b"stats"))
        return self._evictions.report(info.decode(errors="replace"))

    def refuse(self, reason: str) -> None:
        """Let all calls fail until the session is opened again."""
        self._refusal = reason

    async def close(self) -> None:
        async with self._opening:
            self._leave_inherited()
            connection, self._connection = self._connection, None
            notifications, self._notifications = self._notifications, None
            if connection is not None and notifications is not None:
                try:
                    await notifications.close()
                finally:
                    await connection.close()

    def _leave_inherited(self) -> None:
        """Abandon connections that were opened before a fork; the parent uses their sockets."""
        if self._connection is not None and self._connection.is_inherited:
            _inherited.append((self._connection, self._notifications))
            self._connection = self._notifications = None

    @property
    def connection(self) -> RedisConnection:
        return self._opened()[0]

    @property
    def notifications(self) -> Notifications:
        return self._opened()[1]

    def _opened(self) -> tuple[RedisConnection, Notifications]:
        if self._connection is None or self._notifications is None:
            raise BrokerUnavailableError(f"{self._address} is not open")
        if self._refusal:
            raise BrokerRefusedError(self._refusal)
        return self._connection, self._notifications

    async def call(self, request: bytes) -> Any:
        """Send a request and wait for the answer.

        Raises:
            BrokerUnavailableError: The server did not answer, or it returned an error.
        """
        return self.checked(await self.connection.call(request))

    def checked(self, answer: Any) -> Any:
        """Return an answer that is not an error.

        Raises:
            BrokerUnavailableError: The answer is an error.
        """
        if isinstance(answer, ResponseError):
            raise explained(self._address, answer)
        return answer
