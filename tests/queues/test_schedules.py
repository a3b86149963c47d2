"""Schedules that enqueue jobs, in one or several processes."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.brokers.faulty import FaultyBroker

from background import Manager, Schedule, TaskKind, cron, every
from background._support import clock
from background.queues import (
    BrokerUnavailableError,
    InvalidPayloadError,
    JobQueue,
    JobState,
    PayloadTooLargeError,
    QueueError,
    chain,
)
from background.queues._enqueue.schedules import _id_of
from background.queues._enqueue.ticker import latest
from background.queues.abc import Message
from background.queues.memory import MemoryBroker

PRAGUE = ZoneInfo("Europe/Prague")
TOKYO = ZoneInfo("Asia/Tokyo")  # loaded here, as that blocks an event loop
START = datetime(2030, 1, 1, tzinfo=UTC).timestamp()  # as in support/brokers/kinds.py


@asynccontextmanager
async def process(
    broker: FaultyBroker, ran: list[float] | None, *schedules: Schedule, **options: Any
) -> AsyncIterator[tuple[Manager, JobQueue]]:
    """Run a manager, a queue and a worker like a separate process, and record when jobs ran."""
    async with Manager(**options) as manager, JobQueue(broker) as jobs:

        @jobs.handler(name="record", store_result=False)
        async def record(label: str = "") -> None:
            if ran is not None:
                ran.append(round(clock.wall() - START, 3))

        for schedule in schedules:
            jobs.schedule(schedule, record.job())
        await jobs.start(manager)
        yield manager, jobs


async def test_every_tick_once(broker: FaultyBroker, caplog: pytest.LogCaptureFixture) -> None:
    """All processes together enqueue every tick once, and don't log duplicates."""
    ran: list[float] = []
    async with (
        process(broker, ran, every(60)),
        process(broker, ran, every(60), every(60)) as (manager, jobs),
        Manager() as second_manager,
    ):
        await jobs.start(manager)
        await jobs.start(second_manager)
        await anyio.sleep(200)
    assert ran == [60, 120, 180]
    assert caplog.text == ""
    assert await broker.count() == 3


async def _noop() -> None: ...


async def test_schedules_with_different_options(broker: FaultyBroker) -> None:
    """Two schedules of one handler with different options are different schedules."""
    async with Manager() as manager, JobQueue(broker) as jobs:
        handler = jobs.handler(name="h")(_noop)
        for queue in ("a", "b"):
            jobs.schedule(every(60), handler.options(queue=queue).job())
        await jobs.start(manager, ["a"])
        await anyio.sleep(61)
        assert [await broker.count(queue=queue) for queue in ("a", "b")] == [1, 1]


def test_expiry_within_jitter() -> None:
    """A schedule whose jitter may exceed the expiry of its jobs is rejected."""
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="h", expires=30)(_noop)
    jobs.schedule(every(60, jitter=20), handler.job())
    with pytest.raises(ValueError, match="expires must be more than the delay"):
        jobs.schedule(every(60, jitter=60), handler.job())


async def test_schedule_after_loops_stopped(broker: FaultyBroker) -> None:
    """A schedule that is added while one manager's loops are stopped runs in the other one."""
    async with Manager() as stopped, JobQueue(broker) as jobs, Manager() as manager:
        handler = jobs.handler(name="h")(_noop)
        for host in (stopped, manager):
            await jobs.start(host)
        await stopped.stop_loops()
        jobs.schedule(every(60), handler.job())
        await anyio.sleep(61)
        assert await broker.count() == 1


async def test_times(broker: FaultyBroker) -> None:
    """Ticks have the times of the clock, regardless of when the process started."""
    ran: list[float] = []
    unopened = JobQueue(broker)
    unopened.schedule(every(90), unopened.handler(name="record")(_noop).job())
    assert await broker.count() == 0
    await anyio.sleep(7)
    async with process(broker, ran, every(20), cron("*/2 * * * *")):
        await anyio.sleep(120)
    assert ran == [20, 40, 60, 80, 100, 120, 120]


