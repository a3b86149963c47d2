"""The pipelined connection to Redis."""

from __future__ import annotations

import asyncio
import gc
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis import Redis
from support.brokers.jobs import claim_one, claimed, message, settlement, state_of
from support.brokers.kinds import make_redis
from support.brokers.redis import (
    messages,
    until,
)
from support.brokers.redis_servers import Server
from support.cancellation.injection import How, Point, World
from support.cancellation.stepping import When
from support.processes.process import PROGRAMS, running

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.redis import RedisBroker

SCRIPT = PROGRAMS / "redis_fork.py"


async def test_opening_and_closing_again(server: Server) -> None:
    broker = make_redis(server.name, Path())
    await broker.close()
    tasks = asyncio.all_tasks()
    for _ in range(2):
        async with anyio.create_task_group() as group:
            group.start_soon(broker.open)
            group.start_soon(broker.open)
        await broker.wait_for_work(["q"], 0.01)
        assert len(asyncio.all_tasks() - tasks) == 2
        async with anyio.create_task_group() as group:
            group.start_soon(broker.close)
            group.start_soon(broker.close)
        assert asyncio.all_tasks() == tasks
        for call in (broker.count, partial(broker.wait, "one", 1), partial(broker.get, "one")):
            with pytest.raises(BrokerUnavailableError, match="not open"):
                await call()


async def test_many_calls_at_once(broker: RedisBroker) -> None:
    """Share the connection, and each gets its own answer."""
    got: dict[str, Any] = {}
    await broker.enqueue(messages(300))

    async def get(id: str) -> None:
        got[id] = await broker.get(id)

    async with anyio.create_task_group() as group:
        for each in messages(300):
            group.start_soon(get, each.id)
    assert {id: job.message.id for id, job in got.items()} == {id: id for id in got}
    assert len(got) == 300


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("number", range(13))
async def test_cancelled_at_any_point_a_call_is_done_or_not(
    broker: RedisBroker, how: How, number: int
) -> None:
    """At each suspension in turn; the next calls get their own answers."""
    await broker.enqueue([message("own", queue="own")])
    claim = await claim_one(broker, "own")
    calls: list[Callable[[], Any]] = [
        lambda: broker.enqueue(messages(3)),
        lambda: broker.claim(["q"], 3, lease=30),
        lambda: broker.wait_for_work(["r", "s"], 0.02),
        lambda: broker.renew([claim], lease=30),
        lambda: broker.settle([settlement(claim, JobState.READY)]),
        lambda: broker.save("own", claim.token, b"1"),
        lambda: broker.cancel("0001"),
        lambda: broker.requeue("0001"),
        lambda: broker.get("0001"),
        lambda: broker.wait("own", 0.02),
        lambda: broker.count(),
        lambda: broker.purge(),
        lambda: broker.maintain(),
    ]
    points = 0
    for when in When:
        for suspension in range(1, 50):
            world = World(Point(suspension, when, how))
            outcome = await world.drive(calls[number]())
            assert outcome.cancelled or outcome.error is None
            assert await broker.count() in (1, 4)
            assert await broker.requeue("?") is False
            job = await broker.get("own")
            assert job is not None
            assert job.message.id == "own"
            if world.injected_at is None:
                break
            points += 1
        else:
            raise AssertionError("there is no end to the suspensions")
    assert points
    assert await broker.enqueue([message("last", queue="t")]) == [True]
    assert await claimed(broker, "t") == ["last"]


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("action", ["open", "close"])
async def test_cancelled_while_opening_or_closing(server: Server, how: How, action: str) -> None:
    """Nothing is left, and the broker can be opened again."""
    tasks = asyncio.all_tasks()
    for when in When:
        for suspension in range(1, 50):
            broker = make_redis(server.name, Path())
            if action == "close":
                await broker.open()
                await broker.wait_for_work(["q"], 0.001)
            world = World(Point(suspension, when, how))
            await world.drive(getattr(broker, action)())
            await broker.close()
            await anyio.wait_all_tasks_blocked()
            assert asyncio.all_tasks() == tasks
            await broker.open()
            assert await broker.count() == 0
            await broker.close()
            if world.injected_at is None:
                break
        assert 1 < suspension < 49
    gc.collect()


async def test_cancelled_while_the_server_is_busy(broker: RedisBroker, server: Server) -> None:
    """The call is done, and others get their own answers."""
    link: Any = broker._session.connection
    states: list[JobState | None] = []
    scope = anyio.CancelScope()

    async def enqueue() -> None:
        with scope:
            await broker.enqueue([message()])

    async def look() -> None:
        states.append(await state_of(broker))

    async with anyio.create_task_group() as group:
        with Redis.from_url(server.url) as client:
            client.client_pause(50)
        group.start_soon(enqueue)
        group.start_soon(look)
        await until(lambda: len(link._sent) == 2)
        scope.cancel()
    assert scope.cancelled_caught
    assert states == [JobState.READY]


async def test_withdrawn_before_it_was_sent_a_call_is_not_done(broker: RedisBroker) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await broker.enqueue([message()])
    assert await broker.count() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no forking")
def test_after_a_fork_the_child_is_refused(server: Server, anyio_backend: object) -> None:
    with running(SCRIPT, server.url) as process:
        assert process.wait() == 0
    refused, *lines = process.lines
    assert re.fullmatch(
        r"refused: redis://.* was opened by another process, before a fork.*", refused
    )
    assert lines == ["child counts 0", "parent counts 0"]


@pytest.mark.parametrize("closes", [True, False])
async def test_what_another_process_has_opened_is_refused(
    broker: RedisBroker, closes: bool
) -> None:
    """It is not even closed, as the sockets are the other's; opened again, it is one's own."""
    link: Any = broker._session.connection
    link._process = 0
    with pytest.raises(BrokerUnavailableError, match="before a fork"):
        await broker.count()
    if closes:
        await broker.close()
    await broker.open()
    assert await broker.count() == 0
    assert broker._session.connection is not link
    link._process = os.getpid()
    await link.close()
    with pytest.raises(BrokerUnavailableError, match="not open"):
        await link.call(b"")
