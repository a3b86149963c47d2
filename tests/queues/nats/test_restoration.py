"""Restoring hints and timers that were deleted, from the records of the jobs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from support.brokers.nats import EMPTY, finish, message, messages, state_of, stored, virtual
from support.brokers.nats_servers import served_nats_broker

from background.queues._states import FINAL, JobState
from background.queues.abc import Claim, Settlement
from background.queues.nats import NatsBroker
from background.queues.nats.requests import Request

HOUR = 3_600.0
LOST = [["ready"], ["timers"], ["ready", "timers"]]


async def enqueue_in_all_states(broker: NatsBroker, **options: Any) -> list[Claim]:
    """Store jobs in every state, and return the claims of those that run."""
    await broker.enqueue(
        [
            message("held", **options),
            message("done", **options),
            message("dead", **options),
            message("retried", **options),
            message("cancelled", **options),
            *messages(3, **options),
            message("late", delay=100, **options),
            message("expires", expires=50, queue="idle", **options),
            message("then", depends_on=("0000", "late"), **options),
            message("all", depends_on=("then", "done"), handler=None, **options),
        ]
    )
    held, done, dead, retried = await broker.claim(["q"], 4, lease=30)
    await finish(broker, [done])
    for claim, state in ((dead, JobState.DEAD), (retried, JobState.SCHEDULED)):
        await broker.settle([Settlement(claim.message.id, claim.token, state, delay=20)])
    await broker.cancel("cancelled")
    return [held]


async def lose(broker: Any, streams: list[str], how: str) -> None:
    """Purge streams, or delete their messages one by one."""
    api = broker._inspection._api
    for name in (f"{broker._layout.prefix}-{stream}" for stream in streams):
        if how == "purge":
            await api._ask(f"STREAM.PURGE.{name}")
        else:
            state = (await api._ask(f"STREAM.INFO.{name}"))["state"]
            for sequence in range(state["first_seq"], state["last_seq"] + 1):
                await api._ask(f"STREAM.MSG.DELETE.{name}", seq=sequence)


async def run_all(broker: NatsBroker, seconds: float) -> list[str]:
    """Maintain and run jobs for some time; return the ids of the jobs, sorted."""
    ran: list[str] = []
    for _ in range(int(seconds / 5)):
        await broker.maintain()
        claims = await broker.claim(["q"], 10, lease=30)
        ran += [claim.message.id for claim in claims]
        assert all(await finish(broker, claims))
        await asyncio.sleep(5)
    return sorted(ran)


def count_passes(broker: Any) -> list[None]:
    """Return a list with an entry for each pass that a broker makes."""
    passes: list[None] = []
    run = broker._restoration.run

    async def counting() -> None:
        passes.append(None)
        await run()

    broker._restoration.run = counting
    return passes


@pytest.mark.parametrize("how", ["purge", "delete"])
@pytest.mark.parametrize("streams", LOST)
@virtual
async def test_lost_messages(streams: list[str], how: str) -> None:
    """Jobs in every state end after their hints and timers were deleted and a worker restarted."""
    async with served_nats_broker() as broker:
        await enqueue_in_all_states(broker)
        await lose(broker, streams, how)
        async with served_nats_broker(like=broker) as restarted:
            ran = await run_all(restarted, 150)
            assert ran == ["0000", "0001", "0002", "held", "late", "retried", "then"]
            assert await state_of(broker, "all") is JobState.SUCCEEDED
            await asyncio.sleep(200)
            await restarted.maintain()
        assert await stored(broker) == EMPTY


@pytest.mark.parametrize("streams", LOST)
@virtual
async def test_hourly_restoration(streams: list[str]) -> None:
    """One of two running workers restores deleted messages within an hour."""
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as second:
        passes = [count_passes(part) for part in (broker, second)]
        await broker.maintain()
        await asyncio.sleep(1)
        await second.maintain()
        assert [len(part) for part in passes] == [1, 0]
        await broker.enqueue(
            [message(), message("expires", expires=500, queue="idle"), message("late", delay=9)]
        )
        await lose(broker, streams, "purge")
        for _ in range(int(HOUR / 30) + 4):
            await broker.maintain()
            await asyncio.sleep(15)
            await second.maintain()
            await asyncio.sleep(15)
            await finish(second, await second.claim(["q"], 9, lease=30))
        assert sum(map(len, passes)) == 2
        await asyncio.sleep(100)
        await second.maintain()
        assert [job.message.id async for job in broker.scan() if job.state not in FINAL] == []
        assert await stored(broker) == EMPTY


@virtual
async def test_repeated_restoration() -> None:
    """Passes neither add messages nor check jobs when nothing is missing."""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(served_nats_broker())
        # Opening reads the server's clock, which is real, so it can't follow a sleep.
        more = [served_nats_broker(like=broker) for _ in range(5)]
        restarted: list[Any] = [await stack.enter_async_context(part) for part in more]
        passes = [count_passes(part) for part in restarted]
        options = {"retention": 1e6, "dead_retention": 1e13}
        claims = await enqueue_in_all_states(broker, **options)
        await broker.enqueue([message(f"expires-{n}", expires=1e5, **options) for n in range(9)])
        await broker.renew(claims, lease=1e6)
        await asyncio.sleep(110)
        await broker.maintain()
        before = await stored(broker)
        for part in restarted:
            await asyncio.sleep(61)
            part._restoration.opened()
            await asyncio.sleep(1)
            await part.maintain()
            assert await stored(broker) == before
        assert [len(part) for part in passes] == [1] * 5
        for _ in range(5):
            await asyncio.sleep(HOUR)
            await broker.maintain()
        after = await stored(broker)
        assert (after["jobs"], after["ready"]) == (before["jobs"], before["ready"])
        assert after["timers"] <= before["timers"]


@virtual
async def test_restart_soon_after_pass() -> None:
    """A restarted worker makes its pass a minute after the latest one began."""
    async with served_nats_broker() as broker:
        await broker.maintain()
        await broker.enqueue([message()])
        await lose(broker, LOST[2], "purge")
        await asyncio.sleep(1)
        async with served_nats_broker(like=broker) as restarted:
            passes = count_passes(restarted)
            for expected in (0, 0, 1, 1):
                await restarted.maintain()
                assert len(passes) == expected
                await asyncio.sleep(31)
            assert len(await restarted.claim(["q"], 1, lease=30)) == 1


@virtual
async def test_recreated_without_check() -> None:
    """Jobs run although the process that created the hints' stream died before the check of all."""
    async with served_nats_broker() as broker:
        await broker.maintain()
        await broker.enqueue([message(), message("after", depends_on=("one",))])
        api, name = broker._inspection._api, broker._layout.ready
        await api._ask(f"STREAM.DELETE.{name}")
        await api._ask(f"STREAM.CREATE.{name}", name=name, **broker._layout.streams[name])
        async with served_nats_broker(like=broker) as restarted:
            await asyncio.sleep(61)
            assert await run_all(restarted, 20) == ["after", "one"]


