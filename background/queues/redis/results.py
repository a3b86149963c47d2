"""Results in Redis or Valkey, each under a key of its own."""

from __future__ import annotations

from .._names import check_name
from ..abc import Results
from .connection import Address
from .script import command, encoded
from .session import Session

_FOR_EVER = 1e12  # seconds, too many for the server to add to its time


class RedisResults(Results):
    """Keeps results in Redis 6.2 or later, or in Valkey; for one event loop of asyncio.

    The server deletes each result's key at the end of its retention.

    Args:
        url: As for `RedisBroker`.
        prefix: As for `RedisBroker`.
        timeout: As for `RedisBroker`.

    Raises:
        ValueError: An argument is not valid.
    """

    def __init__(self, url: str, *, prefix: str = "background", timeout: float = 5.0) -> None:
        self.prefix = check_name("prefix", prefix)
        self._address = Address(url, timeout)
        self._session = Session(self._address)

    def __repr__(self) -> str:
        return f"<RedisResults {self._address}, prefix {self.prefix!r}>"

    async def open(self) -> None:
        await self._session.open()

    async def close(self) -> None:
        await self._session.close()

    async def save(self, key: str, result: bytes, *, retention: float) -> None:
        values = [b"SET", self._key(key), result]
        if retention < _FOR_EVER:
            values += encoded("PX", max(round(retention * 1000), 1))
        await self._session.call(command(*values))

    async def get(self, key: str) -> bytes | None:
        found: bytes | None = await self._session.call(command(b"GET", self._key(key)))
        return found

    async def delete(self, key: str) -> None:
        await self._session.call(command(b"DEL", self._key(key)))

    def _key(self, key: str) -> bytes:
        return f"{{{self.prefix}}}:result:{key}".encode()
