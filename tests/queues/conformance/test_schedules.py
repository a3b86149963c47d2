"""Conformance of the latest ticks of schedules."""

from __future__ import annotations

import anyio
from support.brokers.kinds import elapse

from background.queues.abc import Broker

TICK = 1893456000.123


async def test_compare_and_set(broker: Broker) -> None:
    """A tick is replaced only by a call that expects it."""
    assert await broker.advance_schedule("a:1", None, TICK, retention=60) == TICK
    assert await broker.advance_schedule("a:1", None, TICK + 9, retention=60) == TICK
    assert await broker.advance_schedule("a:1", TICK - 1, TICK + 9, retention=60) == TICK
    assert await broker.advance_schedule("a:1", TICK, TICK + 1, retention=60) == TICK + 1
    assert await broker.advance_schedule("a:1", TICK, TICK + 1, retention=60) == TICK + 1
    assert await broker.advance_schedule("a:1", TICK + 1, TICK - 1, retention=60) == TICK - 1
    assert await broker.advance_schedule("b:1", TICK, TICK + 5, retention=60) == TICK + 5
    assert await broker.count() == 0


async def test_retention_of_ticks(broker: Broker) -> None:
    """A tick is deleted after its retention, which begins again when it is replaced."""
    for name in ("a", "b"):
        await broker.advance_schedule(name, None, TICK, retention=60)
    await elapse(broker, 40)
    await broker.advance_schedule("a", TICK, TICK + 1, retention=60)
    await elapse(broker, 30)
    assert await broker.advance_schedule("c", None, TICK, retention=60) == TICK
    assert await broker.advance_schedule("b", None, TICK + 7, retention=60) == TICK + 7
    assert await broker.advance_schedule("a", None, TICK + 7, retention=60) == TICK + 1
    await elapse(broker, 70)
    assert await broker.advance_schedule("a", TICK, TICK + 8, retention=60) == TICK + 8


async def test_concurrent_advances(broker: Broker) -> None:
    """One of several concurrent calls that expect the same tick replaces it."""
    stored: list[float] = []

    async def advance(tick: float) -> None:
        stored.append(await broker.advance_schedule("a", TICK, tick, retention=60))

    await broker.advance_schedule("a", None, TICK, retention=60)
    async with anyio.create_task_group() as group:
        for number in range(1, 6):
            group.start_soon(advance, TICK + number)
    assert len(stored) == 5
    assert len(set(stored)) == 1
    assert stored[0] > TICK
