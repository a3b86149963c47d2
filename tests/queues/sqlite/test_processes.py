"""A SQLite file that several processes use."""

from __future__ import annotations

import json
import os
import re
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

SCRIPT = PROGRAMS / "sqlite_worker.py"


@pytest.mark.realtime
@pytest.mark.filterwarnings("ignore:several connections")
async def test_each_job_goes_to_one_process(path: Path, anyio_backend_name: str) -> None:
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
@pytest.mark.filterwarnings("ignore:several connections")
async def test_work_from_another_process_is_noticed(path: Path) -> None:
    """Also by those who wait for a job's end."""
    broker, other = SQLiteBroker(path), SQLiteBroker(path)
    await broker.open()
    await other.open()
    await broker.enqueue([message("first", queue="r")])
    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], 1000)
            await anyio.wait_all_tasks_blocked()
            await other.enqueue([message()])
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait, "first", 1000)
            await anyio.wait_all_tasks_blocked()
            await other.cancel("first")
    await other.close()
    await broker.close()


@pytest.mark.realtime
@pytest.mark.parametrize("mended", [(0,), (99,)])
async def test_warned_of_other_connections_once(
    path: Path, mended: tuple[int], monkeypatch: pytest.MonkeyPatch, recwarn: Any
) -> None:
    """By SQLite's version, as not all of them can be shared without risk."""
    monkeypatch.setattr(module, "_FIXED", mended)
    broker, other = SQLiteBroker(path), SQLiteBroker(path)
    await broker.open()
    await other.open()
    await broker.enqueue([message("own")])
    await broker.wait_for_work(["q"], 1000)
    assert not list(recwarn)
    for number in range(2):
        with anyio.fail_after(SOON):
            async with anyio.create_task_group() as group:
                group.start_soon(broker.wait_for_work, ["r"], 1000)
                await anyio.wait_all_tasks_blocked()
                await other.enqueue([message(str(number), queue="r")])
                await anyio.wait_all_tasks_blocked()
        await other.claim(["r"], 1, lease=30)
    assert [each.category for each in recwarn] == [RuntimeWarning] * (mended == (99,))
    assert all(str(path) in str(each.message) for each in recwarn)
    await other.close()
    await broker.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no forking")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_after_a_fork_the_child_is_refused(path: Path, backend: str) -> None:
    with running(SCRIPT, "fork", path, backend) as process:
        assert process.wait() == 0
    ready, using, opening, *lines = process.lines
    assert ready == "ready"
    assert re.fullmatch(r"refused: .*jobs\.db was opened by another process, before a fork", using)
    assert re.fullmatch(r"refused: .*jobs\.db was open when this process was forked.*", opening)
    assert lines == ["child counts 0", "parent counts 0", "done"]


async def test_what_was_open_before_a_fork_is_not_opened_again(path: Path) -> None:
    """As SQLite would take the locks of the parent for the child's."""
    schema._open.append((str(path), 0))
    with pytest.raises(BrokerUnavailableError, match="was forked"):
        await SQLiteBroker(path).open()
    schema._open.remove((str(path), 0))
    broker = SQLiteBroker(path)
    await broker.open()
    await broker.close()
    assert (str(path), os.getpid()) not in schema._open


async def test_what_another_process_has_opened_is_refused(broker: SQLiteBroker) -> None:
    """As there is no thread that would answer; closing it waits for none."""
    thread = thread_of(broker)
    thread._process = 0
    with pytest.raises(BrokerUnavailableError, match="before a fork"):
        await broker.count()
    await thread.stop()
    thread._process = os.getpid()
    assert await broker.count() == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_process_that_does_not_close_ends_all_the_same(path: Path, backend: str) -> None:
    with running(SCRIPT, "forget", path, backend) as process:
        assert process.wait() == 0
    assert process.lines == ["ready", "done"]


def test_the_cost_of_a_group_after_a_group(tmp_path: Path) -> None:
    """Each job of the second needs all of the first, but looks at none of the others."""

    def steps(size: int) -> int:
        first = [message(f"a{size}.{n}") for n in range(size)]
        needs = tuple(each.id for each in first)
        second = [message(f"b{size}.{n}", depends_on=needs) for n in range(size)]
        done = 0

        def count() -> None:
            nonlocal done
            done += 1

        db.set_progress_handler(count, 100)
        transitions.enqueue(db, [*first, *second], 0.0)
        return done

    path = str(tmp_path / "jobs.db")
    db = schema.connect(path, "NORMAL")
    try:
        db.execute("BEGIN IMMEDIATE")
        assert steps(160) < 5 * steps(80)
        db.execute("ROLLBACK")
    finally:
        schema.disconnect(db, path)


async def test_a_thread_that_was_stopped_takes_no_call(broker: SQLiteBroker) -> None:
    thread = thread_of(broker)
    await broker.close()
    with pytest.raises(BrokerUnavailableError, match="is not open"):
        await thread.call(lambda db: None, writes=False)
