"""Requests to a NATS server, and what comes in answer to them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nats.aio.msg import Msg

_WINDOW = 256  # requests in flight
_WINDOW_BYTES = 4 * 1024 * 1024


class Request(NamedTuple):
    """Something to be answered by one message."""

    subject: str
    payload: bytes = b""
    headers: dict[str, str] | None = None


class Answers:
    """The answers to one request: so many, or fewer and then a status."""

    def __init__(self, most: int) -> None:
        self.got: list[Msg] = []
        self.status: str | None = None
        self.lost = False
        self._most = most
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def add(self, message: Msg) -> None:
        status = None if message.headers is None or message.data else message.headers.get("Status")
        if status is not None:
            self.status = status
        else:
            self.got.append(message)
        if status is not None or len(self.got) >= self._most:
            self.end()

    def lose(self) -> None:
        """Have no answer any more, unless it is there."""
        self.lost = self.lost or not self.done.done()
        self.end()

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


def consumer_of(reply: str) -> str:
    """Return whose message is acknowledged there; some servers put two more names before."""
    names = reply.split(".")
    return ".".join(names[2:4] if len(names) == 9 else names[4:6])


def windows(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    """Cut requests into parts that may be in flight at once."""
    start = size = 0
    for place, request in enumerate(requests):
        if place > start and (place - start == _WINDOW or size > _WINDOW_BYTES):
            yield requests[start:place]
            start, size = place, 0
        size += len(request.payload)
    if requests:
        yield requests[start:]
