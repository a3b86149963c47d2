"""Helpers for the tests of the NATS broker."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Any

import anyio

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.abc import Claim, Message, Settlement
from background.queues.nats import NatsBroker
from background.testing import VirtualTimeLoop
from support.brokers.nats_servers import (
    NatsServer,
)
from support.time import SOON

Test = Callable[..., Coroutine[Any, Any, None]]


def virtual(test: Test) -> Callable[..., None]:
    """Run a test in virtual time."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        options = {"loop_factory": VirtualTimeLoop}
        anyio.run(functools.partial(test, *args, **kwargs), backend_options=options)

    return run


def message(id: str = "one", **options: Any) -> Message:
    return Message(
        **{
            "id": id,
            "handler": "h",
            "queue": "q",
            "body": b"{}",
            "retention": 60,
            "dead_retention": 60,
            **options,
        }
    )


def messages(count: int, **options: Any) -> list[Message]:
    return [message(f"{number:04}", **options) for number in range(count)]


async def finish(broker: NatsBroker, claims: list[Claim], **options: Any) -> list[bool]:
    return await broker.settle(
        [
            Settlement(id=claim.message.id, token=claim.token, state=JobState.SUCCEEDED, **options)
            for claim in claims
        ]
    )


async def stored(broker: Any) -> dict[str, int]:
    """Return the number of messages in each stream."""
    layout = broker._layout
    names = (layout.jobs, layout.ready, layout.timers)
    infos = [await broker._api._ask(f"STREAM.INFO.{name}") for name in names]
    return {
        name.removeprefix(broker._layout.prefix + "-"): info["state"]["messages"]
        for name, info in zip(("jobs", "ready", "timers"), infos, strict=True)
    }


EMPTY = {"jobs": 0, "ready": 0, "timers": 0}


def in_real_time(test: Test) -> Callable[..., None]:
    """Run a test on asyncio in real time, as connections fail in real time."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        anyio.run(_limited, functools.partial(test, *args, **kwargs))

    return run


async def _limited(test: Test) -> None:
    async with asyncio.timeout(4 * SOON):
        await test()


@asynccontextmanager
async def opened(server: NatsServer, **options: Any) -> AsyncIterator[Any]:
    """Open a broker in real time."""
    options.setdefault("prefix", f"test-{token_hex(8)}")
    broker: Any = NatsBroker(options.pop("url", server.url), **options)
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


async def eventually(call: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat a call until the broker is available, and return its result."""
    async with asyncio.timeout(3 * SOON):
        while True:
            try:
                return await call()
            except BrokerUnavailableError:
                await asyncio.sleep(0.01)


async def state_of(broker: NatsBroker, id: str = "one") -> JobState | None:
    job = await broker.get(id)
    return None if job is None else job.state


class Crash:
    """Makes a broker fail like a crashed process, before the n-th request is sent.

    Args:
        broker: The broker.
        *more: Other parts whose `requests` fail with it, such as its inspection.
    """

    def __init__(self, broker: Any, *more: Any) -> None:
        self.broker = broker
        self.left: float = float("inf")
        self.sent = 0
        for link in (broker._requests, *(part.requests for part in more)):
            link._call = functools.partial(self.call, link._call)
            link.post = functools.partial(self.post, link.post)
            link.fetch = functools.partial(self.fetch, link.fetch)

    def _die(self) -> None:
        raise BrokerUnavailableError("the process has died")

    async def call(self, call: Any, requests: Any) -> Any:
        if self.left < len(requests):
            if self.left > 0:
                await call(requests[: int(self.left)])
            self.left = 0
            self._die()
        self.left -= len(requests)
        self.sent += len(requests)
        return await call(requests)

    async def fetch(self, fetch: Any, *args: Any) -> Any:
        if self.left < 1:
            self._die()
        self.left -= 1
        self.sent += 1
        return await fetch(*args)

    def post(self, post: Any, *args: Any) -> None:
        if self.left >= 1:
            post(*args)


async def finish_dependency(broker: NatsBroker) -> list[Claim]:
    await broker.enqueue([message("0000", queue="r", retention=30)])
    await finish(broker, await broker.claim(["r"], 1, lease=30))
    return []


async def returned(value: Any) -> Any:
    return value
