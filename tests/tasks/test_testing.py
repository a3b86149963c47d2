"""The test utilities in `background.testing`."""

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
from support.outcomes import HOOKS, JOBS, Flaky, broken, call_every_hook, fine, nap, play_job

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
    virtual_time,
    virtual_wall_clock,
)
from background.testing._time import hold

# RecordingObserver


async def test_recorder_hooks() -> None:
    """The recorder implements all hooks."""
    recorder = RecordingObserver()
    await call_every_hook(recorder)
    assert {
        f"on_{subject}_{name}"
        for name in recorder.names()
        for subject in ("task", "job", "manager")
    } >= set(HOOKS)


async def test_recorder_job_events(recorder: RecordingObserver) -> None:
    """The recorder finds events of a job, and of the tasks that ran it, by the job's id."""
    await play_job(JOBS["gives up"], recorder)
    id = await play_job(JOBS["succeeds"], recorder)
    assert recorder.names(id) == ["enqueued", "added", "started", "succeeded"]
    (enqueued,) = recorder.of(JobEnqueued, id)
    assert enqueued.job.id == id
    assert recorder.of(JobDead, id) == []
    assert len(recorder.of(JobDead)) == 1
    assert await recorder.wait_for(JobEnqueued, count=2) is enqueued


def test_recorder_task_with_other_id(recorder: RecordingObserver) -> None:
    """The recorder finds a job's events even if its task has a different id.

    A task has one if it runs while an attempt that lost its lease still runs.
    """
    job = JobRef(id="7", handler="send", queue="mail", attempt=2, enqueued_at=0.0)
    names = ("id", "name", "kind", "meta", "iteration", "attempt", "time", "duration", "final")
    fields: dict[str, Any] = {**dict.fromkeys(names), "id": "x-1"}
    recorder.on_task_succeeded(TaskSucceeded(**fields, job=job))
    assert recorder.names("7") == recorder.names("x-1") == ["succeeded"]
    assert recorder.names("8") == []


async def test_recorder_names(recorder: RecordingObserver) -> None:
    """`names()` returns the names of all events, or of those with an id."""
    async with Manager(observers=[recorder]) as manager:
        handle = manager.run_task(Task(nap, id="one", args=(1,)))
        await manager.run_task(Task(broken, id="two")).wait()
        await handle
    assert recorder.names("one") == ["added", "started", "succeeded"]
    assert recorder.names("two") == ["added", "started", "failed"]
    assert recorder.names("three") == []
    assert sorted(recorder.names()) == sorted(
        [*recorder.names("one"), *recorder.names("two"), "closing", "closed"]
    )
    assert len(recorder.events) == len(recorder.names())


async def test_recorder_of(recorder: RecordingObserver) -> None:
    """`of()` returns events by class and id."""
    async with Manager(observers=[recorder]) as manager:
        await manager.run_task(Task(fine, id="one"))
        await manager.run_task(Task(broken, id="two")).wait()
    assert [event.id for event in recorder.of(TaskAdded)] == ["one", "two"]
    assert [event.id for event in recorder.of(TaskAdded, "two")] == ["two"]
    assert len(recorder.of(TaskEvent)) == 6
    assert len(recorder.of(TaskEvent, "one")) == 3
    assert len(recorder.of(ManagerClosing)) == 1
    assert recorder.of(ManagerClosed, "one") == []


async def test_wait_for_event(manager: Manager, recorder: RecordingObserver) -> None:
    """`wait_for()` waits until an event arrives."""
    manager.after(5, fine)
    began = anyio.current_time()
    event = await recorder.wait_for(TaskSucceeded)
    assert anyio.current_time() - began == pytest.approx(5)
    assert event is recorder.events[-1]


async def test_wait_for_past_event(manager: Manager, recorder: RecordingObserver) -> None:
    """`wait_for()` returns an event that was recorded earlier."""
    handle = manager.run(fine)
    await handle
    assert (await recorder.wait_for(TaskStarted, id=handle.id)).id == handle.id


async def test_wait_for_count(manager: Manager, recorder: RecordingObserver) -> None:
    """`wait_for()` counts the events of one task only."""
    manager.every(1, fine)
    handle = manager.every(10, fine)
    event = await recorder.wait_for(TaskStarted, id=handle.id, count=3)
    assert event.id == handle.id
    assert event.iteration == 3


async def test_concurrent_waiters(manager: Manager, recorder: RecordingObserver) -> None:
    """Concurrent waiters of different events get all of them."""
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


async def test_virtual_sleep(anyio_backend_name: str) -> None:
    """A long sleep takes no real time and ends at the right virtual time."""
    real, virtual = time.monotonic(), anyio.current_time()
    await anyio.sleep(365 * 24 * 3600)
    assert anyio.current_time() - virtual == pytest.approx(365 * 24 * 3600)
    assert time.monotonic() - real < 10


async def test_timer_order() -> None:
    """Timers fire in the order of their deadlines."""
    order: list[float] = []

    async def wait(seconds: float) -> None:
        await anyio.sleep(seconds)
        order.append(seconds)

    async with anyio.create_task_group() as tasks:
        for seconds in (3, 0.001, 2, 1e6, 0, 1):
            tasks.start_soon(wait, seconds)
    assert order == [0, 0.001, 1, 2, 3, 1e6]


async def test_no_jump_while_busy() -> None:
    """Virtual time does not advance while tasks can run."""
    began = anyio.current_time()
    for _ in range(100):
        await anyio.lowlevel.checkpoint()
    assert anyio.current_time() == began


