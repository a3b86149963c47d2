"""Requests to a NATS server and their answers, many at a time.

A request is answered within seconds or never. None is kept to be sent later, so none is sent twice.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any, NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as ClientError

from .._errors import BrokerUnavailableError
from .connection import NatsConnection

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


_ACK = "$JS.ACK."
_NO_CONSUMER = ("503", "409")


class Requests:
    """Requests and their answers, and what is listened to."""

    def __init__(self, url: str, tls: ssl.SSLContext | None) -> None:
        self.connection = NatsConnection(url, tls, self._prepare, self._drop)
        self.shown = self.connection.shown
        self._inbox = ""
        self._numbers = count(1)
        self._waiting: dict[str, Answers] = {}
        self._fetching: defaultdict[str, list[Answers]] = defaultdict(list)
        self._listeners: dict[str, set[asyncio.Event]] = {}

    async def version(self) -> str:
        """Return what the server says of its version."""
        client: Any = await self.connection.connected()
        return str(client._server_info.get("version", ""))

    async def max_payload(self) -> int:
        return (await self.connection.connected()).max_payload

    async def call(self, requests: Sequence[Request]) -> list[Msg | None]:
        """Return the answers, in order; `None` where nobody is there who would answer.

        Raises `BrokerUnavailableError`, after which any may be done.
        """
        found: list[Msg | None] = []
        for window in windows(requests):
            found += await self._call(window)
        return found

    async def _call(self, requests: Sequence[Request]) -> list[Msg | None]:
        client = await self.connection.connected()
        waiting: dict[str, Answers] = {}
        try:
            for request in requests:
                await self._send(client, request, 1, waiting)
            await self._all(waiting.values())
        finally:
            for token in waiting:
                del self._waiting[token]
        return [answers.got[0] if answers.got else None for answers in waiting.values()]

    async def fetch(self, consumer: str, request: Request, most: int) -> list[Msg] | None:
        """Return up to so many messages, as a consumer has them; `None` if there is no consumer.

        `consumer` is the names of its stream and its own, joined by a dot.
        """
        client = await self.connection.connected()
        waiting: dict[str, Answers] = {}
        fetching = self._fetching[consumer]
        try:
            await self._send(client, request, most, waiting)
            fetching += waiting.values()
            await self._all(waiting.values())
        except BaseException:
            for answers in waiting.values():
                self.decline(answers.got)
            raise
        finally:
            for token in waiting:
                del self._waiting[token]
            fetching[:] = [each for each in fetching if each not in waiting.values()]
            if not fetching:
                self._fetching.pop(consumer, None)
        (answers,) = waiting.values()
        return None if answers.status in _NO_CONSUMER and not answers.got else answers.got

    async def _send(
        self, client: Client, request: Request, most: int, waiting: dict[str, Answers]
    ) -> None:
        token = str(next(self._numbers))
        waiting[token] = self._waiting[token] = Answers(most)
        try:
            # This waits for nothing, as nothing is kept for later.
            await client.publish(
                request.subject, request.payload, f"{self._inbox}.{token}", request.headers
            )
        except (ClientError, OSError) as error:
            raise self.connection.failed(error) from None

    async def _all(self, waiting: Iterable[Answers]) -> None:
        patience = self.connection.patience
        try:
            async with asyncio.timeout(patience):
                for each in waiting:
                    await each.done
        except TimeoutError:
            raise BrokerUnavailableError(
                f"{self.shown} did not answer within {patience:g} s"
            ) from None
        if any(each.lost for each in waiting):
            raise BrokerUnavailableError(f"{self.shown}: the connection was lost")

    def post(self, subject: str, payload: bytes = b"") -> None:
        """Send what nobody answers, if there is a connection; never waits, never raises."""
        client = self.connection.current
        if client is not None:
            with suppress(ClientError, OSError, StopIteration):
                client.publish(subject, payload).send(None)

    def decline(self, messages: Iterable[Msg], delay: float = 0.0) -> None:
        """Let others have what a consumer has handed out, after so many seconds."""
        answer = b'-NAK {"delay": %d}' % int(delay * 1e9) if delay else b"-NAK"
        for each in messages:
            self.post(each.reply, answer)

    @asynccontextmanager
    async def listening(self, *subjects: str) -> AsyncGenerator[asyncio.Event]:
        """Give an event that is set by every message to one of the subjects."""
        client: Any = await self.connection.connected()
        event = asyncio.Event()
        subscribed: list[Any] = []
        for subject in subjects:
            self._listeners.setdefault(subject, set()).add(event)
        try:
            for subject in subjects:
                subscribed.append(await client.subscribe(subject, cb=self._heard))
            yield event
        finally:
            for subject in subjects:
                listeners = self._listeners[subject]
                listeners.discard(event)
                if not listeners:
                    del self._listeners[subject]
            for each in subscribed:
                with suppress(ClientError, OSError):
                    await each.unsubscribe()

    async def _heard(self, message: Msg) -> None:
        for event in self._listeners.get(message.subject, ()):
            event.set()

    async def _prepare(self, client: Any) -> None:
        """Have a new client take answers."""
        self._inbox = client.new_inbox()
        await client.subscribe(f"{self._inbox}.*", cb=self._answered)

    async def _answered(self, message: Msg) -> None:
        if message.reply.startswith(_ACK):
            # What a consumer hands out has the subject under which it is kept.
            for answers in self._fetching.get(consumer_of(message.reply), ()):
                if not answers.done.done():
                    answers.add(message)
                    return
            self.decline([message])
        elif waiting := self._waiting.get(message.subject.rpartition(".")[2]):
            waiting.add(message)

    def _drop(self) -> None:
        """Let all know who wait that there will be no answer."""
        for answers in self._waiting.values():
            answers.lose()
        for events in self._listeners.values():
            for event in events:
                event.set()
