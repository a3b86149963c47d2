"""The search for the primary, through sentinels or the nodes of a cluster."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from .url import Node


class Discovery(ABC):
    """Asks nodes, one after the other, where the primary is.

    Args:
        nodes: The nodes to ask.
        ask: Sends a command to a node, on a new connection, and returns the answer.
        timeout: Seconds for all questions together, and for the connection to the primary.
    """

    def __init__(
        self, nodes: Iterable[Node], ask: Callable[..., Awaitable[Any]], timeout: float
    ) -> None:
        self._nodes = deque(nodes)
        self._ask = ask
        self._timeout = timeout

    async def find(self) -> Node:
        """Return the address of the primary. The first node that answers is asked first again.

        Raises:
            redis.exceptions.ConnectionError: No node knows it.
        """
        reason: Exception | None = None
        patience = self._timeout / (len(self._nodes) + 1)
        for node in list(self._nodes):
            try:
                async with asyncio.timeout(patience):
                    answer = await self._ask(node, *self._question)
                return self._primary(answer, node)
            except (RedisError, OSError) as error:
                reason = error
            self._nodes.rotate(-1)
        raise RedisConnectionError(f"no node knows the primary: {str(reason) or 'no answer'}")

    async def check(self, connection: Any) -> None:
        """Check a new connection to the primary, because a node may not know the latest one.

        Raises:
            redis.exceptions.ConnectionError: It leads to a replica.
        """
        await connection.send_command("HELLO")  # allowed for every user, unlike ROLE
        answer = await connection.read_response()
        if answer[answer.index(b"role") + 1] != b"master":
            raise RedisConnectionError(f"{connection.host}:{connection.port} is a replica now")

    @property
    @abstractmethod
    def _question(self) -> tuple[str, ...]:
        """The command to send."""

    @abstractmethod
    def _primary(self, answer: Any, node: Node) -> Node:
        """Return the address in a node's answer.

        Raises:
            redis.exceptions.ConnectionError: There is none.
        """


class Sentinels(Discovery):
    """Asks the sentinels of a service.

    Args:
        service: The name of the primary in the sentinels' configuration.
    """

    def __init__(self, *args: Any, service: str) -> None:
        super().__init__(*args)
        self._service = service

    @property
    def _question(self) -> tuple[str, ...]:
        return "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service

    def _primary(self, answer: Any, node: Node) -> Node:
        if not answer:
            raise RedisConnectionError(f"{node.host}:{node.port} knows no {self._service!r}")
        host, port = answer
        return Node(host.decode(), int(port))


class Cluster(Discovery):
    """Asks the nodes of a cluster, and remembers all nodes that they name.

    Args:
        tag: The hash tag of all keys, which decides on their slot.
    """

    def __init__(self, *args: Any, tag: str) -> None:
        super().__init__(*args)
        self._slot: int = key_slot(tag.encode())

    @property
    def _question(self) -> tuple[str, ...]:
        return "CLUSTER", "SLOTS"

    def _primary(self, answer: Any, node: Node) -> Node:
        # [first slot, last slot, primary, replica, …], where a node is [host, port, id, …]; the
        # host is empty if it is the one that was asked.
        owner: Node | None = None
        for first, last, *servers in answer:
            nodes = [Node((host or b"").decode() or node.host, port) for host, port, *_ in servers]
            self._nodes.extend(known for known in nodes if known not in self._nodes)
            if first <= self._slot <= last:
                owner = nodes[0]
        if owner is None:
            raise RedisConnectionError(f"slot {self._slot} has no primary")
        return owner


async def disconnect(connection: Any, *, at_once: bool = False) -> None:
    """Close a connection, and ignore errors."""
    with suppress(Exception):
        await connection.disconnect(nowait=at_once)
