"""Settlements that a worker's service sends, whenever that ends."""

from __future__ import annotations

import anyio
import pytest
from faulty import FaultyBroker
from test_brokers import claim_one, message, settlement, state_of

from background.queues import JobState
from background.queues._settling import Settler

pytestmark = pytest.mark.virtual


class Holder:
    attempt = 1
    gives_up = False


async def test_what_came_just_before_the_end_is_settled(broker: FaultyBroker) -> None:
    """Though the service is cancelled before it has heard of it."""
    await broker.enqueue([message()])
    claim = await claim_one(broker)
    settler = Settler(broker, type(anyio.Event()))
    async with anyio.create_task_group() as group:
        group.start_soon(settler.run)
        await anyio.wait_all_tasks_blocked()
        batch, place = settler.put(settlement(claim, JobState.SUCCEEDED), Holder())
        group.cancel_scope.cancel()
    assert batch.answers[place] is True
    assert await state_of(broker) is JobState.SUCCEEDED
