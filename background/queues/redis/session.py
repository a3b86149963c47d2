"""What is open between opening and closing: a link to Redis, and a listener."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from redis.exceptions import ResponseError

from .._errors import BrokerUnavailableError
from .connection import Address, Link, explained
from .pubsub import Listener
from .script import command

_OLDEST = (6, 2)

#: What a child may not even have collected, as that would close it.
_inherited: list[object] = []


class Session:
    """Opens and closes, in any order, and asks for what is open.

    `check` is called with a new link, before anybody gets to use it.
    """

    def __init__(
        self,
        address: Address,
        channel: str = "",
        check: Callable[[Link], Awaitable[None]] | None = None,
    ) -> None:
        self._address = address
        self._channel = channel
        self._check = check
        self._opening = anyio.Lock()  # or closing
        self._link: Link | None = None
        self._listener: Listener | None = None

    async def open(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("Redis is used on asyncio only, as redis-py is") from None
        async with self._opening:
            self._leave_inherited()
            if self._link is not None:
                return
            link = Link(self._address)
            try:
                await self._check_server(link)
                if self._check is not None:
                    await self._check(link)
            except BaseException:
                await link.close()
                raise
            self._link = link
            self._listener = Listener(self._address, self._channel)

    async def _check_server(self, link: Link) -> None:
        answer = await link.call(command(b"HELLO"))  # every user may ask this
        if isinstance(answer, ResponseError):
            raise BrokerUnavailableError(
                f"{self._address}: Redis 6.2 or later is needed; this server says: {answer}"
            )
        version = answer[answer.index(b"version") + 1].decode()
        if tuple(map(int, version.split(".")[:2])) < _OLDEST:
            raise BrokerUnavailableError(
                f"{self._address}: Redis {version} is too old: 6.2 is needed"
            )

    async def close(self) -> None:
        async with self._opening:
            self._leave_inherited()
            link, self._link = self._link, None
            listener, self._listener = self._listener, None
            if link is not None and listener is not None:
                try:
                    await listener.close()
                finally:
                    await link.close()

    def _leave_inherited(self) -> None:
        """Leave to the parent what was open at a fork: it uses the same sockets."""
        if self._link is not None and self._link.is_inherited:
            _inherited.append((self._link, self._listener))
            self._link = self._listener = None

    @property
    def link(self) -> Link:
        return self._opened()[0]

    @property
    def listener(self) -> Listener:
        return self._opened()[1]

    def _opened(self) -> tuple[Link, Listener]:
        if self._link is None or self._listener is None:
            raise BrokerUnavailableError(f"{self._address} is not open")
        return self._link, self._listener

    async def call(self, request: bytes) -> Any:
        """Return the answer to a request. Raises `BrokerUnavailableError`."""
        return self.checked(await self.link.call(request))

    def checked(self, answer: Any) -> Any:
        if isinstance(answer, ResponseError):
            raise explained(self._address, answer)
        return answer
