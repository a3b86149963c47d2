"""Notifications of new work and of ended jobs.

Scripts publish on one channel: `+queue` when a queue with waiters has work, and `=id id` when jobs
with waiters have ended. `!id` reports a job that could not be read. A lost message only causes a
short delay, because waiters also poll.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import Context
from typing import Any

from redis.exceptions import NoPermissionError

from ..._support.log import log
from .address import Address
from .discovery import disconnect

_RECONNECT = 1.0  # seconds before a lost connection is opened again


class Notifications:
    """A subscription to the channel, which starts with the first waiter.

    Args:
        address: The server.
        channel: The channel.
    """

    def __init__(self, address: Address, channel: str) -> None:
        self._address = address
        self._channel = channel
        self._events: dict[str, set[asyncio.Event]] = {}  # by `+queue` and `=id`
        self._task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self._is_refused = False

    async def start(self) -> None:
        """Subscribe if necessary, and wait for the first attempt to do so."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name=f"listening to {self._address}", context=Context()
            )
        await self._tried.wait()

    async def close(self) -> None:
        """Unsubscribe, and wake all waiters."""
        self._tried.set()
        self._wake_all()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @contextmanager
    def listening(self, topics: Iterable[str]) -> Generator[asyncio.Event]:
        """Yield an event that is set when a topic was published, or may have been missed.

        Args:
            topics: Names such as `+queue` and `=id`.
        """
        event, awaited = asyncio.Event(), list(topics)
        for topic in awaited:
            self._events.setdefault(topic, set()).add(event)
        try:
            yield event
        finally:
            for topic in awaited:
                events = self._events[topic]
                events.discard(event)
                if not events:
                    del self._events[topic]

    async def _run(self) -> None:
        while True:
            connection = self._address.connection()
            try:
                async with asyncio.timeout(self._address.timeout):
                    await self._address.connect(connection)
                    await connection.send_command("SUBSCRIBE", self._channel)
                    await connection.read_response()
                self._tried.set()
                self._wake_all()  # messages may have been missed
                await self._listen(connection)
            except NoPermissionError as error:
                self._report(error)
                self._tried.set()
            except Exception:
                # The next request on the other connection reports the error.
                self._tried.set()
            finally:
                await disconnect(connection, at_once=True)
            await asyncio.sleep(_RECONNECT)

    def _report(self, error: NoPermissionError) -> None:
        """Log once that the user may not subscribe; the other connection works without it."""
        if not self._is_refused:
            self._is_refused = True
            log(
                logging.WARNING,
                "%s: can't subscribe to %s, so new jobs and results are noticed up to a second "
                "late: NOPERM: %s",
                *(self._address, self._channel, error),
            )

    async def _listen(self, connection: Any) -> None:
        while True:
            _, _, data = await connection.read_response()
            text: str = data.decode(errors="replace")  # any client may have published it
            if text[:1] == "!":
                log(logging.ERROR, "job %.128s can't be read and is set aside", text[1:])
            elif text[:1] == "?":
                log(
                    logging.ERROR,
                    "job %.128s is set aside, because its record is gone; the server has lost or "
                    "evicted keys, or another program deletes them",
                    text[1:],
                )
            for name in text[1:].split(" "):
                self._wake(text[:1] + name)

    def _wake(self, topic: str) -> None:
        for event in self._events.get(topic, ()):
            event.set()

    def _wake_all(self) -> None:
        for topic in self._events:
            self._wake(topic)