async def test_schedule_of_running_worker(broker: FaultyBroker) -> None:
    """A schedule that is added to a queue with a running worker enqueues its ticks."""
    ran: list[float] = []
    async with process(broker, ran) as (_, jobs):
        async with Manager() as closed:
            await jobs.start(closed)
        handler = jobs._handlers["record"]
        jobs.schedule(every(10), handler.job("x"))
        jobs.schedule(cron("* * * * *"), handler.job(label="y"))
        await anyio.sleep(61)
        assert ran == [10, 20, 30, 40, 50, 60, 60]
        infos = [info async for info in jobs.list()]
        assert {info.args[0] for info in infos if info.args} == {"x"}
        assert [info.kwargs for info in infos if not info.args] == [{"label": "y"}]


async def test_different_arguments(broker: FaultyBroker) -> None:
    """Schedules with different arguments enqueue different jobs."""
    async with process(broker, None) as (_, jobs):
        handler = jobs._handlers["record"]
        for args in (["a"], ["b"], ["a"]):
            jobs.schedule(every(10), handler.job(*args))
        await anyio.sleep(11)
        assert await jobs.count() == 2


async def test_cron_time_zone(broker: FaultyBroker) -> None:
    """A cron schedule has the times of its time zone."""
    ran: list[float] = []
    async with process(broker, ran) as (_, jobs):
        jobs.schedule(cron("5 9 * * *", tz=TOKYO.key), jobs._handlers["record"].job())
        await anyio.sleep(400)
    assert ran == [300]


