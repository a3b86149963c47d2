"""Conformance of brokers: claims and leases."""

from __future__ import annotations

import anyio
import pytest
from support.brokers.jobs import LEASE, claim_one, claimed, message, settle, state_of
from support.brokers.kinds import Kind, elapse

from background.queues import JobState
from background.queues.abc import (
    MOST_LOST,
    Broker,
    LeaseStatus,
)
from background.queues.memory import MemoryBroker


async def test_oldest_job_first(broker: Broker) -> None:
    """Jobs of a queue are claimed in the order of their enqueueing."""
    await broker.enqueue([message(str(number)) for number in range(5)])
    assert await claimed(broker, most=2) == ["0", "1"]
    assert await claimed(broker, most=9) == ["2", "3", "4"]
    assert await claimed(broker) == []


async def test_queue_priority(broker: Broker) -> None:
    """Jobs are claimed from the queues in the order in which these are listed."""
    sent = [message("a", queue="r"), message("b"), message("c"), message("d", queue="s")]
    await broker.enqueue(sent)
    assert await claimed(broker, "q", "r", most=2) == ["b", "c"]
    assert await claimed(broker, "q", "r") == ["a"]
    assert await claimed(broker, "unknown", "s") == ["d"]


async def test_claimed_job_is_exclusive(broker: Broker) -> None:
    """A job is not claimed again while its lease is held, nor after its success."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    assert await claimed(broker) == []
    await elapse(broker, LEASE - 1)
    assert await claimed(broker) == []
    assert await settle(broker, claim, JobState.SUCCEEDED)
    assert await claimed(broker) == []


async def test_lease_expiry(broker: Broker) -> None:
    """The expiry of a lease makes the job ready again and invalidates the claim."""
    await broker.enqueue([message()])
    late = await claim_one(broker)
    await elapse(broker, LEASE + 1)
    await broker.maintain()
    assert await state_of(broker) is JobState.READY
    claim = await claim_one(broker)
    assert (claim.attempt, claim.crashes, claim.unconfirmed) == (2, 0, 1)
    for state in (JobState.SUCCEEDED, JobState.DEAD, JobState.SCHEDULED, JobState.READY):
        assert not await settle(broker, late, state, result=b"late")
    assert await broker.renew([late, claim], lease=LEASE) == [LeaseStatus.LOST, LeaseStatus.HELD]
    assert await settle(broker, claim, JobState.SUCCEEDED, result=b"1")
    job = await broker.get("one")
    assert job is not None
    assert job.result == b"1"


async def test_crash_count(broker: Broker) -> None:
    """A crash counts if the claim was confirmed by a renewal; a requeue resets the counts."""
    await broker.enqueue([message()])
    for confirmed in (False, True, True, False):
        claim = await claim_one(broker)
        if confirmed:
            assert await broker.renew([claim], lease=LEASE) == [LeaseStatus.HELD]
        await elapse(broker, LEASE + 1)
        await broker.maintain()
    job = await broker.get("one")
    assert job is not None
    assert [(lost.attempt, lost.confirmed) for lost in job.lost] == [
        *((1, False), (2, True), (3, True), (4, False))
    ]
    assert len({lost.token for lost in job.lost}) == 4
    assert all(0 < lost.started_at < lost.ended_at for lost in job.lost)
    assert job.lost[-1].token == job.token
    claim = await claim_one(broker)
    assert (claim.attempt, claim.crashes, claim.unconfirmed) == (5, 2, 2)
    assert await settle(broker, claim, JobState.DEAD)
    assert await broker.requeue("one")
    claim = await claim_one(broker)
    assert (claim.attempt, claim.crashes, claim.unconfirmed) == (1, 0, 0)


async def test_delayed_release(broker: Broker) -> None:
    """A job that is released with a delay is not counted as an attempt, and is ready after it."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    assert await settle(broker, claim, JobState.READY, delay=5, error={"type": "E"})
    assert await state_of(broker) is JobState.SCHEDULED
    assert await claimed(broker) == []
    await elapse(broker, 6)
    claim = await claim_one(broker)
    assert (claim.attempt, claim.error) == (1, {"type": "E"})