@virtual
async def test_unreadable_dependency() -> None:
    """A job whose dependency can't be read here waits until the dependency has ended."""
    broker: Any
    async with served_nats_broker() as broker:
        await broker.enqueue([message(), message("then", depends_on=("one",))])
        (entry,) = await broker._records.load(["one"])
        subject, api = broker._layout.job("one"), broker._api
        newer = entry.record.replace(b'"v":1', b'"v":2').replace(b',"dependants":["then"]', b"")
        (revision,) = await api.replace([(subject, newer, entry.revision)])
        assert revision
        await broker._jobs.check(["then"])
        await broker.maintain()
        assert await state_of(broker, "then") is JobState.SCHEDULED
        async with served_nats_broker(like=broker) as restarted:
            await asyncio.sleep(61)
            await restarted.maintain()
            assert await state_of(broker, "then") is JobState.SCHEDULED
            older = newer.replace(b'"v":2', b'"v":1')
            await api.replace([(subject, older, revision)])
            await asyncio.sleep(HOUR)
            assert await run_all(restarted, 20) == ["one", "then"]


@virtual
async def test_foreign_records() -> None:
    """A record whose subject names no job is ignored, and so is one that was just deleted."""
    broker: Any
    async with served_nats_broker() as broker:
        await broker.enqueue([message()])
        await broker._api.publish_all([Request(f"{broker._layout.job('one')}%")])
        assert list(await broker._inspection.records()) == ["one"]
        found = [id async for id, _, _ in broker._inspection.load({"gone": 0, "one": 0})]
        assert found == ["one"]
