"""Requests to a NATS server, fetches from pull consumers, and notifications.

Many requests can be in flight at once. A request is answered within a few seconds, or it fails.
While nothing is answered, it is sent again each second: the leader of its stream may have died
before it answered. So a request may be executed twice, and a write by compare-and-set be refused
because it was executed before. It is never buffered until the next connection, so the server can't
receive it after it has failed.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any, NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as ClientError

from .._errors import BrokerUnavailableError
from .address import NatsAddress
from .connection import NatsConnection

_WINDOW = 256  # requests in flight
_WINDOW_BYTES = 4 * 1024 * 1024
_REPEAT = 1.0  # seconds without any answer after which requests are sent again
#: The most bytes of the answers in flight. A server disconnects a client if more than its setting
#: `max_pending`, by default 64 MiB, waits to be sent.
_WINDOW_ANSWERS = 32 * 1024 * 1024


class Request(NamedTuple):
    """A message to be published, whose answer is one message."""

    subject: str
    payload: bytes = b""
    headers: dict[str, str] | None = None


class Answers:
    """The answers to one request: messages, and a status if there are fewer than wanted.

    Args:
        request: The request.
        most: The number of messages after which the request is answered.

    Attributes:
        request: The request.
        got: The messages.
        status: The status, such as `"404"` for a fetch that finds no message.
        lost: Whether the connection was lost before the request was answered.
        refusal: The server's text if the user lacks the right to send the request, or empty.
        done: Set when no more answers are expected.
    """

    def __init__(self, request: Request, most: int) -> None:
        self.request = request
        self.got: list[Msg] = []
        self.status: str | None = None
        self.lost = False
        self.refusal = ""
        self._most = most
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def add(self, message: Msg) -> None:
        """Add a message, or take its status if it is one."""
        status = None if message.headers is None or message.data else message.headers.get("Status")
        if status is not None:
            self.status = status
        else:
            self.got.append(message)
        if status is not None or len(self.got) >= self._most:
            self.end()

    def lose(self) -> None:
        """Expect no more answers, because the connection was lost."""
        self.lost = self.lost or not self.done.done()
        self.end()

    def refuse(self, violation: str) -> None:
        """Expect no more answers, because the user lacks a right."""
        self.refusal = violation
        self.end()

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


def consumer_of(reply: str) -> str:
    """Return the stream and the consumer of a message, from the subject of its acknowledgement.

    The subject is `$JS.ACK.<stream>.<consumer>` and five more tokens. Servers with the format of
    ADR-15 put a domain and an account hash before the stream.
    """
    tokens = reply.split(".")
    return ".".join(tokens[2:4] if len(tokens) == 9 else tokens[4:6])


def windows(requests: Sequence[Request], largest_answer: int) -> Iterator[Sequence[Request]]:
    """Split requests into parts that may be in flight at once."""
    most = max(1, min(_WINDOW, _WINDOW_ANSWERS // max(1, largest_answer)))
    start = size = 0
    for index, request in enumerate(requests):
        if index > start and (index - start == most or size > _WINDOW_BYTES):
            yield requests[start:index]
            start, size = index, 0
        size += len(request.payload)
    if requests:
        yield requests[start:]


class Repetition:
    """Sends requests again for as long as none of them is answered.

    Args:
        send: Sends the request again whose reply subject ends with this token.
        waiting: The answers to the requests, by token.
    """

    def __init__(self, send: Callable[[str], None], waiting: Mapping[str, Answers]) -> None:
        self._send = send
        self._waiting = waiting
        self._received = 0
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_REPEAT, self._repeat)

    def _repeat(self) -> None:
        received = sum(len(answers.got) for answers in self._waiting.values())
        if received == self._received:
            for token, answers in self._waiting.items():
                if not answers.done.done():
                    self._send(token)
        self._received = received
        self._timer = self._loop.call_later(_REPEAT, self._repeat)

    def stop(self) -> None:
        self._timer.cancel()


_ACK = "$JS.ACK."
_NO_CONSUMER = ("503", "409")


class Requests:
    """Sends requests over one connection, and dispatches what the server sends.

    Args:
        address: The servers.
        purpose: What the connection is for if it is not the broker's main one.

    Attributes:
        repetitions: The number of requests that were sent again.
    """

    def __init__(self, address: NatsAddress, purpose: str = "") -> None:
        self.repetitions = 0
        self.connection = NatsConnection(
            address, self._prepare, self._on_lost, self._on_refused, purpose
        )
        self.shown = self.connection.shown
        self._inbox = ""
        self._inbox_refusal = ""  # the server's text, if no answer can be received
        self._numbers = count(1)
        self._waiting: dict[str, Answers] = {}  # by the last token of the reply subject
        self._fetching: defaultdict[str, list[Answers]] = defaultdict(list)  # by consumer
        self._listeners: dict[str, set[asyncio.Event]] = {}  # by subject

    async def version(self) -> str:
        """Return the server's version."""
        client: Any = await self.connection.connected()
        return str(client._server_info.get("version", ""))

    async def max_payload(self) -> int:
        """Return the most bytes that the server accepts in a message."""
        return (await self.connection.connected()).max_payload

    async def call(self, requests: Sequence[Request], largest_answer: int = 0) -> list[Msg | None]:
        """Send requests and return their answers, in order.

        Args:
            requests: The requests.
            largest_answer: The most bytes that an answer may have; 0 if all answers are small.

        Returns:
            For each request its answer, or `None` if the server reports that there is no responder.

        Raises:
            BrokerUnavailableError: A request was not answered. Any of them may have been executed.
        """
        found: list[Msg | None] = []
        for window in windows(requests, largest_answer):
            found += await self._call(window)
        return found

    async def _call(self, requests: Sequence[Request]) -> list[Msg | None]:
        client = await self.connection.connected()
        waiting: dict[str, Answers] = {}
        try:
            for request in requests:
                await self._send(client, request, 1, waiting)
            await self._wait_for_all(client, waiting)
        finally:
            for token in waiting:
                del self._waiting[token]
        return [answers.got[0] if answers.got else None for answers in waiting.values()]

    async def fetch(self, consumer: str, request: Request, most: int) -> list[Msg] | None:
        """Send a fetch request to a pull consumer, and return the messages.

        Args:
            consumer: The names of the stream and of the consumer, joined by a dot.
            request: The request.
            most: The number of messages that it asks for.

        Returns:
            The messages, or `None` if there is no such consumer.

        Raises:
            BrokerUnavailableError: The request was not answered.
        """
        client = await self.connection.connected()
        waiting: dict[str, Answers] = {}
        fetching = self._fetching[consumer]
        try:
            await self._send(client, request, most, waiting)
            fetching += waiting.values()
            await self._wait_for_all(client, waiting)
        except BaseException:
            for answers in waiting.values():
                self.decline(answers.got)
            raise
        finally:
            for token in waiting:
                del self._waiting[token]
            fetching[:] = [answers for answers in fetching if answers not in waiting.values()]
            if not fetching:
                self._fetching.pop(consumer, None)
        (answers,) = waiting.values()
        return None if answers.status in _NO_CONSUMER and not answers.got else answers.got

    async def _send(
        self, client: Client, request: Request, most: int, waiting: dict[str, Answers]
    ) -> None:
        token = str(next(self._numbers))
        waiting[token] = self._waiting[token] = answers = Answers(request, most)
        if self._inbox_refusal:
            answers.refuse(self._inbox_refusal)
        try:
            # Never suspends. With `pending_size=0`, nats-py raises an error while it has no
            # connection, instead of buffering the message.
            await client.publish(
                request.subject, request.payload, f"{self._inbox}.{token}", request.headers
            )
        except (ClientError, OSError) as error:
            raise self.connection.unavailable(error) from None

    async def _wait_for_all(self, client: Client, waiting: Mapping[str, Answers]) -> None:
        def repeat(token: str) -> None:
            self.repetitions += 1
            subject, payload, headers = waiting[token].request
            self._publish(client, subject, payload, f"{self._inbox}.{token}", headers)

        patience = self.connection.patience
        repetition = Repetition(repeat, waiting)
        try:
            async with asyncio.timeout(patience):
                for answers in waiting.values():
                    await answers.done
                    if answers.refusal:
                        raise BrokerUnavailableError(f"{self.shown}: {answers.refusal}")
        except TimeoutError:
            raise BrokerUnavailableError(
                f"{self.shown} did not answer within {patience:g} s{self.because()}"
            ) from None
        finally:
            repetition.stop()
        if any(answers.lost for answers in waiting.values()):
            raise BrokerUnavailableError(f"{self.shown}: the connection was lost")

    def because(self) -> str:
        """Return the latest missing right as a part of a message about a missing answer."""
        violation = self.connection.violation
        return f"; the user lacks a right: {violation}" if violation else ""

    def post(self, subject: str, payload: bytes = b"") -> None:
        """Publish a message that has no answer, or drop it if there is no connection.

        Never suspends, and raises no error.
        """
        client = self.connection.current
        if client is not None:
            self._publish(client, subject, payload)

    def _publish(
        self,
        client: Client,
        subject: str,
        payload: bytes,
        reply: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        with suppress(ClientError, OSError, StopIteration):
            # Runs to its end, as in `_send`.
            client.publish(subject, payload, reply, headers).send(None)

    def decline(self, messages: Iterable[Msg], delay: float = 0.0) -> None:
        """Let a consumer deliver messages again, after a delay in seconds."""
        answer = b'-NAK {"delay": %d}' % int(delay * 1e9) if delay else b"-NAK"
        for message in messages:
            self.post(message.reply, answer)

    @asynccontextmanager
    async def listening(self, *subjects: str) -> AsyncGenerator[asyncio.Event]:
        """Yield an event that is set by a message on a subject, and by the loss of the connection.

        Args:
            *subjects: The subjects to subscribe to.
        """
        client: Any = await self.connection.connected()
        event = asyncio.Event()
        subscriptions: list[Any] = []
        for subject in subjects:
            self._listeners.setdefault(subject, set()).add(event)
        try:
            for subject in subjects:
                subscriptions.append(await client.subscribe(subject, cb=self._on_notification))
            yield event
        finally:
            for subject in subjects:
                listeners = self._listeners[subject]
                listeners.discard(event)
                if not listeners:
                    del self._listeners[subject]
            for subscription in subscriptions:
                with suppress(ClientError, OSError):
                    await subscription.unsubscribe()

    async def _on_notification(self, message: Msg) -> None:
        for event in self._listeners.get(message.subject, ()):
            event.set()

    async def _prepare(self, client: Any) -> None:
        """Subscribe a new client to the subjects of its answers."""
        self._inbox, self._inbox_refusal = client.new_inbox(), ""
        await client.subscribe(f"{self._inbox}.*", cb=self._on_answer)

    async def _on_answer(self, message: Msg) -> None:
        if message.reply.startswith(_ACK):
            # A consumer's message arrives on the subject that it is stored on, which does not show
            # the request. Its reply subject shows the consumer.
            for answers in self._fetching.get(consumer_of(message.reply), ()):
                if not answers.done.done():
                    answers.add(message)
                    return
            self.decline([message])
        elif waiting := self._waiting.get(message.subject.rpartition(".")[2]):
            waiting.add(message)

    def _on_refused(self, violation: str) -> None:
        """Fail the requests to which the server will not answer.

        Its text has their subject in quotes, and nats-py has converted it to lower case.
        """
        if f'"{self._inbox}.*"'.lower() in violation:
            self._inbox_refusal = violation
        for answers in self._waiting.values():
            if self._inbox_refusal or f'"{answers.request.subject}"'.lower() in violation:
                answers.refuse(violation)

    def _on_lost(self) -> None:
        """Fail all requests, and wake all listeners."""
        self._inbox_refusal = ""
        for answers in self._waiting.values():
            answers.lose()
        for events in self._listeners.values():
            for event in events:
                event.set()
