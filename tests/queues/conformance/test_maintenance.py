"""Conformance of brokers: retention, counting, scanning, purging and maintenance."""

from __future__ import annotations

from typing import Any

from support.brokers.jobs import LEASE, claim_one, message, settle, state_of
from support.brokers.kinds import elapse

from background.queues import JobState
from background.queues.abc import (
    Broker,
    MaintenanceStats,
    StoredJob,
)


async def test_retention(broker: Broker) -> None:
    """A job that has ended is stored until its retention ends."""
    await broker.enqueue([message(retention=100), message("two", retention=0)])
    for claim in await broker.claim(["q"], 2, lease=LEASE):
        await settle(broker, claim, JobState.SUCCEEDED)
    await elapse(broker, 99)
    await broker.maintain()
    assert await state_of(broker) is JobState.SUCCEEDED
    assert await broker.get("two") is None
    await elapse(broker, 2)
    await broker.maintain()
    assert await broker.get("one") is None
    assert await broker.count() == 0


async def test_count_and_scan(broker: Broker) -> None:
    """Jobs are counted and scanned by queue and state, in the order of enqueueing."""
    sent = [message("a"), message("b", queue="r"), message("c", delay=10), message("d")]
    await broker.enqueue(sent)
    claim = await claim_one(broker)
    await settle(broker, claim, JobState.DEAD)

    async def ids(**filters: Any) -> list[str]:
        found: list[StoredJob] = [job async for job in broker.scan(**filters)]
        assert await broker.count(**filters) == len(found)
        return [job.message.id for job in found]

    assert await ids() == ["a", "b", "c", "d"]
    assert await ids(queue="q") == ["a", "c", "d"]
    assert await ids(state=JobState.READY) == ["b", "d"]
    assert await ids(queue="q", state=JobState.DEAD) == ["a"]
    assert await ids(queue="r", state=JobState.DEAD) == []


async def test_purge(broker: Broker) -> None:
    """Purging deletes jobs that ended longer ago than an age, and no unfinished jobs."""
    await broker.enqueue([message(id, retention=1000) for id in "abcd"])
    first, second = await broker.claim(["q"], 2, lease=LEASE)
    await settle(broker, first, JobState.DEAD)
    await elapse(broker, 20)
    await broker.cancel("c")
    assert await broker.purge(older_than=30) == 0
    assert await broker.purge(older_than=10, state=JobState.CANCELLED) == 0
    assert await broker.purge(older_than=10) == 1
    assert await broker.get("a") is None
    assert await broker.purge() == 1
    assert [job.message.id async for job in broker.scan()] == ["b", "d"]
    assert await settle(broker, second, JobState.SUCCEEDED)


async def test_maintenance_stats(broker: Broker) -> None:
    """Maintenance returns the numbers of due, reclaimed, expired and deleted jobs."""
    await broker.enqueue(
        [message("a", retention=5), message("b", delay=1), message("c", expires=1)]
    )
    (claim,) = await broker.claim(["q"], 1, lease=1)
    assert await broker.maintain() == MaintenanceStats()
    await elapse(broker, 1.1)
    assert await broker.maintain() == MaintenanceStats(due=1, reclaimed=1, expired=1)
    claim = await claim_one(broker)
    await settle(broker, claim, JobState.SUCCEEDED)
    await elapse(broker, 5.1)
    assert await broker.maintain() == MaintenanceStats(deleted=1)
