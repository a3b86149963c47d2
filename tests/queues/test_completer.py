"""Settlements that a worker's completer sends."""

from __future__ import annotations

import anyio
import pytest
from support.brokers.faulty import FaultyBroker
from support.brokers.jobs import LEASE, claim_one, message, settlement, state_of
from support.brokers.kinds import elapse

from background.queues import BrokerUnavailableError, JobState, QueueError
from background.queues._backoff import Outages
from background.queues._worker.completer import Completer
from background.queues.abc import Claim


class AttemptStub:
    gives_up = False


async def test_settle_before_cancellation(broker: FaultyBroker) -> None:
    """A settlement is sent if the completer is cancelled right after it was added."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    completer = Completer(broker, type(anyio.Event()), Outages())
    async with anyio.create_task_group() as group:
        group.start_soon(completer.run)
        await anyio.wait_all_tasks_blocked()
        completer.settle_soon(AttemptStub(), settlement(claim, JobState.SUCCEEDED))  # type: ignore[arg-type]
        group.cancel_scope.cancel()
    assert await state_of(broker) is JobState.SUCCEEDED


async def test_drain_after_stop(broker: FaultyBroker) -> None:
    """A settlement that is added after the completer has stopped is sent by `drain()`."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    completer = Completer(broker, type(anyio.Event()), Outages())
    completer.settle_soon(AttemptStub(), settlement(claim, JobState.SUCCEEDED))  # type: ignore[arg-type]
    await completer.drain()
    assert await state_of(broker) is JobState.SUCCEEDED


async def test_settle_after_close(broker: FaultyBroker) -> None:
    """A completer that was closed sends nothing more."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    completer = Completer(broker, type(anyio.Event()), Outages())
    completer.close()
    completer.settle_soon(AttemptStub(), settlement(claim, JobState.SUCCEEDED))  # type: ignore[arg-type]
    assert await completer.settle(AttemptStub(), settlement(claim, JobState.DEAD)) is None  # type: ignore[arg-type]
    await completer.drain()
    assert not completer.give_up()
    assert await state_of(broker) is JobState.RUNNING


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED])
async def test_settle_after_lease_expiry(broker: FaultyBroker, state: JobState) -> None:
    """A repeated settlement is rejected if the lease has expired before the second call."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    await elapse(broker.real, 60)
    assert (await broker.maintain()).reclaimed == 1
    broker.fail("settle")
    completer = Completer(broker, type(anyio.Event()), Outages())
    async with anyio.create_task_group() as group:
        group.start_soon(completer.run)
        assert await completer.settle(AttemptStub(), settlement(claim, state)) is False  # type: ignore[arg-type]
        group.cancel_scope.cancel()
    assert await state_of(broker) is JobState.READY


async def test_settle_of_newer_version(broker: FaultyBroker) -> None:
    """A repeated settlement is rejected if a newer version of the library has the job by then."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    broker.lose("settle")
    broker.fail("get", error=BrokerUnavailableError("no broker"))
    broker.fail("get", error=QueueError("jobs of version 2"))
    completer = Completer(broker, type(anyio.Event()), Outages())
    async with anyio.create_task_group() as group:
        group.start_soon(completer.run)
        outcome = settlement(claim, JobState.SUCCEEDED)
        assert await completer.settle(AttemptStub(), outcome) is False  # type: ignore[arg-type]
        group.cancel_scope.cancel()


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("state", [JobState.SCHEDULED, JobState.READY])
async def test_settle_with_next_attempt_running(
    broker: FaultyBroker, state: JobState, accepted: bool
) -> None:
    """An unanswered settlement was accepted if the claim is not among the lost ones.

    The next attempt follows either the settlement or the expiry of the lease.
    """
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    (broker.lose if accepted else broker.fail)("settle")
    completer = Completer(broker, type(anyio.Event()), Outages())
    results: list[bool | None] = []

    async def settle() -> None:
        release = settlement(claim, state)
        results.append(await completer.settle(AttemptStub(), release))  # type: ignore[arg-type]
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(completer.run)
        group.start_soon(settle)
        await broker.called("settle")
        resume = broker.hold("settle")
        if not accepted:
            await elapse(broker.real, LEASE + 1)
        is_counted = state is JobState.SCHEDULED or not accepted
        assert (await claim_one(broker)).attempt == 1 + is_counted
        resume.set()
    assert results == [accepted]


@pytest.mark.parametrize("part", ["result", "error"])
async def test_settle_large_jobs(broker: FaultyBroker, part: str) -> None:
    """A call of the broker ends with the settlement that brings it to 4 MB."""
    large = {"result": bytes(900_000)} if part == "result" else {"error": {"type": "E" * 900_000}}
    state = JobState.SUCCEEDED if part == "result" else JobState.DEAD
    await broker.enqueue([message(str(number)) for number in range(8)])
    claims = [await claim_one(broker) for _ in range(8)]
    completer = Completer(broker, type(anyio.Event()), Outages())
    broker.lose("settle")  # only the part without an answer is sent again
    accepted: list[bool | None] = []

    async def settle(claim: Claim) -> None:
        accepted.append(await completer.settle(AttemptStub(), settlement(claim, state, **large)))  # type: ignore[arg-type]

    async with anyio.create_task_group() as group:
        for claim in claims:
            group.start_soon(settle, claim)
        await anyio.wait_all_tasks_blocked()
        await completer.drain()
    assert accepted == [True] * 8
    assert (broker.calls["settle"], broker.calls["get"]) == (3, 5)


async def test_give_up_between_parts(
    broker: FaultyBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """Settlements that were accepted before the completer gave up are reported as such."""
    await broker.enqueue([message(str(number)) for number in range(8)])
    claims = [await claim_one(broker) for _ in range(8)]
    completer = Completer(broker, type(anyio.Event()), Outages())
    accepted: list[bool | None] = []

    async def settle(claim: Claim) -> None:
        done = settlement(claim, JobState.SUCCEEDED, result=bytes(900_000))
        accepted.append(await completer.settle(AttemptStub(), done))  # type: ignore[arg-type]

    async with anyio.create_task_group() as group:
        for claim in claims:
            group.start_soon(settle, claim)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(completer.drain)
        await broker.called("settle")
        broker.hold("settle")
        with anyio.fail_after(60):
            await broker.called("settle", 2)
        assert completer.give_up()
    assert (accepted.count(True), accepted.count(None)) == (5, 3)
    assert "the settlements of 3 jobs may not have arrived (" in caplog.text
