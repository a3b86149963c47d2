"""A SQLite file that several processes use."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.brokers.sqlite import message, messages, thread_of
from support.processes.process import PROGRAMS, running
from support.time import SOON

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.sqlite import SQLiteBroker, schema, transitions
from background.queues.sqlite import broker as module
from background.queues.sqlite.library import newest

SCRIPT = PROGRAMS / "sqlite_worker.py"


@pytest.mark.realtime
@pytest.mark.filterwarnings("ignore:several connections")
async def test_jobs_across_processes(path: Path, anyio_backend_name: str) -> None:
    """Every job is claimed by exactly one of several processes."""
    ids = [f"{number:04}" for number in range(200)]
    broker = SQLiteBroker(path)
    await broker.open()
    command = SCRIPT, "work", path, anyio_backend_name
    with running(*command) as one, running(*command) as two, running(*command) as three:
        for process in (one, two, three):
            await anyio.to_thread.run_sync(process.wait_for, "ready")
        await broker.enqueue(messages(200))
        await broker.enqueue([message(f"end {number}", queue="end") for number in range(3)])
        seen: list[str] = []
        for process in (one, two, three):
            line = await anyio.to_thread.run_sync(process.wait_for, "claimed ")
            seen += json.loads(line.removeprefix("claimed "))
            assert await anyio.to_thread.run_sync(process.wait) == 0
    assert sorted(seen) == [*ids, "end 0", "end 1", "end 2"]
    assert await broker.count(state=JobState.SUCCEEDED) == 203
    await broker.close()


@pytest.mark.realtime
async def test_missed_ticks_after_kill(path: Path) -> None:
    """Ticks after those of a process that was killed are enqueued once each by the next one."""
    command = PROGRAMS / "scheduled.py", path

    async def ticks() -> list[float]:
        return [float(job.message.id.rsplit("..", 1)[1]) async for job in broker.scan()]

    broker = SQLiteBroker(path)
    await broker.open()
    with running(*command) as process:
        await anyio.to_thread.run_sync(process.wait_for, "tick")
        process.send(signal.SIGKILL)
        await anyio.to_thread.run_sync(process.wait)
    latest = max(await ticks())
    (job, *_) = [job async for job in broker.scan()]
    schedule = job.message.id.rsplit("..", 1)[0]
    # As if the next two ticks had been missed.
    await broker.advance_schedule(schedule, latest, latest - 5, retention=3600)
    with running(*command) as process:
        await anyio.to_thread.run_sync(process.wait_for, "tick")
        await anyio.to_thread.run_sync(process.wait_for, "tick")
    found = await ticks()
    assert {latest - 4.5, latest - 4} <= set(found)
    assert len(found) == len(set(found))
    await broker.close()


@pytest.mark.realtime
@pytest.mark.filterwarnings("ignore:several connections")
async def test_changes_by_another_connection(path: Path) -> None:
    """Changes by another connection wake waiters for work and for the end of a job."""
    broker, second = SQLiteBroker(path), SQLiteBroker(path)
    await broker.open()
    await second.open()
    await broker.enqueue([message("first", queue="r")])
    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], 1000)
            await anyio.wait_all_tasks_blocked()
            await second.enqueue([message()])
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait, "first", 1000)
            await anyio.wait_all_tasks_blocked()
            await second.cancel("first")
    await second.close()
    await broker.close()


@pytest.mark.realtime
@pytest.mark.parametrize("fixed_in", [(0,), (99,)])
async def test_warning_for_shared_file(
    path: Path, fixed_in: tuple[int], monkeypatch: pytest.MonkeyPatch, recwarn: Any
) -> None:
    """A second connection that writes causes one warning in SQLite versions with a WAL race."""
    monkeypatch.setattr(module, "_FIXED", fixed_in)
    broker, second = SQLiteBroker(path), SQLiteBroker(path)
    await broker.open()
    await second.open()
    await broker.enqueue([message("own")])
    await broker.wait_for_work(["q"], 1000)
    assert not list(recwarn)
    for number in range(2):
        with anyio.fail_after(SOON):
            async with anyio.create_task_group() as group:
                group.start_soon(broker.wait_for_work, ["r"], 1000)
                await anyio.wait_all_tasks_blocked()
                await second.enqueue([message(str(number), queue="r")])
                await anyio.wait_all_tasks_blocked()
        await second.claim(["r"], 1, lease=30)
    assert [warning.category for warning in recwarn] == [RuntimeWarning] * (fixed_in == (99,))
    assert all(str(path) in str(warning.message) for warning in recwarn)
    await second.close()
    await broker.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_fork(path: Path, backend: str) -> None:
    """A forked child can't use or reopen the file of its parent, and the parent still can."""
    with running(SCRIPT, "fork", path, backend) as process:
        assert process.wait() == 0
    ready, using, opening, *lines = process.lines
    assert ready == "ready"
    assert re.fullmatch(r"refused: .*jobs\.db was opened by another process, before a fork", using)
    assert re.fullmatch(r"refused: .*jobs\.db was open when this process was forked.*", opening)
    assert lines == ["child counts 0", "parent counts 0", "done"]


async def test_open_after_fork(path: Path) -> None:
    """A file that was open before a fork can't be opened in the child.

    SQLite would take the locks of the parent for the child's.
    """
    with closing(newest.connect(":memory:")) as parents:
        schema._open[parents] = str(path), 0, None
        with pytest.raises(BrokerUnavailableError, match="was forked"):
            await SQLiteBroker(path).open()
        del schema._open[parents]
    broker = SQLiteBroker(path)
    await broker.open()
    await broker.close()
    assert not schema._open


async def test_calls_after_fork(broker: SQLiteBroker) -> None:
    """After a fork, calls fail and a stop returns at once, because the child has no thread."""
    thread = thread_of(broker)
    thread._process = 0
    with pytest.raises(BrokerUnavailableError, match="before a fork"):
        await broker.count()
    await thread.stop()
    thread._process = os.getpid()
    assert await broker.count() == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_exit_without_close(path: Path, backend: str) -> None:
    """A process that does not close its broker exits."""
    with running(SCRIPT, "forget", path, backend) as process:
        assert process.wait() == 0
    assert process.lines == ["ready", "done"]


def test_cost_of_consecutive_groups(tmp_path: Path) -> None:
    """The cost of a group after a group is proportional to the number of dependencies."""

    def steps(size: int) -> int:
        first = [message(f"a{size}.{n}") for n in range(size)]
        dependencies = tuple(job.id for job in first)
        second = [message(f"b{size}.{n}", depends_on=dependencies) for n in range(size)]
        ticks = 0

        def count() -> None:
            nonlocal ticks
            ticks += 1

        db.set_progress_handler(count, 100)
        transitions.enqueue(db, [*first, *second], 0.0)
        return ticks

    path = str(tmp_path / "jobs.db")
    db = schema.connect(path, "NORMAL", 5)
    try:
        db.execute("BEGIN IMMEDIATE")
        assert steps(160) < 5 * steps(80)
        db.execute("ROLLBACK")
    finally:
        schema.disconnect(db)


async def test_call_after_stop(broker: SQLiteBroker) -> None:
    """A stopped thread rejects calls."""
    thread = thread_of(broker)
    await broker.close()
    with pytest.raises(BrokerUnavailableError, match="is not open"):
        await thread.call(lambda db: None, writes=False)