async def test_lost_claims_are_bounded(broker: Broker) -> None:
    """A job remembers the latest expired claims only."""
    await broker.enqueue([message()])
    for _ in range(MOST_LOST + 2):
        await claim_one(broker)
        await elapse(broker, LEASE + 1)
        await broker.maintain()
    job = await broker.get("one")
    assert job is not None
    assert [lost.attempt for lost in job.lost] == [*range(3, MOST_LOST + 3)]


async def test_saved_value(broker: Broker) -> None:
    """A claim has the intermediate result of an earlier attempt."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    assert claim.saved is None
    assert await broker.save("one", claim.token, b"half")
    assert await settle(broker, claim, JobState.READY)
    assert (await claim_one(broker)).saved == b"half"


async def test_expired_lease_before_next_claim(broker: Broker) -> None:
    """An expired lease is lost even before another worker claims the job."""
    await broker.enqueue([message()])
    late = await claim_one(broker)
    await elapse(broker, LEASE + 1)
    await broker.maintain()
    assert await broker.renew([late], lease=LEASE) == [LeaseStatus.LOST]
    assert not await settle(broker, late, JobState.SUCCEEDED)
    assert await claimed(broker) == ["one"]


async def test_renewed_lease(broker: Broker) -> None:
    """A renewed lease does not expire; a lease that is not renewed does."""
    await broker.enqueue([message(), message("two")])
    one, two = await broker.claim(["q"], 2, lease=LEASE)
    for _ in range(5):
        await elapse(broker, LEASE - 1)
        assert await broker.renew([one], lease=LEASE) == [LeaseStatus.HELD]
        await broker.maintain()
    assert await state_of(broker) is JobState.RUNNING
    assert await broker.renew([two], lease=LEASE) == [LeaseStatus.LOST]
    assert await settle(broker, one, JobState.SUCCEEDED)


async def test_wait_for_work(broker: Broker, broker_kind: Kind) -> None:
    """Waiting for work ends when a job becomes ready, or at the timeout."""
    second = broker_kind.second
    began = anyio.current_time()

    async def wait(*queues: str, timeout: float = 100) -> None:
        nonlocal began
        began = anyio.current_time()
        await broker.wait_for_work(queues, timeout * second)

    def assert_waited(seconds: float, since: float | None = None) -> None:
        now = anyio.current_time()
        assert now - (began if since is None else since) > (seconds - 1) * second
        assert now - began < seconds * second + broker_kind.late

    await wait("q", timeout=7)
    assert_waited(7)
    await broker.enqueue([message("elsewhere", queue="r"), message(delay=10 * second)])
    await wait("q")
    assert_waited(10)
    await wait("q", "r")
    assert_waited(0)
    claimed_at = anyio.current_time()
    await broker.claim(["q"], 1, lease=15 * second)
    await broker_kind.wait_for_acks(broker, "q")
    await wait("q")
    assert_waited(15, since=claimed_at)
    claim = await claim_one(broker)
    await broker_kind.wait_for_acks(broker, "q")
    async with anyio.create_task_group() as group:
        group.start_soon(wait, "q")
        await anyio.sleep(5 * second)
        await settle(broker, claim, JobState.READY)
    assert_waited(5)


@pytest.mark.parametrize("part", ["body", "saved", "previous"])
async def test_claim_of_large_jobs(broker: Broker, part: str) -> None:
    """A claim ends with the job that brings it to 4 MB, also after many small jobs."""
    large, is_memory = bytes(900_000), isinstance(broker, MemoryBroker)
    options = {"body": {"body": large}, "saved": {}, "previous": {"depends_on": ("first",)}}[part]
    await broker.enqueue([message("first", queue="first")])
    await broker.enqueue([message(f"small-{number}") for number in range(80)])
    await broker.enqueue([message(f"large-{number}", **options) for number in range(8)])
    await settle(broker, await claim_one(broker, "first"), JobState.SUCCEEDED, result=large)
    if part == "saved":
        for claim in await broker.claim(["q"], 88, lease=LEASE):
            if claim.message.id.startswith("large"):
                assert await broker.save(claim.message.id, claim.token, large)
            assert await settle(broker, claim, JobState.READY)
    counts: list[int] = []
    for _ in range(3):
        ids = await claimed(broker, most=500)
        counts.append(len([id for id in ids if id.startswith("large")]))
    assert counts == ([8, 0, 0] if is_memory else [5, 3, 0])
