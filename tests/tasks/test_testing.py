"""`background.testing`, as people use it in their own tests."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from support.outcomes import HOOKS, JOBS, Flaky, broken, everything_happens, fine, meet_job, nap

import background
from background import (
    JobDead,
    JobEnqueued,
    JobRef,
    Manager,
    ManagerClosed,
    ManagerClosing,
    ManagerState,
    Task,
    TaskAdded,
    TaskEvent,
    TaskStarted,
    TaskSucceeded,
)
from background._support import clock as system_clock
from background.queues.sqlite import SQLiteBroker
from background.testing import (
    RecordingObserver,
    VirtualTimeLoop,
    _hold,
    virtual_time,
    virtual_wall_clock,
)

# RecordingObserver


async def test_recorder_has_every_hook() -> None:
    recorder = RecordingObserver()
    await everything_happens(recorder)
    assert {
        f"on_{subject}_{name}"
        for name in recorder.names()
        for subject in ("task", "job", "manager")
    } >= set(HOOKS)


async def test_recorder_finds_jobs_by_id(recorder: RecordingObserver) -> None:
    """Their own events as well as those of the tasks that ran them."""
    await meet_job(JOBS["gives up"], recorder)
    id = await meet_job(JOBS["succeeds"], recorder)
    assert recorder.names(id) == ["enqueued", "added", "started", "succeeded"]
    (enqueued,) = recorder.of(JobEnqueued, id)
    assert enqueued.job.id == id
    assert recorder.of(JobDead, id) == []
    assert len(recorder.of(JobDead)) == 1
    assert await recorder.wait_for(JobEnqueued, count=2) is enqueued


def test_recorder_finds_a_job_whose_task_has_another_id(recorder: RecordingObserver) -> None:
    """As one has that runs beside an attempt which has lost its lease."""
    job = JobRef(id="7", handler="send", queue="mail", attempt=2, enqueued_at=0.0)
    names = ("id", "name", "kind", "meta", "iteration", "attempt", "time", "duration", "final")
    fields: dict[str, Any] = {**dict.fromkeys(names), "id": "x-1"}
    recorder.on_task_succeeded(TaskSucceeded(**fields, job=job))
    assert recorder.names("7") == recorder.names("x-1") == ["succeeded"]
    assert recorder.names("8") == []


async def test_recorder_names_events(recorder: RecordingObserver) -> None:
    async with Manager(observers=[recorder]) as manager:
        one = manager.run_task(Task(nap, id="one", args=(1,)))
        await manager.run_task(Task(broken, id="two")).wait()
        await one
    assert recorder.names("one") == ["added", "started", "succeeded"]
    assert recorder.names("two") == ["added", "started", "failed"]
    assert recorder.names("three") == []
    assert sorted(recorder.names()) == sorted(
        [*recorder.names("one"), *recorder.names("two"), "closing", "closed"]
    )
    assert len(recorder.events) == len(recorder.names())


async def test_recorder_finds_events_by_class(recorder: RecordingObserver) -> None:
    async with Manager(observers=[recorder]) as manager:
        await manager.run_task(Task(fine, id="one"))
        await manager.run_task(Task(broken, id="two")).wait()
    assert [event.id for event in recorder.of(TaskAdded)] == ["one", "two"]
    assert [event.id for event in recorder.of(TaskAdded, "two")] == ["two"]
    assert len(recorder.of(TaskEvent)) == 6
    assert len(recorder.of(TaskEvent, "one")) == 3
    assert len(recorder.of(ManagerClosing)) == 1
    assert recorder.of(ManagerClosed, "one") == []


async def test_waiting_for_an_event(manager: Manager, recorder: RecordingObserver) -> None:
    manager.after(5, fine)
    began = anyio.current_time()
    event = await recorder.wait_for(TaskSucceeded)
    assert anyio.current_time() - began == pytest.approx(5)
    assert event is recorder.events[-1]


async def test_waiting_for_an_event_that_has_been(
    manager: Manager, recorder: RecordingObserver
) -> None:
    handle = manager.run(fine)
    await handle
    assert (await recorder.wait_for(TaskStarted, id=handle.id)).id == handle.id


async def test_waiting_for_the_nth_event_of_a_task(
    manager: Manager, recorder: RecordingObserver
) -> None:
    manager.every(1, fine)
    handle = manager.every(10, fine)
    event = await recorder.wait_for(TaskStarted, id=handle.id, count=3)
    assert event.id == handle.id
    assert event.iteration == 3


async def test_many_wait_for_different_events(
    manager: Manager, recorder: RecordingObserver
) -> None:
    """Nobody misses an event because another one waits too."""
    found: list[tuple[type, str]] = []

    async def wait_for(kind: Any, id: str) -> None:
        event = await recorder.wait_for(kind, id=id)
        found.append((type(event), event.id))

    async with anyio.create_task_group() as tasks:
        for id in ("one", "two"):
            for kind in (TaskAdded, TaskStarted, TaskSucceeded):
                tasks.start_soon(wait_for, kind, id)
        await anyio.wait_all_tasks_blocked()
        manager.run_task(Task(nap, id="one", args=(1,)))
        manager.run_task(Task(nap, id="two", args=(2,)))
    assert len(set(found)) == 6


# Virtual time


async def test_time_jumps(anyio_backend_name: str) -> None:
    """Waiting for years takes no time, and is over at the right time."""
    real, virtual = time.monotonic(), anyio.current_time()
    await anyio.sleep(365 * 24 * 3600)
    assert anyio.current_time() - virtual == pytest.approx(365 * 24 * 3600)
    assert time.monotonic() - real < 10


async def test_order_of_timers_is_kept() -> None:
    order: list[float] = []

    async def wait(seconds: float) -> None:
        await anyio.sleep(seconds)
        order.append(seconds)

    async with anyio.create_task_group() as tasks:
        for seconds in (3, 0.001, 2, 1e6, 0, 1):
            tasks.start_soon(wait, seconds)
    assert order == [0, 0.001, 1, 2, 3, 1e6]


async def test_time_stands_still_while_there_is_something_to_do() -> None:
    began = anyio.current_time()
    for _ in range(100):
        await anyio.lowlevel.checkpoint()
    assert anyio.current_time() == began


async def test_deadlines_are_virtual() -> None:
    began = anyio.current_time()
    with anyio.move_on_after(60) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert anyio.current_time() - began == pytest.approx(60)


def test_asyncio_time_starts_at_zero_in_each_loop() -> None:
    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        began = loop.time()
        await asyncio.sleep(1000)
        return began, loop.time()

    for _ in range(2):
        assert anyio.run(main, backend="asyncio", backend_options=options("asyncio")) == (0, 1000)


def test_virtual_loop_waits_for_what_has_no_timer() -> None:
    """Without a timer there is nothing to jump to: it waits for threads and sockets as ever."""

    async def main() -> tuple[str, float]:
        done = await anyio.to_thread.run_sync(lambda: "done")
        reader, writer = os.pipe()
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(reader, readable.set)
        os.write(writer, b"x")
        await readable.wait()
        loop.remove_reader(reader)
        os.close(reader)
        os.close(writer)
        return done, loop.time()

    assert anyio.run(main, backend_options=options("asyncio")) == ("done", 0)


def test_what_is_ready_goes_before_the_jump() -> None:
    """A socket that has something to say is heard before time passes."""

    async def main() -> float:
        reader, writer = os.pipe()
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        os.write(writer, b"x")
        loop.add_reader(reader, readable.set)
        try:
            async with asyncio.timeout(60):
                await readable.wait()
            return loop.time()
        finally:
            loop.remove_reader(reader)
            os.close(reader)
            os.close(writer)

    assert anyio.run(main, backend_options=options("asyncio")) == 0


def options(backend: Any) -> dict[str, Any]:
    return virtual_time(backend)[1]


def test_virtual_time_names_the_backend_and_makes_new_options() -> None:
    for backend in ("asyncio", "trio"):
        name, first = virtual_time(backend)
        assert name == backend
        assert anyio.run(nap, 1000, backend=backend, backend_options=first) is None
    assert options("trio")["clock"] is not options("trio")["clock"]


# The wall clock


async def test_wall_clock_follows_the_event_loop(recorder: RecordingObserver) -> None:
    start = datetime(2030, 1, 1, 2, 59, 30, tzinfo=UTC)
    with virtual_wall_clock(start):
        async with Manager(observers=[recorder]) as manager:
            manager.cron("0 3 * * *", fine)
            await anyio.sleep(2 * 24 * 3600)
    started = [datetime.fromtimestamp(event.time, UTC) for event in recorder.of(TaskStarted)]
    assert started == [start + timedelta(seconds=30), start + timedelta(days=1, seconds=30)]


async def test_wall_clock_is_restored() -> None:
    """Also when the block fails, and each of two that nest restores the one before it."""
    with virtual_wall_clock(datetime(2030, 1, 1, tzinfo=UTC)):
        with virtual_wall_clock(datetime(1999, 1, 1, tzinfo=UTC)):
            assert system_clock.wall() < datetime(2000, 1, 1, tzinfo=UTC).timestamp()
        assert system_clock.wall() == datetime(2030, 1, 1, tzinfo=UTC).timestamp()
    assert system_clock.wall is time.time

    def fail() -> None:
        with virtual_wall_clock(datetime(2030, 1, 1, tzinfo=UTC)):
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert system_clock.wall is time.time


# Fixtures


async def test_manager_of_the_fixture(manager: Manager, recorder: RecordingObserver) -> None:
    assert manager.state is ManagerState.RUNNING
    assert manager.name == "test"
    await manager.run_task(Task(Flaky(1), retry=2))
    assert recorder.names() == ["added", "started", "retrying", "succeeded"]


THEIR_CONFTEST = """
import pytest

