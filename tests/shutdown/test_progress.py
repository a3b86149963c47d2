"""Records of what a closing waits for."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.closing import cleans_up
from support.time import SOON, Clock
from tenacity import AsyncRetrying, wait_fixed

from background import Manager, Task
from background._lifecycle import progress
from background._support import stacks
from background._support.log import log

HERE = Path(__file__).name


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="background")


async def slow(seconds: float = 25) -> None:
    await anyio.sleep(seconds)


SLOW = f"at {HERE}:{slow.__code__.co_firstlineno + 1}"


async def test_record(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """Every ten seconds a record says which task the closing waits for, and where that stands."""
    async with Manager(name="app") as manager:
        manager.run(slow)
    assert clock.now == 25
    assert caplog.messages == [f"manager 'app' still waits for 1 task: 'slow' {SLOW}"] * 2
    assert {(record.name, record.levelno) for record in caplog.records} == {
        ("background", logging.INFO)
    }


async def test_no_record_within_interval(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """A closing that takes less than ten seconds records nothing."""
    async with Manager() as manager:
        manager.run(slow, 9.9)
    assert caplog.messages == []


async def test_record_of_many_tasks(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """A record describes the three oldest tasks and counts the others."""
    async with Manager() as manager:
        for number in range(1000):
            manager.run_task(Task(slow, args=(15,), name=str(number)))
    (message,) = caplog.messages
    tasks = ", ".join(f"'{number}' {SLOW}" for number in range(3))
    assert message == f"manager 'background' still waits for 1000 tasks: {tasks}, 997 more"


async def test_record_of_statuses(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """A record says whether a task waits for its turn or for its next attempt."""

    async def broken() -> None:
        raise ValueError

    async with Manager(limit=2) as manager:
        manager.run_task(Task(broken, name="failing", retry=AsyncRetrying(wait=wait_fixed(60))))
        manager.run(slow)
        manager.run_task(Task(checkpoint, name="queued"))
        manager.loop(anyio.sleep, 12)
        await anyio.wait_all_tasks_blocked()
        await manager.close(timeout=15)
    (message,) = caplog.messages
    assert message == (
        "manager 'background' still waits for 4 tasks: 'failing' (retrying), "
        f"'slow' {SLOW}, 'queued' (waiting), 1 more"
    )


async def test_long_name(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """A long name is shortened, and its control characters are escaped."""
    async with Manager() as manager:
        manager.run_task(Task(slow, args=(15,), name="\n" + "x" * 10_000))
    (message,) = caplog.messages
    assert f": '\\n{'x' * 59}…' at" in message
    assert len(message) < 200


async def test_record_during_cleanup(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """A closing also records what it waits for after it has cancelled the tasks."""
    async with Manager(cancel_timeout=25) as manager:
        manager.run(cleans_up, 12)
        await anyio.wait_all_tasks_blocked()
        await manager.close(timeout=0)
    (message,) = caplog.messages
    assert message.startswith("manager 'background' still waits for 1 task: 'cleans_up' at closing")


async def test_record_of_closing_task(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """A record does not count a task that itself waits for the closing."""

    async def closer() -> None:
        await manager.close()

    async with Manager() as manager:
        manager.run(closer)
        manager.run(slow, 15)
    (message,) = caplog.messages
    assert message == f"manager 'background' still waits for 1 task: 'slow' {SLOW}"


@pytest.mark.realtime
async def test_record_of_thread(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record says where the thread of a sync function stands."""
    monkeypatch.setattr(progress, "_INTERVAL", 0.05)
    entered, release = threading.Event(), threading.Event()
    recorded = anyio.Event()
    monkeypatch.setattr(progress, "log", lambda *args: (log(*args), recorded.set()))

    def work() -> None:
        entered.set()
        release.wait(SOON)

    async with Manager() as manager:
        manager.run(work)
        await anyio.to_thread.run_sync(entered.wait, SOON)
        await checkpoint()
        async with anyio.create_task_group() as group:
            group.start_soon(manager.close)
            with anyio.fail_after(SOON):
                await recorded.wait()
            release.set()
    line = work.__code__.co_firstlineno + 2
    expected = (
        f"manager 'background' still waits for 1 task: '{work.__qualname__}' at {HERE}:{line}"
    )
    assert set(caplog.messages) == {expected}


def test_place_in_libraries() -> None:
    """The place of a stack that has only frames of libraries is the outermost frame."""
    import asyncio
    import traceback

    def installed(module: object, line: int) -> traceback.FrameSummary:
        return traceback.FrameSummary(str(module.__file__), line, "fn", line="")  # type: ignore[attr-defined]

    own = traceback.FrameSummary(__file__, 1, "fn", line="")
    assert stacks.place([own, installed(anyio, 5), installed(asyncio, 6)]) == f"{HERE}:1"
    assert stacks.place([installed(anyio, 5), installed(asyncio, 6)]) == "__init__.py:5"
    assert stacks.place([]) is None
