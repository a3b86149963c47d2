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
from support.cancellation.injection import How, InjectedRun, Point
from support.cancellation.stepping import When
from support.processes.process import PROGRAMS, running

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.redis import RedisBroker

SCRIPT = PROGRAMS / "redis_fork.py"


async def test_open_and_close_twice(server: Server) -> None:
    """A broker can be opened and closed repeatedly, also by concurrent calls."""
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


async def test_concurrent_calls(broker: RedisBroker) -> None:
    """Concurrent calls share the connection and get their own answers."""
    got: dict[str, Any] = {}
    await broker.enqueue(messages(300))

    async def get(id: str) -> None:
        got[id] = await broker.get(id)

    async with anyio.create_task_group() as group:
        for sent in messages(300):
            group.start_soon(get, sent.id)
    assert {id: job.message.id for id, job in got.items()} == {id: id for id in got}
    assert len(got) == 300


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("number", range(13))
async def test_cancel_call(broker: RedisBroker, how: How, number: int) -> None:
    """A call that is cancelled at any suspension takes full effect or none.

    The next calls get their own answers.
    """
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
            run = InjectedRun(Point(suspension, when, how))
            outcome = await run.drive(calls[number]())
            assert outcome.cancelled or outcome.error is None
            assert await broker.count() in (1, 4)
            assert await broker.requeue("?") is False
            job = await broker.get("own")
            assert job is not None
            assert job.message.id == "own"
            if run.injected_at is None:
                break
            points += 1
        else:
            raise AssertionError("the call was suspended 49 times")
    assert points
    assert await broker.enqueue([message("last", queue="t")]) == [True]
    assert await claimed(broker, "t") == ["last"]


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("action", ["open", "close"])
async def test_cancel_open_and_close(server: Server, how: How, action: str) -> None:
    """A cancelled open or close leaves no task, and the broker can be opened again."""
    tasks = asyncio.all_tasks()
    for when in When:
        for suspension in range(1, 50):
            broker = make_redis(server.name, Path())
            if action == "close":
                await broker.open()
                await broker.wait_for_work(["q"], 0.001)
            run = InjectedRun(Point(suspension, when, how))
            await run.drive(getattr(broker, action)())
            await broker.close()
            await anyio.wait_all_tasks_blocked()
            assert asyncio.all_tasks() == tasks
            await broker.open()
            assert await broker.count() == 0
            await broker.close()
            if run.injected_at is None:
                break
        assert 1 < suspension < 49
    gc.collect()


async def test_cancel_sent_call(broker: RedisBroker, server: Server) -> None:
    """A call that is cancelled after it was sent takes effect.

    Other calls get their own answers.
    """
    connection: Any = broker._session.connection
    states: list[JobState | None] = []
    scope = anyio.CancelScope()
    await broker.enqueue([message("first")])  # the server then has the script

    async def enqueue() -> None:
        with scope:
            await broker.enqueue([message()])

    async def read_state() -> None:
        states.append(await state_of(broker))

    with Redis.from_url(server.url) as client:
        async with anyio.create_task_group() as group:
            client.client_pause(10_000, all=False)
            group.start_soon(enqueue)
            group.start_soon(read_state)
            await until(lambda: len(connection._sent) == 2)
            scope.cancel()
            client.client_unpause()
    assert scope.cancelled_caught
    assert states == [JobState.READY]


async def test_cancel_before_sending(broker: RedisBroker) -> None:
    """A call that is cancelled before it is sent has no effect."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await broker.enqueue([message()])
    assert await broker.count() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_fork(server: Server, anyio_backend: object) -> None:
    """A forked child can't use its parent's connection, but can open the broker again."""
    with running(SCRIPT, server.url) as process:
        assert process.wait() == 0
    refused, *lines = process.lines
    assert re.fullmatch(
        r"refused: redis://.* was opened by another process, before a fork.*", refused
    )
    assert lines == ["child counts 0", "parent counts 0"]


@pytest.mark.parametrize("closes", [True, False])
async def test_calls_after_fork(broker: RedisBroker, closes: bool) -> None:
    """After a fork, calls fail until the broker is opened again.

    The old connection is not closed, because its sockets belong to the parent.
    """
    connection: Any = broker._session.connection
    connection._process = 0
    with pytest.raises(BrokerUnavailableError, match="before a fork"):
        await broker.count()
    if closes:
        await broker.close()
    await broker.open()
    assert await broker.count() == 0
    assert broker._session.connection is not connection
    connection._process = os.getpid()
    await connection.close()
    with pytest.raises(BrokerUnavailableError, match="not open"):
        await connection.call(b"")
