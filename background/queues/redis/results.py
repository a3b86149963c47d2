"""A result store in Redis or Valkey, with one key for each result."""

from __future__ import annotations

import ssl
from typing import Unpack

from redis.exceptions import ResponseError

from .._errors import InvalidPayloadError
from ..abc import Results
from .address import Address
from .script import command, encoded
from .session import Session
from .url import RedisOptions

_FOREVER = 1e12  # seconds; the server can't represent much later times


class RedisResults(Results):
    """A store of results in Redis 6.2 or later, or in Valkey.

    It works on asyncio only, in one event loop. The server deletes a result at the end of its
    retention.

    Args:
        url: The server, in the form that `RedisBroker` takes.
        prefix: The prefix of all keys, by default `background`.
        timeout: Seconds to wait for a connection, and for an answer.
        tls: The TLS context, with a URL for TLS.
        **options: As for `RedisBroker`.

    Raises:
        TypeError: An argument is unknown.
        ValueError: An argument is not valid; the message names it.

    Example:
        ```python
        jobs = JobQueue(SQLiteBroker("jobs.db"), results=RedisResults("redis://localhost:6379/0"))
        ```
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str | None = None,
        timeout: float = 5.0,
        tls: ssl.SSLContext | None = None,
        **options: Unpack[RedisOptions],
    ) -> None:
        self._address = Address(url, timeout, prefix, tls, options)
        self.prefix = self._address.prefix
        self._session = Session(self._address)

    def __repr__(self) -> str:
        return f"<RedisResults {self._address}, prefix {self.prefix!r}>"

    async def open(self) -> None:
        await self._session.open()

    async def close(self) -> None:
        await self._session.close()

    async def save(self, key: str, result: bytes, *, retention: float) -> None:
        values = [b"SET", self._key(key), result]
        if retention < _FOREVER:
            values += encoded("PX", max(round(retention * 1000), 1))
        await self._session.call(command(*values))

    async def get(self, key: str) -> bytes | None:
        answer = await self._session.connection.call(command(b"GET", self._key(key)))
        if isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE"):
            raise InvalidPayloadError(f"the result {key} can't be read: its key is of another type")
        found: bytes | None = self._session.checked(answer)
        return found

    async def delete(self, key: str) -> None:
        await self._session.call(command(b"DEL", self._key(key)))

    def _key(self, key: str) -> bytes:
        return f"{{{self.prefix}}}:result:{key}".encode()
