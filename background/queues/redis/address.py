"""The address of a Redis server, and the connections to it."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from functools import partial
from typing import Any

from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from ..._support import validation
from .._names import check_name
from .._tls import Tls
from .discovery import Cluster, Discovery, Sentinels, disconnect
from .url import Node, read


class Address:
    """The address of a server, with the options of connections; `str()` of it has no secrets.

    Args:
        url: The URL.
        timeout: Seconds to wait for a connection, and for an answer.
        prefix: The prefix of all keys, if it is not in the URL.
        tls: The TLS context.
        options: Options of connections.

    Attributes:
        prefix: The prefix of all keys.
        db: The number of the database.
        is_cluster: Whether the server is a node of a cluster.
        is_found: Whether the server is found by discovery, so that the URL does not name it.

    Raises:
        TypeError: An option is unknown.
        ValueError: An argument is not valid; the message names it.
    """

    def __init__(
        self,
        url: str,
        timeout: float,
        prefix: str | None,
        tls: ssl.SSLContext | None,
        options: Mapping[str, Any],
    ) -> None:
        validation.seconds("timeout", timeout, above=0)
        target = read(url, {**options, "prefix": prefix})
        options = target.options
        self.timeout = timeout
        self.prefix = check_name("prefix", options.pop("prefix", "background"))
        self.db: int = options["db"]
        self.is_cluster = target.mode == "cluster"
        self._text = target.text
        self._tls = Tls(tls, options)
        if tls is not None and not target.encrypted:
            raise ValueError("tls: not without TLS, which URLs of rediss and valkeys ask for")
        login = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
        sentinel = {**login, "credential_provider": None, "db": 0}
        self._class: Any = SSLConnection if target.encrypted else Connection
        if target.socket:
            self._class = UnixDomainSocketConnection
            options["path"] = target.socket
        else:
            options["host"], options["port"] = target.nodes[0]
        self._options = options
        self._discovery: Discovery | None = None
        if target.mode == "sentinel":
            ask = partial(self._ask, **sentinel)
            self._discovery = Sentinels(target.nodes, ask, timeout, service=target.service)
        elif self.is_cluster:
            tag = f"{{{self.prefix}}}"
            self._discovery = Cluster(target.nodes, self._ask, timeout, tag=tag)
        self.is_found = self._discovery is not None
        try:
            self.connection()
        except RedisError as error:
            raise ValueError(str(error)) from None

    def __str__(self) -> str:
        return self._text

    def connection(self, **options: Any) -> Any:
        """Return a new redis-py connection that is not connected yet.

        Args:
            **options: Options that replace those of the address.
        """
        return self._class(
            **{
                **self._options,
                "socket_timeout": None,  # `RedisConnection` limits the time of each answer
                "socket_connect_timeout": self.timeout,
                "retry": Retry(NoBackoff(), 0),
                "protocol": 2,
                "driver_info": None,
                **options,
            }
        )

    async def connect(self, connection: Any) -> None:
        """Connect a connection to the primary, if it is not connected.

        Raises:
            redis.exceptions.RedisError: It can't be reached.
            OSError: A file can't be read, or the network fails.
        """
        if connection.is_connected:
            return
        if self._discovery is None:
            await self._connect(connection)
            return
        connection.host, connection.port = await self._discovery.find()
        await self._connect(connection)
        try:
            await self._discovery.check(connection)
        except BaseException:
            await disconnect(connection, at_once=True)
            raise

    async def _connect(self, connection: Any) -> None:
        if isinstance(connection, SSLConnection):
            connection.ssl_context.context = await self._tls.context()
        await connection.connect()

    async def _ask(self, node: Node, *command: str, **options: Any) -> Any:
        """Send a command to a node on a new connection, and return the answer."""
        connection = self.connection(host=node.host, port=node.port, **options)
        try:
            await self._connect(connection)
            await connection.send_command(*command)
            return await connection.read_response()
        finally:
            await disconnect(connection, at_once=True)
