"""The clock of the NATS server, and the timer wheel."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.brokers.nats import (
    EMPTY,
    finish,
    message,
    stored,
    virtual,
)
from support.brokers.nats_servers import (
    served_nats_broker,
)
from support.time import SOON

from background._support import clock as system_clock
from background.queues._states import JobState
from background.queues.abc import Claim, LeaseStatus, MaintenanceStats
from background.queues.nats import timer_wheel
from background.queues.nats.timer_wheel import of_lease


@virtual
async def test_a_wrong_clock_of_a_host_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = system_clock.wall
    async with served_nats_broker() as broker:
        monkeypatch.setattr(system_clock, "wall", lambda: wall() + 3600)
        await broker.enqueue([message(), message("late", delay=30)])
        claims = await broker.claim(["q"], 5, lease=30)
        assert [each.message.id for each in claims] == ["one"]
        assert abs(claims[0].enqueued_at - wall()) < SOON
        assert await broker.renew(claims, lease=30) == [LeaseStatus.HELD]
        assert await broker.maintain() == MaintenanceStats()


@virtual
async def test_the_servers_clock_is_read_again_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with served_nats_broker() as broker:
        clock: Any = broker._clock
        clock._ahead += 500
        await broker.maintain()
        assert clock.now() > system_clock.wall() + 400
        monkeypatch.setattr("background.queues.nats.clock._REFRESH", -1)
        await broker.maintain()
        assert abs(clock.now() - system_clock.wall()) < SOON


@virtual
async def test_timers_of_far_away_times_come_nearer() -> None:
    delays = {"minutes": 600.0, "hours": 20_000.0, "days": 300_000.0, "months": 9_000_000.0}
    async with served_nats_broker() as broker:
        await broker.enqueue(
            [message(id, delay=delay, retention=9) for id, delay in delays.items()]
        )
        began = asyncio.get_running_loop().time()
        for id, delay in delays.items():
            claims: list[Claim] = []
            while not claims:
                await asyncio.sleep(delay / 100)
                claims = await broker.claim(["q"], 5, lease=30)
            took = asyncio.get_running_loop().time() - began
            assert [each.message.id for each in claims] == [id]
            assert delay <= took < delay * 1.02 + 2
            await finish(broker, claims)
        await asyncio.sleep(100)
        await broker.maintain()
        assert await stored(broker) == EMPTY


@virtual
async def test_many_timers_that_are_due_at_once() -> None:
    async with served_nats_broker() as broker:
        for part in range(3):
            await broker.enqueue([message(f"{part}-{n}", delay=10) for n in range(400)])
        await asyncio.sleep(11)
        assert await broker.maintain() == MaintenanceStats(due=1200)
        assert await broker.count(state=JobState.READY) == 1200


@virtual
async def test_nobody_takes_more_timers_than_can_be_seen_to_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("background.queues.nats.timer_wheel._AT_A_TIME", 4)
    async with served_nats_broker() as broker:
        for number in range(6):
            await broker.enqueue([message(str(number), delay=10)])
        await asyncio.sleep(11)
        await broker.claim(["none"], 1, lease=30)
        assert await broker.maintain() == MaintenanceStats(due=2)


def test_others_wait_for_who_has_taken_a_timer_no_longer_than_for_a_lease() -> None:
    covers = [of_lease(100 + lease, "one", 100).cover for lease in (0.01, 1.5, 30)]
    assert covers == [0.25, 1.5, timer_wheel.COVER]


@virtual
async def test_a_clock_that_is_set_back_hides_no_timers() -> None:
    async with served_nats_broker() as broker:
        await broker.claim(["q"], 1, lease=30)
        broker._clock._ahead -= 50
        async with served_nats_broker(like=broker) as other:
            other._clock._ahead -= 50
            await other.enqueue([message(delay=5)])
        await asyncio.sleep(6)
        assert await broker.maintain() == MaintenanceStats(due=1)


@virtual
async def test_timers_that_several_take_at_once() -> None:
    """Each is seen to by one of them."""
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as other:
        for number in range(5):
            await broker.enqueue([message(f"{number}-{n}", delay=10) for n in range(3)])
        await asyncio.sleep(11)
        done = await asyncio.gather(broker.maintain(), other.maintain())
        assert sum(each.due for each in done) == 15
        assert await stored(broker) == {"jobs": 15, "ready": 15, "timers": 0}
        for number in range(5):
            await broker.enqueue([message(f"r-{number}", delay=10)])
        await asyncio.sleep(11)
        both: list[Any] = [broker._timers, other._timers]
        taken = await asyncio.gather(*(each.take() for each in both))
        ids = [timer.id for some in taken for timer in some.timers]
        assert sorted(ids) == [f"r-{number}" for number in range(5)]
