"""Conformance of brokers: cancellation."""

from __future__ import annotations

import pytest
from support.brokers.jobs import LEASE, claim_one, claimed, message, settle, state_of
from support.brokers.kinds import elapse

from background.queues import JobState
from background.queues.abc import (
    Broker,
    LeaseStatus,
)


@pytest.mark.parametrize("delay", [0, 10])
async def test_cancel_before_start(broker: Broker, delay: float) -> None:
    """A job that is cancelled before its first attempt never starts."""
    await broker.enqueue([message(delay=delay)])
    before = JobState.SCHEDULED if delay else JobState.READY
    assert await broker.cancel("one") is before
    assert await broker.cancel("one") is JobState.CANCELLED
    await elapse(broker, 11)
    assert await claimed(broker) == []
    assert await state_of(broker) is JobState.CANCELLED


async def test_cancel_while_running(broker: Broker) -> None:
    """The renewal of a lease reports that the job was cancelled."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    assert await broker.cancel("one") is JobState.RUNNING
    assert await state_of(broker) is JobState.RUNNING
    assert await broker.renew([claim], lease=LEASE) == [LeaseStatus.CANCELLED]
    assert await settle(broker, claim, JobState.CANCELLED)
    assert await state_of(broker) is JobState.CANCELLED


@pytest.mark.parametrize("state", [JobState.SCHEDULED, JobState.READY])
async def test_cancelled_job_is_not_retried(broker: Broker, state: JobState) -> None:
    """A cancelled job that is released or scheduled for a retry ends as cancelled."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    await broker.cancel("one")
    assert await settle(broker, claim, state)
    job = await broker.get("one")
    assert job is not None
    assert (job.state, job.attempt) == (JobState.CANCELLED, 1)


async def test_lease_expiry_after_cancel(broker: Broker) -> None:
    """A cancelled job whose lease expires ends as cancelled and is not retried."""
    await broker.enqueue([message()])
    await claim_one(broker)
    await broker.cancel("one")
    await elapse(broker, LEASE + 1)
    await broker.maintain()
    job = await broker.get("one")
    assert job is not None
    assert (job.state, len(job.lost)) == (JobState.CANCELLED, 1)


async def test_success_after_cancel(broker: Broker) -> None:
    """A job that is cancelled while it runs can still succeed."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    await broker.cancel("one")
    assert await settle(broker, claim, JobState.SUCCEEDED)
    assert await state_of(broker) is JobState.SUCCEEDED


async def test_cancel_many(broker: Broker) -> None:
    """Jobs are cancelled before those that they depend on, so none of them is dead."""
    await broker.enqueue([message("done"), message("runs")])
    done, _ = await broker.claim(["q"], 2, lease=LEASE)
    await settle(broker, done, JobState.SUCCEEDED)
    steps = [message("a"), message("b", delay=5), message("c", depends_on=("a", "b", "runs"))]
    await broker.enqueue([*steps, message("all", depends_on=("c", "b", "done"), handler=None)])
    states = await broker.cancel_many(["all", "none", "c", "runs", "b", "done", "a"])
    assert states == [
        *(JobState.SCHEDULED, None, JobState.SCHEDULED, JobState.RUNNING),
        *(JobState.SCHEDULED, JobState.SUCCEEDED, JobState.READY),
    ]
    for id in ("a", "b", "c", "all"):
        assert await state_of(broker, id) is JobState.CANCELLED
    assert await claimed(broker) == []
    assert await broker.cancel_many([]) == []
