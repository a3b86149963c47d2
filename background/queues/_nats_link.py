"""The NATS broker's connection: many requests at a time, each answered within seconds or never.

Nothing is kept to be sent later, so nothing is sent twice. nats-py reconnects; once it has given up
for good, which it does when it is refused, the next call begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any, cast
from urllib.parse import urlsplit

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as ClientError

from .._log import log
from ._errors import BrokerUnavailable
from ._nats_answers import Answers, Request, consumer_of, windows

#: Seconds until a call fails that nobody answers, and one that finds no connection.
PATIENCE = 5.0
#: Seconds between signs of life; after two without an answer, a connection is taken to be dead.
PING_INTERVAL = 5.0
_RECONNECT_WAIT = 0.25  # seconds between two tries
_CLOSING = 1.0  # seconds that a server gets to take note of a goodbye
_ERRORS = 16  # that are remembered at most
_ACK = "$JS.ACK."
_NO_CONSUMER = ("503", "409")


class Link:
    """A connection, for one event loop of one process."""

    def __init__(self, url: str, tls: ssl.SSLContext | None) -> None:
        self._servers = [each.strip() for each in url.split(",")]
        self.shown = ",".join(_show(each) for each in self._servers)  # without secrets
        self._tls = tls
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._inbox = ""
        self._numbers = count(1)
        self._waiting: dict[str, Answers] = {}
        self._fetching: defaultdict[str, list[Answers]] = defaultdict(list)
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self._errors: list[Exception] = []
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def is_open(self) -> bool:
        return self._loop is not None

    async def open(self) -> None:
        """Connect. Raises `BrokerUnavailable`."""
        self._loop, self._process = asyncio.get_running_loop(), os.getpid()
        self._connecting, self._changed = asyncio.Lock(), asyncio.Event()
        try:
            await self._connected()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect; what was inherited by a fork is only let go."""
        client, self._client = self._client, None
        inherited = self._loop is not None and self._process != os.getpid()
        self._loop = None
        self._drop()
        if inherited:
            self._ending.clear()
            return
        if client is not None:
            self._end(client)
        if self._ending:
            await asyncio.wait(self._ending)

    def check(self) -> None:
        """Raise `BrokerUnavailable` unless it is open, and here."""
        if self._loop is None:
            raise BrokerUnavailable(f"{self.shown} is not open")
        if self._process != os.getpid():
            raise BrokerUnavailable(
                f"{self.shown} was opened by another process, before a fork; make a broker here"
            )
        if self._loop is not asyncio.get_running_loop():
            raise BrokerUnavailable(f"{self.shown} was opened in another event loop")

    async def version(self) -> str:
        """Return what the server says of its version."""
        return str((await self._connected())._server_info.get("version", ""))

    async def max_payload(self) -> int:
        return (await self._connected()).max_payload

    async def call(self, requests: Sequence[Request]) -> list[Msg]:
        """Return the answers, in order. Raises `BrokerUnavailable`, after which any may be done."""
        found: list[Msg] = []
        for window in windows(requests):
            found += await self._call(window)
        return found

    async def _call(self, requests: Sequence[Request]) -> list[Msg]:
        client = await self._connected()
        waiting: dict[str, Answers] = {}
        try:
            for request in requests:
                await self._send(client, request, 1, waiting)
            await self._all(waiting.values())
        finally:
            for token in waiting:
                del self._waiting[token]
        found: list[Msg] = []
        for answers in waiting.values():
            if answers.status is not None:
                raise self._refused(answers.status)
            found += answers.got
        return found

    async def fetch(self, consumer: str, request: Request, most: int) -> list[Msg] | None:
        """Return up to so many messages, as a consumer has them; `None` if there is no consumer.

        `consumer` is the names of its stream and its own, joined by a dot.
        """
        client = await self._connected()
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
            raise self._failed(error) from None

    async def _all(self, waiting: Iterable[Answers]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                for each in waiting:
                    await each.done
        except TimeoutError:
            raise BrokerUnavailable(f"{self.shown} did not answer within {PATIENCE:g} s") from None
        if any(each.lost for each in waiting):
            raise BrokerUnavailable(f"{self.shown}: the connection was lost")

    def post(self, subject: str, payload: bytes = b"") -> None:
        """Send what nobody answers, if there is a connection; never waits, never raises."""
        if self._client is not None and self._client.is_connected:
            with suppress(ClientError, OSError, StopIteration):
                self._client.publish(subject, payload).send(None)

    def decline(self, messages: Iterable[Msg], delay: float = 0.0) -> None:
        """Let others have what a consumer has handed out, after so many seconds."""
        answer = b'-NAK {"delay": %d}' % int(delay * 1e9) if delay else b"-NAK"
        for each in messages:
            self.post(each.reply, answer)

    @asynccontextmanager
    async def listening(self, *subjects: str) -> AsyncGenerator[asyncio.Event]:
        """Give an event that is set by every message to one of the subjects."""
        client: Any = await self._connected()
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

    async def _connected(self) -> Client:
        """Return a client that has a connection, waiting a moment for it."""
        self.check()
        if self._client is not None and self._client.is_connected:
            return self._client
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    self._changed.clear()
                    client = await self._living()
                    if client.is_connected:
                        return client
                    await self._changed.wait()
                    self.check()
        except TimeoutError:
            error = self._errors[-1] if self._errors else TimeoutError("no connection")
            raise self._failed(error) from None

    async def _living(self) -> Client:
        """Return a client that has a connection, or tries to have one again."""
        async with self._connecting:
            if self._client is None or self._client.is_closed:
                self._client = await self._connect()
            return self._client

    async def _connect(self) -> Client:
        client: Any = Client()
        self._errors.clear()

        async def failed(error: Exception) -> None:
            self._errors.append(error)
            del self._errors[:-_ERRORS]
            if client is not self._client and len(self._errors) >= len(self._servers):
                raise _Hopeless  # or it would go on trying

        async def lost() -> None:
            if client is self._client:
                self._disconnected()

        try:
            await client.connect(
                list(self._servers),
                name="background",
                tls=self._tls,
                error_cb=failed,
                disconnected_cb=lost,
                reconnected_cb=self._reconnected,
                closed_cb=lost,
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RECONNECT_WAIT,
                connect_timeout=PATIENCE,
                ping_interval=PING_INTERVAL,
                pending_size=0,
            )
            self._inbox = client.new_inbox()
            await client.subscribe(f"{self._inbox}.*", cb=self._answered)
        except (_Hopeless, ClientError, OSError) as error:
            self._end(client)
            known = self._errors[-1] if self._errors else error
            raise self._failed(known) from None
        except BaseException:
            self._end(client)
            raise
        return cast(Client, client)

    def _disconnected(self) -> None:
        self._drop()
        self._changed.set()
        log(logging.WARNING, "%s: the connection was lost", self.shown)

    async def _reconnected(self) -> None:
        self._errors.clear()
        self._changed.set()
        log(logging.INFO, "%s: connected again", self.shown)

    def _drop(self) -> None:
        """Let all know who wait that there will be no answer."""
        for answers in self._waiting.values():
            answers.lose()
        for events in self._listeners.values():
            for event in events:
                event.set()

    def _end(self, client: Client) -> None:
        """Close a client, whoever is cancelled meanwhile."""
        task = asyncio.get_running_loop().create_task(_close(client))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _failed(self, error: Exception) -> BrokerUnavailable:
        return BrokerUnavailable(f"{self.shown}: {str(error) or type(error).__name__}")

    def _refused(self, status: str) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"{self.shown} has no JetStream to keep jobs in: start it with JetStream, enabled for "
            f"this account too, or wait until it has started (status {status})"
        )


class _Hopeless(Exception):
    """There is no server left to try."""


async def _close(client: Client) -> None:
    with suppress(Exception):
        async with asyncio.timeout(_CLOSING):
            await client.close()


def _show(url: str) -> str:
    """Return a URL without what is secret. Raises `ValueError`, which does not show it either."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("nats", "tls") or not host:
        raise ValueError("url must be like nats://user:password@host:4222, or begin with tls://")
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port or 4222}"