async def test_virtual_deadline() -> None:
    """Deadlines use virtual time."""
    began = anyio.current_time()
    with anyio.move_on_after(60) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert anyio.current_time() - began == pytest.approx(60)


def test_asyncio_time_starts_at_zero() -> None:
    """The virtual time of every asyncio event loop starts at zero."""

    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        began = loop.time()
        await asyncio.sleep(1000)
        return began, loop.time()

    for _ in range(2):
        assert anyio.run(main, backend="asyncio", backend_options=make_options("asyncio")) == (
            0,
            1000,
        )


def test_wait_without_timers() -> None:
    """Without timers the event loop waits for threads and sockets in real time."""

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

    assert anyio.run(main, backend_options=make_options("asyncio")) == ("done", 0)


def test_ready_socket_before_jump() -> None:
    """A socket that is ready is handled before time advances."""

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

    assert anyio.run(main, backend_options=make_options("asyncio")) == 0


def make_options(backend: Any) -> dict[str, Any]:
    return virtual_time(backend)[1]


def test_virtual_time_options() -> None:
    """`virtual_time()` returns the backend's name and new options for every call."""
    for backend in ("asyncio", "trio"):
        name, first = virtual_time(backend)
        assert name == backend
        assert anyio.run(nap, 1000, backend=backend, backend_options=first) is None
    assert make_options("trio")["clock"] is not make_options("trio")["clock"]


# Wall clock


async def test_virtual_wall_clock(recorder: RecordingObserver) -> None:
    """The virtual wall clock follows the time of the event loop."""
    start = datetime(2030, 1, 1, 2, 59, 30, tzinfo=UTC)
    with virtual_wall_clock(start):
        async with Manager(observers=[recorder]) as manager:
            manager.cron("0 3 * * *", fine)
            await anyio.sleep(2 * 24 * 3600)
    started = [datetime.fromtimestamp(event.time, UTC) for event in recorder.of(TaskStarted)]
    assert started == [start + timedelta(seconds=30), start + timedelta(days=1, seconds=30)]


async def test_wall_clock_restored() -> None:
    """The previous wall clock is restored after nested blocks and after an error."""
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


async def test_manager_fixture(manager: Manager, recorder: RecordingObserver) -> None:
    """The `manager` fixture is a running manager observed by the `recorder` fixture."""
    assert manager.state is ManagerState.RUNNING
    assert manager.name == "test"
    await manager.run_task(Task(Flaky(1), retry=2))
    assert recorder.names() == ["added", "started", "retrying", "succeeded"]


USER_CONFTEST = """
import pytest

from background.testing import virtual_time

pytest_plugins = ["background.testing"]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_time(request.param)
"""

USER_TESTS = """
import anyio
import pytest

from background import ManagerState, TaskCancelled
from background.testing import RecordingObserver

used = []


@pytest.mark.anyio
async def test_run(manager, recorder):
    assert isinstance(recorder, RecordingObserver)
    await manager.after(3600, anyio.sleep, 3600)
    assert recorder.names() == ["added", "started", "succeeded"]


@pytest.mark.anyio
async def test_unfinished_tasks(manager, recorder):
    used.append((manager, recorder))
    manager.run(anyio.sleep_forever)
    manager.every(60, anyio.sleep, 1)
    await anyio.sleep(90)


def test_closed():
    assert len(used) == 2
    for manager, recorder in used:
        assert manager.state is ManagerState.CLOSED
        assert recorder.names()[-1] == "closed"
        reasons = {event.reason for event in recorder.of(TaskCancelled)}
        assert reasons == {"shutdown", "stopped"}


@pytest.mark.anyio
async def test_failing(manager):
    handle = manager.run(lambda: 1 / 0)
    assert manager.count() == 2
"""


def test_fixtures_as_plugin(tmp_path: Path) -> None:
    """The fixtures work as a pytest plugin of another project and close without waiting."""
    (tmp_path / "conftest.py").write_text(USER_CONFTEST, "utf-8")
    (tmp_path / "test_user.py").write_text(USER_TESTS, "utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-p", "no:asyncio", "-W", "error", "--tb=short", "test_user.py"),
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


async def test_virtual_time_waits_for_threads(manager: Manager) -> None:
    """Virtual time stands still while sync functions of tasks run, so no tick is missed."""
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(time.monotonic())

    began = anyio.current_time()
    manager.every(60, tick)
    await anyio.sleep(3601)
    assert len(ticks) == 61
    assert anyio.current_time() - began == 3601
    assert await manager.run_task(Task(lambda: time.sleep(0.02) or 5, timeout=5)) == 5


async def test_virtual_time_waits_for_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Virtual time stands still during database operations, however slow the disk is."""
    monkeypatch.setattr(system_clock, "on_thread", partial(hold, patience=0.001))
    broker = SQLiteBroker(tmp_path / "jobs.db")
    began = anyio.current_time()
    with anyio.fail_after(1):
        await broker.open()
        try:
            await broker._file.write(lambda db: time.sleep(0.02))
        finally:
            await broker.close()
    assert anyio.current_time() == began


async def test_virtual_time_resumes(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time advances again if a sync function waits for a timer."""
    monkeypatch.setattr(system_clock, "on_thread", partial(hold, patience=0.001))
    released = threading.Event()

    async def release() -> None:
        await anyio.sleep(60)
        released.set()

    manager.run(release)
    assert await manager.run_task(Task(lambda: released.wait(10))) is True
