"""Conformance of brokers: settlements, results and requeueing."""

from __future__ import annotations

import anyio
import pytest
from support.brokers.jobs import LEASE, claim_one, claimed, message, settle, settlement, state_of
from support.brokers.kinds import Kind, elapse

from background.queues import JobState
from background.queues._states import FINAL
from background.queues.abc import (
    Broker,
    LeaseStatus,
    StoredJob,
)


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED])
async def test_first_settlement_is_final(broker: Broker, state: JobState) -> None:
    """The first settlement that ends a job is final; later settlements are rejected."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    assert await settle(broker, claim, state, error={"type": "E"})
    for later in (JobState.SUCCEEDED, JobState.SCHEDULED, JobState.READY):
        assert not await settle(broker, claim, later, result=b"later")
    job = await broker.get("one")
    assert job is not None
    assert (job.state, job.result, job.error) == (state, None, {"type": "E"})


async def test_retry_after_delay(broker: Broker) -> None:
    """A scheduled retry is ready after its delay and shows the error of the last attempt."""
    await broker.enqueue([message(), message("two")])
    claim = await claim_one(broker)
    assert await settle(broker, claim, JobState.SCHEDULED, delay=10, error={"type": "E"})
    job = await broker.get("one")
    assert job is not None
    assert (job.state, job.attempt, job.error) == (JobState.SCHEDULED, 1, {"type": "E"})
    assert await claimed(broker) == ["two"]
    await elapse(broker, 11)
    again = await claim_one(broker)
    assert (again.attempt, again.crashes, again.error) == (2, 0, {"type": "E"})
    assert claim.error is None
    assert again.token != claim.token


async def test_release(broker: Broker) -> None:
    """A released job keeps its place in the queue, and its attempt is not counted."""
    await broker.enqueue([message(), message("two")])
    claim = await claim_one(broker)
    assert await settle(broker, claim, JobState.READY)
    assert await state_of(broker) is JobState.READY
    again = await claim_one(broker)
    assert (again.message.id, again.attempt, again.crashes) == ("one", 1, 0)


async def test_intermediate_result(broker: Broker) -> None:
    """The worker that holds the lease can save a result before the job ends."""
    await broker.enqueue([message(), message("two")])
    one, two = await broker.claim(["q"], 2, lease=LEASE)
    assert await broker.save("one", one.token, b"half")
    assert await broker.save("two", two.token, b"half")
    assert not await broker.save("one", f"{one.token}?", b"forged")
    job = await broker.get("one")
    assert job is not None
    assert (job.state, job.result) == (JobState.RUNNING, b"half")
    await settle(broker, one, JobState.SCHEDULED)
    assert not await broker.save("one", one.token, b"late")
    again = await claim_one(broker)
    assert await settle(broker, again, JobState.DEAD)
    assert await settle(broker, two, JobState.SUCCEEDED)
    results = [await broker.get(id) for id in ("one", "two")]
    assert [job and job.result for job in results] == [b"half", None]
    assert not await broker.save("one", again.token, b"late")
    assert not await broker.save("?", again.token, b"none")


async def test_intermediate_result_after_expiry(broker: Broker) -> None:
    """A result is not saved once the lease has expired."""
    await broker.enqueue([message()])
    late = await claim_one(broker)
    await elapse(broker, LEASE + 1)
    assert not await broker.save("one", late.token, b"late")


async def test_settlements_are_independent(broker: Broker) -> None:
    """A rejected settlement does not affect the other settlements of the call."""
    await broker.enqueue([message(str(number)) for number in range(3)])
    first, second, third = await broker.claim(["q"], 3, lease=LEASE)
    assert await settle(broker, second, JobState.DEAD)
    settlements = [settlement(claim, JobState.SUCCEEDED) for claim in (first, second, third)]
    assert await broker.settle(settlements) == [True, False, True]
    assert [await state_of(broker, str(number)) for number in range(3)] == [
        JobState.SUCCEEDED,
        JobState.DEAD,
        JobState.SUCCEEDED,
    ]


async def test_unknown_id(broker: Broker) -> None:
    """Calls with an unknown id return `None` or `False`."""
    assert await broker.get("?") is None
    assert await broker.cancel("?") is None
    assert not await broker.requeue("?")
    assert await broker.wait("?", 10) is None


@pytest.mark.parametrize("state", sorted(FINAL - {JobState.EXPIRED}))
async def test_requeue(broker: Broker, state: JobState) -> None:
    """A requeued job starts again with its first attempt and without a result."""
    await broker.enqueue([message()])
    assert not await broker.requeue("one")
    claim = await claim_one(broker)
    assert not await broker.requeue("one")
    await broker.cancel("one")
    await settle(broker, claim, state, result=b"1", error={"type": "E"})
    assert await broker.requeue("one")
    job = await broker.get("one")
    assert job is not None
    assert (job.state, job.attempt, job.result, job.finished_at) == (JobState.READY, 0, None, None)
    again = await claim_one(broker)
    assert (again.attempt, again.crashes) == (1, 0)
    assert await broker.renew([again], lease=LEASE) == [LeaseStatus.HELD]
    assert not await settle(broker, claim, JobState.SUCCEEDED)


async def test_requeue_expired_job(broker: Broker) -> None:
    """An expired job can be requeued and does not expire again."""
    await broker.enqueue([message(expires=10)])
    await elapse(broker, 11)
    await broker.maintain()
    assert await broker.requeue("one")
    await elapse(broker, 11)
    assert await claimed(broker) == ["one"]


async def test_wait_for_end(broker: Broker, broker_kind: Kind) -> None:
    """Waiting for a job returns the job when it ends, or at the timeout."""
    await broker.enqueue([message()])
    ended: list[StoredJob | None] = []
    first = anyio.Event()

    async def wait(timeout: float) -> None:
        ended.append(await broker.wait("one", timeout * broker_kind.second))
        first.set()

    async with anyio.create_task_group() as group:
        group.start_soon(wait, 1000)
        group.start_soon(wait, 5)
        await first.wait()
        (early,) = ended
        assert early is not None
        assert early.state is JobState.READY
        await settle(broker, await claim_one(broker), JobState.SUCCEEDED, result=b"1")
    assert ended[1] is not None
    assert ended[1].result == b"1"
    assert await broker.wait("one", 0) == ended[1]
