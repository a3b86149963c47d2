"""Notifications of work and of ended jobs.

Scripts publish on one channel: `+queue` if there is work in a queue that has waiters, `=id id` if
jobs have ended that have waiters. A lost message costs no more than a moment, because waiters also
look from time to time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import Context
from typing import Any

from .connection import Address, disconnect

_RECONNECT = 1.0  # seconds until a lost connection is made again


class Notifications:
    """A connection that listens to the channel, from the first waiter on."""

    def __init__(self, address: Address, channel: str) -> None:
        self._address = address
        self._channel = channel
        self._events: dict[str, set[asyncio.Event]] = {}  # by `+queue` and `=id`
        self._task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()

    async def start(self) -> None:
        """Begin to listen, if the server can be reached."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name=f"listening to {self._address}", context=Context()
            )
        await self._tried.wait()

    async def close(self) -> None:
        """Stop listening, and wake all waiters."""
        self._tried.set()
        self._wake_all()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @contextmanager
    def listening(self, topics: Iterable[str]) -> Generator[asyncio.Event]:
        """Yield an event that is set when one of the topics may have been published."""
        event, mine = asyncio.Event(), list(topics)
        for topic in mine:
            self._events.setdefault(topic, set()).add(event)
        try:
            yield event
        finally:
            for topic in mine:
                events = self._events[topic]
                events.discard(event)
                if not events:
                    del self._events[topic]

    async def _run(self) -> None:
        while True:
            connection = self._address.connection()
            try:
                async with asyncio.timeout(self._address.timeout):
                    await connection.connect()
                    await connection.send_command("SUBSCRIBE", self._channel)
                    await connection.read_response()
                self._tried.set()
                self._wake_all()  # they may have missed something
                await self._listen(connection)
            except Exception:
                # The next call of the server will report what is wrong.
                self._tried.set()
            finally:
                await disconnect(connection, at_once=True)
            await asyncio.sleep(_RECONNECT)

    async def _listen(self, connection: Any) -> None:
        while True:
            _, _, data = await connection.read_response()
            text: str = data.decode()
            for name in text[1:].split(" "):
                self._wake(text[0] + name)

    def _wake(self, topic: str) -> None:
        for event in self._events.get(topic, ()):
            event.set()

    def _wake_all(self) -> None:
        for topic in self._events:
            self._wake(topic)