from background.testing import virtual_time

pytest_plugins = ["background.testing"]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_time(request.param)
"""

THEIR_TESTS = """
import anyio
import pytest

from background import ManagerState, TaskCancelled
from background.testing import RecordingObserver

kept = []


@pytest.mark.anyio
async def test_run(manager, recorder):
    assert isinstance(recorder, RecordingObserver)
    await manager.after(3600, anyio.sleep, 3600)
    assert recorder.names() == ["added", "started", "succeeded"]


@pytest.mark.anyio
async def test_left_over(manager, recorder):
    kept.append((manager, recorder))
    manager.run(anyio.sleep_forever)
    manager.every(60, anyio.sleep, 1)
    await anyio.sleep(90)


def test_closed():
    assert len(kept) == 2
    for manager, recorder in kept:
        assert manager.state is ManagerState.CLOSED
        assert recorder.names()[-1] == "closed"
        reasons = {event.reason for event in recorder.of(TaskCancelled)}
        assert reasons == {"shutdown", "stopped"}


@pytest.mark.anyio
async def test_failing(manager):
    handle = manager.run(lambda: 1 / 0)
    assert manager.count() == 2
"""


def test_fixtures_in_somebody_elses_tests(tmp_path: Path) -> None:
    """They are loaded by `pytest_plugins`, work with anyio's plugin, and close without waiting."""
    (tmp_path / "conftest.py").write_text(THEIR_CONFTEST, "utf-8")
    (tmp_path / "test_theirs.py").write_text(THEIR_TESTS, "utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-W", "error", "--tb=short", "test_theirs.py"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(background.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "2 failed, 5 passed" in done.stdout, done.stdout + done.stderr
    assert "assert 1 == 2" in done.stdout


async def test_virtual_time_waits_for_the_sync_functions_of_tasks(manager: Manager) -> None:
    """A tick is not missed because its thread takes a moment of real time."""
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(time.monotonic())

    began = anyio.current_time()
    manager.every(60, tick)
    await anyio.sleep(3601)
    assert len(ticks) == 61
    assert anyio.current_time() - began == 3601
    assert await manager.run_task(Task(lambda: time.sleep(0.02) or 5, timeout=5)) == 5


async def test_virtual_time_waits_for_sqlite_as_long_as_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow a disk is, no timer runs out meanwhile."""
    impatient = partial(_hold, patience=0.001)
    monkeypatch.setattr(system_clock, "on_thread", impatient)
    broker = SQLiteBroker(tmp_path / "jobs.db")
    began = anyio.current_time()
    with anyio.fail_after(1):
        await broker.open()
        try:
            await broker._file.write(lambda db: time.sleep(0.02))
        finally:
            await broker.close()
    assert anyio.current_time() == began


async def test_virtual_time_goes_on_while_a_function_waits_for_it(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_clock, "on_thread", partial(_hold, patience=0.001))
    late = threading.Event()

    async def let_go() -> None:
        await anyio.sleep(60)
        late.set()

    manager.run(let_go)
    assert await manager.run_task(Task(lambda: late.wait(10))) is True
