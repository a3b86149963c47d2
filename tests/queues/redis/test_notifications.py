"""Notifications of work and of ended jobs through Redis."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest
from redis import Redis
from support.brokers.jobs import claimed, message
from support.brokers.redis import (
    finish,
    messages,
    open_broker,
    until,
    waiting,
    waits,
)
from support.brokers.redis_servers import Server
from support.time import SOON

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.redis import RedisBroker
from background.queues.redis import broker as module


async def test_work_from_another_broker_is_noticed(
    broker: RedisBroker, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and so is the end of a job."""
    monkeypatch.setattr(module, "_POLL", 1000.0)
    async with open_broker(server.url, prefix=broker.prefix) as other:
        await broker.enqueue([message("first", queue="r")])
        with anyio.fail_after(SOON):
            async with anyio.create_task_group() as group:
                group.start_soon(broker.wait_for_work, ["q", "s"], 1000)
                await waits(server, broker, "q")
                await other.enqueue([message()])
            async with anyio.create_task_group() as group:
                group.start_soon(broker.wait_for_work, ["t"], 1000)
                await waits(server, broker, "t")
                await other.enqueue([message("soon", queue="t", delay=0.05)])
            assert await claimed(broker, "t") == ["soon"]
            async with anyio.create_task_group() as group:
                group.start_soon(broker.wait, "first", 1000)
                await until(lambda: waiting(broker))
                await broker.get("first")  # which comes after the wait's own call
                await other.cancel("first")


async def test_each_job_goes_to_one_broker(broker: RedisBroker, server: Server) -> None:
    seen: list[str] = []

    async def work(each: RedisBroker) -> None:
        while claims := await each.claim(["q"], 3, lease=30):
            seen.extend(claim.message.id for claim in claims)
            assert all(await finish(each, claims))

    async with open_broker(server.url, prefix=broker.prefix) as other:
        await broker.enqueue(messages(300))
        async with anyio.create_task_group() as group:
            for each in (broker, other, broker, other):
                group.start_soon(work, each)
    assert sorted(seen) == [each.id for each in messages(300)]


async def test_who_waits_for_the_same_job(broker: RedisBroker) -> None:
    """One leaves early, the others hear of the end."""
    await broker.enqueue([message()])
    states: list[JobState] = []
    left = anyio.Event()

    async def wait(timeout: float) -> None:
        job = await broker.wait("one", timeout)
        assert job is not None
        states.append(job.state)
        left.set()

    async with anyio.create_task_group() as group:
        group.start_soon(wait, 0.05)
        group.start_soon(wait, 1000)
        group.start_soon(wait, 1000)
        await left.wait()
        await broker.cancel("one")
    assert states == [JobState.READY, JobState.CANCELLED, JobState.CANCELLED]
    assert waiting(broker) == 0


async def test_without_news_who_waits_looks(
    broker: RedisBroker, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the connection that listens is lost, which is made anew."""
    monkeypatch.setattr(module, "_POLL", 0.02)
    monkeypatch.setattr("background.queues.redis.pubsub._RECONNECT", 0.01)
    await broker.wait_for_work(["q"], 0.01)
    with Redis.from_url(server.url) as client, anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], 1000)
            await waits(server, broker, "q")
            client.delete(f"{{{broker.prefix}}}:idle")  # so that nobody is told
            await broker.enqueue([message()])
        client.client_kill_filter(_type="pubsub")
        monkeypatch.setattr(module, "_POLL", 1000.0)
        await claimed(broker)
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], 1000)
            await until(lambda: client.pubsub_numsub(broker._channel)[0][1])
            await broker.enqueue([message("two")])


async def test_news_that_were_missed(
    broker: RedisBroker, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the connection that listens is back, all look that wait."""
    monkeypatch.setattr(module, "_POLL", 1000.0)
    monkeypatch.setattr("background.queues.redis.pubsub._RECONNECT", 0.1)
    with Redis.from_url(server.url) as client, anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], 1000)
            await waits(server, broker, "q")
            client.client_kill_filter(_type="pubsub")
            await broker.enqueue([message()])


async def test_closed_while_somebody_waits(broker: RedisBroker) -> None:
    await broker.enqueue([message("one", queue="r")])
    refused: list[str] = []

    async def wait(call: Any) -> None:
        with pytest.raises(BrokerUnavailableError, match="not open"):
            await call()
        refused.append("")

    async with anyio.create_task_group() as group:
        group.start_soon(wait, partial(broker.wait_for_work, ["q"], 1000))
        group.start_soon(wait, partial(broker.wait, "one", 1000))
        await until(lambda: waiting(broker) == 2)
        await broker.close()
    assert len(refused) == 2
