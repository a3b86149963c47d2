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
from background.queues.nats.clock import ServerClock
from background.queues.nats.timer_wheel import of_lease


@virtual
async def test_wrong_host_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong clock of the host has no effect, as the server's clock decides."""
    wall = system_clock.wall
    async with served_nats_broker() as broker:
        monkeypatch.setattr(system_clock, "wall", lambda: wall() + 3600)
        await broker.enqueue([message(), message("late", delay=30)])
        claims = await broker.claim(["q"], 5, lease=30)
        assert [claim.message.id for claim in claims] == ["one"]
        assert abs(claims[0].enqueued_at - wall()) < SOON
        assert await broker.renew(claims, lease=30) == [LeaseStatus.HELD]
        assert await broker.maintain() == MaintenanceStats()


@virtual
async def test_clock_refresh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server's clock is read again after an interval."""
    async with served_nats_broker() as broker:
        clock: Any = broker._clock
        clock._ahead += 500
        await broker.maintain()
        assert clock.now() > system_clock.wall() + 400
        monkeypatch.setattr("background.queues.nats.clock._REFRESH", -1)
        await broker.maintain()
        assert abs(clock.now() - system_clock.wall()) < SOON


@pytest.mark.parametrize("durations", [[6.0, 0.1], [4.0, 6.0, 0.6]])
@virtual
async def test_slow_reading(durations: list[float]) -> None:
    """A reading that took long is repeated, and the fastest one counts."""
    left = list(durations)

    async def read() -> float:
        time = asyncio.get_running_loop().time()
        await asyncio.sleep(left.pop(0))
        return time

    clock = ServerClock(read)
    await clock.read()
    assert left == []
    assert clock.now() - asyncio.get_running_loop().time() == pytest.approx(-durations[-1] / 2)


@virtual
async def test_distant_timers() -> None:
    """Delays of minutes to months end on time, with less precision for longer delays."""
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
            assert [claim.message.id for claim in claims] == [id]
            assert delay <= took < delay * 1.02 + 2
            await finish(broker, claims)
        await asyncio.sleep(100)
        await broker.maintain()
        assert await stored(broker) == EMPTY


@virtual
async def test_many_due_timers() -> None:
    """Many timers that are due at the same time are processed by one call."""
    async with served_nats_broker() as broker:
        for part in range(3):
            await broker.enqueue([message(f"{part}-{n}", delay=10) for n in range(400)])
        await asyncio.sleep(11)
        assert await broker.maintain() == MaintenanceStats(due=1200)
        assert await broker.count(state=JobState.READY) == 1200


@virtual
async def test_limit_of_taken_timers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One call takes a limited number of due timers, and the next one takes the rest.

    Timers that are not processed within their cover time are taken by another process.
    """
    monkeypatch.setattr("background.queues.nats.timer_wheel._AT_A_TIME", 4)
    async with served_nats_broker() as broker:
        for number in range(6):
            await broker.enqueue([message(str(number), delay=10)])
        await asyncio.sleep(11)
        await broker.claim(["none"], 1, lease=30)
        assert await broker.maintain() == MaintenanceStats(due=2)


def test_cover_of_lease_timers() -> None:
    """The cover time of a lease's timer is the time until its end, within limits."""
    covers = [of_lease(100 + lease, "one", 100).cover for lease in (0.01, 1.5, 30)]
    assert covers == [0.25, 1.5, timer_wheel.COVER]


@virtual
async def test_clock_set_back() -> None:
    """Timers are found after the server's clock was set back."""
    async with served_nats_broker() as broker:
        await broker.claim(["q"], 1, lease=30)
        broker._clock._ahead -= 50
        async with served_nats_broker(like=broker) as second:
            second._clock._ahead -= 50
            await second.enqueue([message(delay=5)])
        await asyncio.sleep(6)
        assert await broker.maintain() == MaintenanceStats(due=1)


@virtual
async def test_concurrent_maintenance() -> None:
    """Every due timer is processed by exactly one of two brokers."""
    async with served_nats_broker() as broker, served_nats_broker(like=broker) as second:
        for number in range(5):
            await broker.enqueue([message(f"{number}-{n}", delay=10) for n in range(3)])
        await asyncio.sleep(11)
        stats = await asyncio.gather(broker.maintain(), second.maintain())
        assert sum(part.due for part in stats) == 15
        assert await stored(broker) == {"jobs": 15, "ready": 15, "timers": 0}
        for number in range(5):
            await broker.enqueue([message(f"r-{number}", delay=10)])
        await asyncio.sleep(11)
        wheels: list[Any] = [broker._timers, second._timers]
        taken = await asyncio.gather(*(wheel.take() for wheel in wheels))
        ids = [timer.id for part in taken for timer in part.timers]
        assert sorted(ids) == [f"r-{number}" for number in range(5)]
