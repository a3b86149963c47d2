"""Results in Redis or Valkey, each under a key of its own."""

from __future__ import annotations

from .._names import check
from ..abc import Results
from .connection import Address
from .script import command, encoded
from .session import Session

_FOR_EVER = 1e12  # seconds, from which the server could not count


class RedisResults(Results):
    """Keeps results in Redis 6.2 or later, or in Valkey; for one event loop of asyncio.

    All is as for `RedisBroker`. Each result has a key of its own, which the server forgets when
    its time is over.
    """

    def __init__(self, url: str, *, prefix: str = "background", timeout: float = 5.0) -> None:
        self.prefix = check("prefix", prefix)
        self._address = Address(url, timeout)
        self._session = Session(self._address)

    def __repr__(self) -> str:
        return f"<RedisResults {self._address}, prefix {self.prefix!r}>"

    async def open(self) -> None:
        await self._session.open()

    async def close(self) -> None:
        await self._session.close()

    async def save(self, key: str, result: bytes, *, keep: float) -> None:
        values = [b"SET", self._key(key), result]
        if keep < _FOR_EVER:
            values += encoded("PX", max(round(keep * 1000), 1))
        await self._session.call(command(*values))

    async def get(self, key: str) -> bytes | None:
        found: bytes | None = await self._session.call(command(b"GET", self._key(key)))
        return found

    async def delete(self, key: str) -> None:
        await self._session.call(command(b"DEL", self._key(key)))

    def _key(self, key: str) -> bytes:
        return f"{{{self.prefix}}}:result:{key}".encode()
