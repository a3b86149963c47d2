"""Settlements that a worker's service sends, whenever that ends."""

from __future__ import annotations

import anyio
import pytest
from support.brokers.faulty import FaultyBroker
from support.brokers.jobs import LEASE, claim_one, message, settlement, state_of
from support.brokers.kinds import elapse

from background.queues import JobState
from background.queues._worker.completer import Completer


class Holder:
    number = 1
    gives_up = False


async def test_what_came_just_before_the_end_is_settled(broker: FaultyBroker) -> None:
    """Though the service is cancelled before it has heard of it."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    settler = Completer(broker, type(anyio.Event()))
    async with anyio.create_task_group() as group:
        group.start_soon(settler.run)
        await anyio.wait_all_tasks_blocked()
        settler.settle_soon(Holder(), settlement(claim, JobState.SUCCEEDED))  # type: ignore[arg-type]
        group.cancel_scope.cancel()
    assert await state_of(broker) is JobState.SUCCEEDED


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED])
async def test_what_is_ready_again_has_not_ended(broker: FaultyBroker, state: JobState) -> None:
    """Its lease was over before the settlement came through, at the second try."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    await elapse(broker.real, 60)
    assert (await broker.maintain()).reclaimed == 1
    broker.fail("settle")
    settler = Completer(broker, type(anyio.Event()))
    async with anyio.create_task_group() as group:
        group.start_soon(settler.run)
        assert await settler.settle(Holder(), settlement(claim, state)) is False  # type: ignore[arg-type]
        group.cancel_scope.cancel()
    assert await state_of(broker) is JobState.READY


@pytest.mark.parametrize("accepted", [True, False])
async def test_the_next_attempt_tells_what_became_of_a_settlement(
    broker: FaultyBroker, accepted: bool
) -> None:
    """It follows a failure, or the end of a lease, if nothing is known but that it has begun."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    (broker.lose if accepted else broker.fail)("settle")
    settler = Completer(broker, type(anyio.Event()))
    answers: list[bool | None] = []

    async def settle() -> None:
        failed = settlement(claim, JobState.SCHEDULED, error={"type": "E"})
        answers.append(await settler.settle(Holder(), failed))  # type: ignore[arg-type]
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(settler.run)
        group.start_soon(settle)
        await broker.called("settle")
        go_on = broker.hold("settle")
        if not accepted:
            await elapse(broker.real, LEASE + 1)
        assert (await claim_one(broker)).attempt == 2
        go_on.set()
    assert answers == [accepted]