async def test_late_clock(broker: FaultyBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose clock is late doesn't enqueue a tick of another process again."""
    ahead = clock.wall
    async with process(broker, None, every(60)):
        await anyio.sleep(100)
        assert await broker.count() == 1
        monkeypatch.setattr(clock, "wall", lambda: ahead() - 50)
        async with process(broker, None, every(60)):
            await anyio.sleep(15)  # to one minute by this clock
            assert await broker.count() == 1
            monkeypatch.setattr(clock, "wall", ahead)


async def test_missed_ticks(broker: FaultyBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a sleep of the host, the latest of the missed ticks is enqueued."""
    ran: list[float] = []
    async with process(broker, ran, every(600)):
        await anyio.sleep(590)
        real = clock.wall
        monkeypatch.setattr(clock, "wall", lambda: real() + 3000)  # the host was asleep
        await anyio.sleep(300)
    assert ran == [3600]
    monkeypatch.setattr(clock, "wall", real)


async def test_broker_outage(broker: FaultyBroker, caplog: pytest.LogCaptureFixture) -> None:
    """A tick is enqueued late if the broker is unavailable at its time."""
    caplog.set_level(logging.INFO, "background")
    ran: list[float] = []
    async with process(broker, ran, every(60)):
        await anyio.sleep(59)
        broker.down.add("enqueue")
        await anyio.sleep(5)
        broker.down.clear()
        await anyio.sleep(60)
    assert len(ran) == 2
    assert 64 <= ran[0] < 68
    assert ran[1] == 120
    assert "enqueueing on a schedule: enqueue: no broker; trying again" in caplog.text
    assert "enqueueing on a schedule: works again" in caplog.text


@pytest.mark.parametrize("how", ["shutdown", "exit"])
async def test_close_during_outage(
    broker: FaultyBroker, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing doesn't wait for a tick that can't be enqueued."""
    caplog.set_level(logging.INFO, "background")
    async with process(broker, None, every(60)) as (manager, _):
        await anyio.sleep(59)
        broker.down.add("enqueue")
        await anyio.sleep(30)
        assert len(manager.tasks(TaskKind.LOOP)) == 1
        began = anyio.current_time()
        if how == "shutdown":
            manager.request_shutdown()
            await manager.stop_loops()
            assert manager.tasks(TaskKind.LOOP) == []
    assert anyio.current_time() - began < 5
    assert "enqueueing on a schedule: works again" not in caplog.text
    assert await broker.real.count() == 0


async def test_queue_exit(broker: FaultyBroker) -> None:
    """A schedule stops when its queue is exited, and makes up a tick when it starts again."""
    async with Manager() as manager:
        async with JobQueue(broker) as jobs:
            jobs.schedule(every(60), jobs.handler(name="record")(_noop).job())
            await jobs.start(manager)
            await anyio.sleep(61)
        await anyio.sleep(120)
        assert manager.tasks(TaskKind.LOOP) == []
        async with jobs:
            await jobs.start(manager)
            await anyio.sleep(60)
        assert await broker.count() == 3
    assert await broker.count(state=JobState.SUCCEEDED) == 3


def _length(text: str) -> int:
    return len(text)


def _half(number: float) -> float:
    return number / 2


def test_invalid_schedules() -> None:
    """Invalid schedules, jobs, options and arguments are rejected."""
    jobs = JobQueue(MemoryBroker())

    @jobs.handler(name="h")
    async def handler(number: int) -> None: ...

    with pytest.raises(ValueError, match="schedule: its seconds"):
        jobs.schedule(every(0.05), handler.job(1))
    with pytest.raises(ValueError, match="schedule must be"):
        jobs.schedule(60, handler.job(1))  # type: ignore[arg-type]
    for job in ("h", handler, chain(handler.job(1)), None):
        with pytest.raises(TypeError, match=r"job must be made by handler\.job"):
            jobs.schedule(every(60), job)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at can't be given"):
        jobs.schedule(every(60), handler.options(at=5).job(1))
    with pytest.raises(PayloadTooLargeError):
        jobs.schedule(every(60), jobs.handler(name="text")(_length).job("x" * 2_000_000))
    with pytest.raises(InvalidPayloadError, match="be sent as JSON"):
        jobs.schedule(cron("* * * * *"), jobs.handler(name="float")(_half).job(float("inf")))
    assert jobs._schedules == []


@given(st.floats(0.1, 1e6), st.floats(0, 4e9))
def test_aligned_ticks(seconds: float, wall: float) -> None:
    """Ticks are in ascending order, at multiples of the interval."""
    schedule = every(seconds)
    tick = schedule.after(wall)
    assert wall < tick <= wall + seconds * 1.001 + 1e-6
    assert schedule.after(tick) > tick
    assert abs(tick / seconds - round(tick / seconds)) < 1e-3


def test_tick_ids() -> None:
    """A tick's id depends on its job's arguments, and fits into a job's id."""
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="x" * 128)(_accept)
    schedule = every(0.1)
    id = _id_of(schedule, handler.job(1, a=1))
    assert id == _id_of(schedule, handler.job(1, a=1))
    assert id != _id_of(schedule, handler.job(1, a=2))
    assert len(f"{id}..{schedule.after(4e9):.3f}") < 128


async def _accept(number: int, a: int) -> None: ...


async def test_jitter(broker: FaultyBroker) -> None:
    """A tick's jitter is the same in all processes, as its id determines it."""
    ran: list[float] = []
    async with (
        process(broker, ran, every(60, jitter=30)),
        process(broker, ran, every(60, jitter=30)),
    ):
        await anyio.sleep(180)
    assert len(ran) in (2, 3)
    assert all(0 < time % 60 < 30 for time in ran)


@pytest.mark.parametrize("body", [b'{"args":[]}', b'{"args":["other"]}', b"{"])
async def test_taken_tick(
    broker: FaultyBroker, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    """A tick whose id a different job has is logged as an error, once for each tick."""
    async with process(broker, [], every(60)) as (_, jobs):
        id = f"{_id_of(every(60), jobs._handlers['record'].job())}..{START + 60:.3f}"
        handler = "other" if b"[]" in body else "record"
        taken = Message(id, handler, "elsewhere", body, 3600, 3600)
        assert await broker.enqueue([taken]) == [True]
        await anyio.sleep(200)
        assert [job.id async for job in jobs.list(state=JobState.READY)] == [id]
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert error.getMessage() == (
        f"schedule of record: no job is enqueued, because another job has the id {id}"
    )


async def test_tick_of_newer_version(
    broker: FaultyBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """A tick that a newer version of the library has enqueued counts as enqueued."""
    ran: list[float] = []
    async with process(broker, ran, every(60)) as (_, jobs):
        id = f"{_id_of(every(60), jobs._handlers['record'].job())}..{START + 60:.3f}"
        await broker.enqueue([Message(id, "record", "elsewhere", b"{}", 3600, 3600)])
        broker.fail("get", error=BrokerUnavailableError("no broker"))
        broker.fail("get", error=QueueError("jobs of version 2"))
        await anyio.sleep(130)
    assert ran == [120]
    assert not [record for record in caplog.records if record.levelno == logging.ERROR]


async def test_repeated_tick(broker: FaultyBroker) -> None:
    """A tick isn't enqueued again, as after the clock was set back."""
    async with process(broker, None, every(60)):
        await anyio.sleep(90)
    calls = broker.calls["enqueue"]
    async with process(broker, None, every(60)):
        await anyio.sleep(10)
    assert broker.calls["enqueue"] == calls == 1


# Missed ticks


async def restart_after(
    broker: FaultyBroker, seconds: float, *schedules: Schedule, **options: Any
) -> list[float]:
    """Run a process for 90 s, and another one after an outage; return when jobs ran after it."""
    for wait in (90, 0):
        if not wait:
            await anyio.sleep(seconds)
        ran: list[float] = []
        async with process(broker, ran) as (_, jobs):
            for schedule in schedules:
                jobs.schedule(schedule, jobs._handlers["record"].job(), **options)
            await anyio.sleep(wait or 9)
    return ran


@pytest.mark.parametrize(
    ("missed", "grace", "jobs"),
    [("latest", 3600, 1), ("all", 3600, 4), ("all", 1000, 2), ("skip", 3600, 0), ("latest", 90, 0)],
)
async def test_outage(
    broker: FaultyBroker, caplog: pytest.LogCaptureFixture, missed: str, grace: float, jobs: int
) -> None:
    """Ticks that all processes missed are made up as `missed` and `grace` say, once."""
    caplog.set_level(logging.INFO, "background")
    schedules = [every(600)] * (2 if jobs else 1)
    ran = await restart_after(broker, 2500, *schedules, missed=missed, grace=grace)
    assert ran == [2590] * jobs
    assert await broker.count() == jobs
    assert caplog.text.count("were missed") >= 1
    if not jobs:
        assert caplog.text.count("they are skipped") == 1


async def test_order_of_missed_ticks(broker: FaultyBroker) -> None:
    """Missed ticks are enqueued in their order."""
    await restart_after(broker, 2500, cron("*/10 * * * *"), missed="all")
    ids = [job.message.id async for job in broker.scan()]
    assert [float(id.rsplit(".", 2)[1]) - START for id in ids] == [600, 1200, 1800, 2400]


async def test_new_schedule(broker: FaultyBroker) -> None:
    """A schedule that is new or has changed makes up no ticks from before its first start."""
    await anyio.sleep(700)
    async with process(broker, None, every(600)):
        await anyio.sleep(1)
    await anyio.sleep(700)
    async with process(broker, None, every(601)):
        await anyio.sleep(1)
    assert await broker.count() == 0


@pytest.mark.parametrize("name", ["enqueue", "advance_schedule"])
async def test_death_between_steps(broker: FaultyBroker, name: str) -> None:
    """A tick whose process dies before or after enqueueing it is enqueued once."""
    ran: list[float] = []
    async with process(broker, ran, every(600)):
        await anyio.sleep(590)
        broker.lose(name, 1000)
        await anyio.sleep(20)
    broker._lost.clear()
    async with process(broker, ran, every(600)), process(broker, ran, every(600)):
        await anyio.sleep(10)
    assert len(ran) == 1
    assert await broker.count() == 1


async def test_start_storm(broker: FaultyBroker) -> None:
    """Ten processes that start at once make up a tick once."""
    async with process(broker, None, every(600)):
        await anyio.sleep(1)
    await anyio.sleep(900)
    ran: list[float] = []
    async with AsyncExitStack() as stack:
        for _ in range(10):
            await stack.enter_async_context(process(broker, ran, every(600)))
        await anyio.sleep(5)
    assert ran == [901]


async def test_retention_of_made_up_ticks(broker: FaultyBroker) -> None:
    """The job of a tick is stored for longer than the tick can be made up."""
    async with process(broker, None) as (_, jobs):
        handler = jobs.handler(name="short", retention=0)(_noop)
        jobs.schedule(every(60), handler.job(), grace=600)
        await anyio.sleep(60 + 600)
        assert await jobs.get(f"{_id_of(every(60), handler.job())}..{START + 60:.3f}")


async def test_clock_far_ahead(broker: FaultyBroker, caplog: pytest.LogCaptureFixture) -> None:
    """A tick that a wrong clock stored in the future doesn't stop a schedule."""
    jobs = JobQueue(broker)
    id = _id_of(every(60), jobs.handler(name="record")(_noop).job())
    await broker.advance_schedule(id, None, START + 1e6, retention=1e7)
    ran: list[float] = []
    async with process(broker, ran, every(60)):
        await anyio.sleep(130)
    assert ran[-2:] == [60, 120]
    assert caplog.text.count("in the future here") == 1


async def test_missed_daylight_saving() -> None:
    """The latest tick across a change to daylight saving is found."""
    schedule = cron("30 2 * * *", tz=PRAGUE.key)
    since = datetime(2030, 3, 30, 12, tzinfo=UTC).timestamp()
    tick = latest(schedule.after, since, since + 86_400)
    assert tick == datetime(2030, 3, 31, 1, tzinfo=UTC).timestamp()


def test_missed_ticks_before_repeated_hour() -> None:
    """The latest tick is found from the hour that is repeated in autumn."""
    schedule = cron("30,45 2 * * *", tz=PRAGUE.key)
    now = datetime(2026, 10, 25, 1, 31, tzinfo=UTC).timestamp()
    assert latest(schedule.after, now - 3600 * 2.5, now) == now - 46 * 60


async def test_corrected_clock(broker: FaultyBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks go on at once when a clock that was days ahead is set back."""
    ran: list[float] = []
    real = clock.wall
    async with process(broker, ran, every(600)):
        monkeypatch.setattr(clock, "wall", lambda: real() + 2 * 86_400)
        await anyio.sleep(1250)
        monkeypatch.setattr(clock, "wall", real)
        await anyio.sleep(1250)
    assert [time for time in ran if time < 86_400] == [1800, 2400]


@given(st.floats(0.1, 1e5), st.floats(0, 1e5), st.floats(0, 1e5))
def test_latest_tick(seconds: float, since: float, length: float) -> None:
    """The latest tick is followed by none before the end."""
    after = every(seconds).after
    tick = latest(after, since, since + length)
    assert after(since if tick is None else tick) > since + length
    assert tick is None or since < tick <= since + length


def test_invalid_missed() -> None:
    """Invalid values of `missed` and `grace` are rejected."""
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="h")(_noop)
    with pytest.raises(ValueError, match='missed must be "latest", "all" or "skip"'):
        jobs.schedule(every(60), handler.job(), missed="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="grace"):
        jobs.schedule(every(60), handler.job(), grace=-1)
