"""Conformance of every broker: cancelling."""

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
async def test_cancelled_before_it_starts_a_job_never_does(broker: Broker, delay: float) -> None:
    await broker.enqueue([message(delay=delay)])
    before = JobState.SCHEDULED if delay else JobState.READY
    assert await broker.cancel("one") is before
    assert await broker.cancel("one") is JobState.CANCELLED
    await elapse(broker, 11)
    assert await claimed(broker) == []
    assert await state_of(broker) is JobState.CANCELLED


async def test_who_runs_a_job_hears_that_it_is_cancelled(broker: Broker) -> None:
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    assert await broker.cancel("one") is JobState.RUNNING
    assert await state_of(broker) is JobState.RUNNING
    assert await broker.renew([claim], lease=LEASE) == [LeaseStatus.CANCELLED]
    assert await settle(broker, claim, JobState.CANCELLED)
    assert await state_of(broker) is JobState.CANCELLED


@pytest.mark.parametrize("state", [JobState.SCHEDULED, JobState.READY])
async def test_a_cancelled_job_is_not_run_again(broker: Broker, state: JobState) -> None:
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    await broker.cancel("one")
    assert await settle(broker, claim, state)
    assert await state_of(broker) is JobState.CANCELLED


async def test_a_cancelled_job_whose_worker_died_is_not_run_again(broker: Broker) -> None:
    await broker.enqueue([message()])
    await claim_one(broker)
    await broker.cancel("one")
    await elapse(broker, LEASE + 1)
    await broker.maintain()
    assert await state_of(broker) is JobState.CANCELLED


async def test_a_cancelled_job_may_still_succeed(broker: Broker) -> None:
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    await broker.cancel("one")
    assert await settle(broker, claim, JobState.SUCCEEDED)
    assert await state_of(broker) is JobState.SUCCEEDED


async def cancel(broker: Broker) -> None:
    await broker.cancel("a")
