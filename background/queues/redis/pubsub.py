"""How those who wait hear of work and of the ends of jobs.

Scripts publish on one channel: `+queue` if there is work that somebody waits for, `=id id` if jobs
have ended that somebody waits for. A message that is lost costs no more than a moment, as who waits
also looks from time to time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import Context
from typing import Any

from .connection import Address, disconnect

_AGAIN = 1.0  # seconds until a connection that was lost is made anew


class Listener:
    """A connection that listens to the channel, from when somebody first waits."""

    def __init__(self, address: Address, channel: str) -> None:
        self._address = address
        self._channel = channel
        self._events: dict[str, set[asyncio.Event]] = {}  # by `+queue` and `=id`
        self._task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()

    async def start(self) -> None:
        """Begin to listen, if that can be."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name=f"listening to {self._address}", context=Context()
            )
        await self._tried.wait()

    async def close(self) -> None:
        """Stop listening, and wake all who wait."""
        self._tried.set()
        self._wake_all()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @contextmanager
    def expecting(self, topics: Iterable[str]) -> Generator[asyncio.Event]:
        """Give an event that is set once there may be news of one of these."""
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
                self._wake_all()  # of what was missed
                await self._listen(connection)
            except Exception:
                # Whoever calls the server hears what is wrong with it.
                self._tried.set()
            finally:
                await disconnect(connection, at_once=True)
            await asyncio.sleep(_AGAIN)

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
