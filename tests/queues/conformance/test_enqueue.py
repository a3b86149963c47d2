"""Conformance of brokers: enqueueing."""

from __future__ import annotations

import anyio
import pytest
from support.brokers.jobs import LEASE, claim_one, claimed, message, settle, settlement, state_of
from support.brokers.kinds import elapse

from background.queues import JobState
from background.queues.abc import (
    Broker,
)


async def test_enqueue_to_success(broker: Broker) -> None:
    """A stored job shows its message, state, times and result until it has succeeded."""
    sent = message(body=b"\x00\xff{", expires=100)
    assert await broker.enqueue([sent]) == [True]
    job = await broker.get("one")
    assert job is not None
    assert (job.message, job.state, job.attempt) == (sent, JobState.READY, 0)
    assert job.started_at is job.finished_at is job.error is job.result is None
    claim = await claim_one(broker)
    assert (claim.message, claim.attempt, claim.crashes) == (sent, 1, 0)
    assert claim.enqueued_at == job.enqueued_at
    job = await broker.get("one")
    assert job is not None
    assert (job.state, job.attempt) == (JobState.RUNNING, 1)
    assert job.started_at is not None
    assert await settle(broker, claim, JobState.SUCCEEDED, result=b"\x00[")
    job = await broker.get("one")
    assert job is not None
    assert (job.state, job.result) == (JobState.SUCCEEDED, b"\x00[")
    assert job.finished_at is not None
    assert job.enqueued_at <= (job.started_at or 0) <= job.finished_at


async def test_huge_times(broker: Broker) -> None:
    """Times and durations of a message can be integers of any size."""
    huge = 10**300
    await broker.enqueue([message("a", delay=huge, retention=huge), message("b", at=huge)])
    await broker.enqueue([message("c", expires=huge, retention=huge)])
    assert await claimed(broker) == ["c"]
    for id in ("a", "b"):
        assert await state_of(broker, id) is JobState.SCHEDULED


async def test_duplicate_id(broker: Broker) -> None:
    """An id is accepted once, until the retention of its job ends."""
    first, second = message(body=b"1"), message("two")
    assert await broker.enqueue([first, second, first]) == [True, True, False]
    assert await broker.enqueue([message(body=b"2", queue="r")]) == [False]
    assert await broker.count() == 2
    claim = await claim_one(broker)
    assert claim.message == first
    assert await broker.enqueue([message()]) == [False]
    await settle(broker, claim, JobState.SUCCEEDED)
    assert await broker.enqueue([message()]) == [False]
    await elapse(broker, 61)
    assert await broker.enqueue([message()]) == [True]


async def test_empty_calls(broker: Broker) -> None:
    """Calls without messages, settlements or claims return empty lists."""
    assert await broker.enqueue([]) == []
    assert await broker.settle([]) == []
    assert await broker.renew([], lease=LEASE) == []


async def test_delay(broker: Broker) -> None:
    """Delayed jobs are scheduled, and ready when their delays end."""
    job = await broker.get("one")
    assert job is None
    await broker.enqueue([message("late", delay=20), message("soon", delay=10), message("now")])
    assert await state_of(broker, "late") is JobState.SCHEDULED
    assert await claimed(broker) == ["now"]
    await elapse(broker, 9)
    assert await claimed(broker) == []
    await elapse(broker, 2)
    assert await claimed(broker) == ["soon"]
    await elapse(broker, 10)
    assert await claimed(broker) == ["late"]


async def test_time(broker: Broker) -> None:
    """Jobs with a time are ready at that time, or at once if it is in the past."""
    await broker.enqueue([message()])
    stored = await broker.get("one")
    assert stored is not None
    now = stored.enqueued_at
    await broker.enqueue([message("past", at=now - 100), message("future", at=now + 20)])
    assert await claimed(broker) == ["one", "past"]
    await elapse(broker, 18)
    assert await claimed(broker) == []
    await elapse(broker, 4)
    assert await claimed(broker) == ["future"]


@pytest.mark.parametrize("delay", [0.0, 500.0])
async def test_expiry(broker: Broker, delay: float) -> None:
    """A job that is not started in time expires, even if it is still delayed."""
    await broker.enqueue([message(expires=10, delay=delay)])
    await elapse(broker, 11)
    await broker.maintain()
    assert await state_of(broker) is JobState.EXPIRED
    await elapse(broker, 10)
    assert await claimed(broker) == []


async def test_no_expiry_after_start(broker: Broker) -> None:
    """A job that was started in time does not expire between its attempts."""
    await broker.enqueue([message(expires=10)])
    claim = await claim_one(broker)
    await settle(broker, claim, JobState.SCHEDULED, delay=20)
    await elapse(broker, 21)
    assert await claimed(broker) == ["one"]


@pytest.mark.parametrize(("delay", "has_begun"), [(0, False), (20, False), (0, True), (20, True)])
async def test_expiry_after_release(broker: Broker, delay: float, has_begun: bool) -> None:
    """A released job expires, unless an attempt has begun."""
    await broker.enqueue([message(expires=15)])
    claim = await claim_one(broker)
    await broker.renew([claim], lease=LEASE)
    await settle(broker, claim, JobState.READY, delay=delay, has_begun=has_begun)
    await elapse(broker, 25)
    await broker.maintain()
    job = await broker.get("one")
    assert job is not None
    assert job.attempt == 0
    assert job.state is (JobState.READY if has_begun else JobState.EXPIRED)
    assert await claimed(broker) == (["one"] if has_begun else [])


async def test_release_after_expiry(broker: Broker) -> None:
    """A job that is released after its expiry, and has not begun, can't be claimed any more."""
    await broker.enqueue([message(expires=5), message("two")])
    claim = await claim_one(broker)
    await elapse(broker, 10)
    await broker.maintain()
    assert await state_of(broker) is JobState.RUNNING
    await settle(broker, claim, JobState.READY, has_begun=False)
    assert await claimed(broker) == ["two"]
    assert await state_of(broker) is JobState.EXPIRED


@pytest.mark.parametrize("confirmed", [False, True])
async def test_expiry_after_lost_lease(broker: Broker, confirmed: bool) -> None:
    """A job whose lease expires can expire, too, unless the claim was confirmed."""
    await broker.enqueue([message(expires=5)])
    claim = await claim_one(broker)
    if confirmed:
        await broker.renew([claim], lease=LEASE)
    await elapse(broker, LEASE + 1)
    assert await claimed(broker) == (["one"] if confirmed else [])
    assert await state_of(broker) is (JobState.RUNNING if confirmed else JobState.EXPIRED)
    job = await broker.get("one")
    assert job is not None
    assert [lost.confirmed for lost in job.lost] == [confirmed]


async def test_many_jobs(broker: Broker) -> None:
    """Concurrent workers claim every job exactly once."""
    await broker.enqueue([message(str(number)) for number in range(1000)])
    seen: list[str] = []

    async def work() -> None:
        while claims := await broker.claim(["q"], 7, lease=LEASE):
            seen.extend(claim.message.id for claim in claims)
            settlements = [settlement(claim, JobState.SUCCEEDED) for claim in claims]
            assert all(await broker.settle(settlements))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(work)
    assert sorted(seen) == sorted(str(number) for number in range(1000))
    assert await broker.count(state=JobState.SUCCEEDED) == 1000
