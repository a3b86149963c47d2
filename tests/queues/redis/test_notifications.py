"""Notifications of work and of ended jobs through Redis."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest
from redis import Redis
from support.brokers.jobs import claimed, message
from support.brokers.redis import (
    count_waiters,
    finish,
    messages,
    open_broker,
    until,
    wait_for_waiter,
)
from support.brokers.redis_servers import Server
from support.time import SOON

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.redis import RedisBroker
from background.queues.redis import broker as module


async def test_changes_by_another_broker(
    broker: RedisBroker, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes by another broker wake waiters for work and for the end of a job at once."""
    monkeypatch.setattr(module, "_POLL", 1000.0)
    async with open_broker(server.url, prefix=broker.prefix) as second:
        await broker.enqueue([message("first", queue="r")])
        with anyio.fail_after(SOON):
            async with anyio.create_task_group() as group:
                group.start_soon(broker.wait_for_work, ["q", "s"], 1000)
                await wait_for_waiter(server, broker, "q")
                await second.enqueue([message()])
            async with anyio.create_task_group() as group:
                group.start_soon(broker.wait_for_work, ["t"], 1000)
                await wait_for_waiter(server, broker, "t")
                await second.enqueue([message("soon", queue="t", delay=0.05)])
            assert await claimed(broker, "t") == ["soon"]
            async with anyio.create_task_group() as group:
                group.start_soon(broker.wait, "first", 1000)
                await until(lambda: count_waiters(broker))
                await broker.get("first")  # answered after the wait's own call
                await second.cancel("first")


async def test_unreadable_message(
    broker: RedisBroker, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is not a notification does not end the subscription."""
    monkeypatch.setattr(module, "_POLL", 1000.0)
    monkeypatch.setattr("background.queues.redis.pubsub._RECONNECT", 1000.0)
    with anyio.fail_after(SOON), Redis.from_url(server.url) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], 1000)
            await wait_for_waiter(server, broker, "q")
            for garbage in (b"", b"\xff", b"+", b"= ", b"\x00" * 1000):
                client.publish(f"{{{broker.prefix}}}:events:0", garbage)
            await broker.enqueue([message()])


async def test_concurrent_brokers(broker: RedisBroker, server: Server) -> None:
    """Every job is claimed by exactly one of several brokers."""
    seen: list[str] = []

    async def work(worker: RedisBroker) -> None:
        while claims := await worker.claim(["q"], 3, lease=30):
            seen.extend(claim.message.id for claim in claims)
            assert all(await finish(worker, claims))

    async with open_broker(server.url, prefix=broker.prefix) as second:
        await broker.enqueue(messages(300))
        async with anyio.create_task_group() as group:
            for worker in (broker, second, broker, second):
                group.start_soon(work, worker)
    assert sorted(seen) == [sent.id for sent in messages(300)]


async def test_waiters_for_same_job(broker: RedisBroker) -> None:
    """The timeout of one waiter for a job does not affect the other waiters."""
    await broker.enqueue([message()])
    states: list[JobState] = []
    returned = anyio.Event()

    async def wait(timeout: float) -> None:
        job = await broker.wait("one", timeout)
        assert job is not None
        states.append(job.state)
        returned.set()

    async with anyio.create_task_group() as group:
        group.start_soon(wait, 0.05)
        group.start_soon(wait, 1000)
        group.start_soon(wait, 1000)
        await returned.wait()
        await broker.cancel("one")
    assert states == [JobState.READY, JobState.CANCELLED, JobState.CANCELLED]
    assert count_waiters(broker) == 0


async def test_polling_without_notification(
    broker: RedisBroker, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiters poll when a notification is missing, and the listener reconnects."""
    monkeypatch.setattr(module, "_POLL", 0.02)
    monkeypatch.setattr("background.queues.redis.pubsub._RECONNECT", 0.01)
    await broker.wait_for_work(["q"], 0.01)
    with Redis.from_url(server.url) as client, anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], 1000)
            await wait_for_waiter(server, broker, "q")
            client.delete(f"{{{broker.prefix}}}:idle")  # suppresses the notification
            await broker.enqueue([message()])
        client.client_kill_filter(_type="pubsub")
        monkeypatch.setattr(module, "_POLL", 1000.0)
        await claimed(broker)
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], 1000)
            await until(lambda: client.pubsub_numsub(broker._channel)[0][1])
            await broker.enqueue([message("two")])


async def test_missed_notification(
    broker: RedisBroker, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiters query the server again as soon as the listener has reconnected."""
    monkeypatch.setattr(module, "_POLL", 1000.0)
    monkeypatch.setattr("background.queues.redis.pubsub._RECONNECT", 0.1)
    with Redis.from_url(server.url) as client, anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], 1000)
            await wait_for_waiter(server, broker, "q")
            client.client_kill_filter(_type="pubsub")
            await broker.enqueue([message()])


async def test_close_while_waiting(broker: RedisBroker) -> None:
    """Waiting for work or a job fails when the broker is closed."""
    await broker.enqueue([message("one", queue="r")])
    refused: list[str] = []

    async def wait(call: Any) -> None:
        with pytest.raises(BrokerUnavailableError, match="not open"):
            await call()
        refused.append("")

    async with anyio.create_task_group() as group:
        group.start_soon(wait, partial(broker.wait_for_work, ["q"], 1000))
        group.start_soon(wait, partial(broker.wait, "one", 1000))
        await until(lambda: count_waiters(broker) == 2)
        await broker.close()
    assert len(refused) == 2
