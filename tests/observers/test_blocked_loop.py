"""Reports of `StallObserver` about a blocked event loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import anyio
import pytest
from anyio.lowlevel import checkpoint
from support.time import SOON

from background import Manager
from background.observers import StallObserver
from background.observers._loop_watch import LoopWatch


class Records(logging.Handler):
    """Collects the records of the library, and sets an event for each."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self.arrived = [threading.Event() for _ in range(4)]

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.arrived[len(self.messages) - 1].set()

    async def wait_for(self, count: int) -> None:
        arrived = self.arrived[count - 1]
        assert await anyio.to_thread.run_sync(arrived.wait, SOON)


@pytest.fixture
def records() -> Iterator[Records]:
    records, logger = Records(), logging.getLogger("background")
    logger.addHandler(records)
    yield records
    logger.removeHandler(records)


def watches() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "watch of the loop" in thread.name]


def block(records: Records) -> None:
    """Block until the first record."""
    assert records.arrived[0].wait(SOON)


@pytest.mark.realtime
async def test_blocked_loop(
    anyio_backend: tuple[str, object], records: Records, blocking_calls: None
) -> None:
    """A blocked event loop is logged once with its stack, and again when it turns."""

    async def parse() -> None:
        block(records)

    async with Manager(name="m", observers=StallObserver(60, blocked=0.2)) as manager:
        while not watches():
            await checkpoint()
        await manager.options(name="parser").run(parse)
        await records.wait_for(2)
        (thread,) = watches()
    blocked, turns = records.messages
    task = " by task 'parser'" if anyio_backend[0] == "asyncio" else ""
    first, *stack = blocked.splitlines()
    assert first == f"event loop of manager 'm' has been blocked for 0.2 s{task}"
    frames = [line.strip() for line in stack if line.startswith("  File")]
    assert frames[0].endswith("in parse")
    assert frames[1] == f'File "{__file__}", line {block.__code__.co_firstlineno + 2}, in block'
    begin = "event loop of manager 'm' turns again; it was blocked for at least "
    assert float(turns.removeprefix(begin).removesuffix(" s")) > 0
    await anyio.to_thread.run_sync(thread.join, SOON)
    assert not thread.is_alive()


@pytest.mark.realtime
async def test_loop_that_turns(anyio_backend: object, records: Records) -> None:
    """An event loop that turns often enough is not logged, however long the manager is open."""
    watch = LoopWatch("m", 60)
    watch._pause = 0.001
    watch.start()
    for _ in range(20):
        await anyio.sleep(0.002)
    watch.stop()
    await anyio.to_thread.run_sync(watch.thread.join, SOON)
    assert not watch.thread.is_alive()
    assert records.messages == []


async def test_no_thread(anyio_backend: object) -> None:
    """No thread is started unless it is asked for."""
    async with Manager(observers=StallObserver(60)):
        await anyio.sleep(1)
        assert watches() == []


@pytest.mark.realtime
async def test_suspended_process(
    anyio_backend: object, records: Records, blocking_calls: None
) -> None:
    """Time in which the process was suspended does not count as blocked."""
    calls = 0
    enough = threading.Event()

    def clock() -> float:
        nonlocal calls
        calls += 1
        if calls == 20:
            enough.set()
        return calls * 3600

    watch = LoopWatch("m", 0.04, clock=clock)
    watch.start()
    assert enough.wait(SOON)  # the loop is blocked, and all waits of the thread were late
    watch.stop()
    await anyio.to_thread.run_sync(watch.thread.join, SOON)
    assert records.messages == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_loop_has_ended(backend: str) -> None:
    """The thread ends when the event loop has ended."""

    async def make() -> LoopWatch:
        return LoopWatch("m", 60)

    watch = anyio.run(make, backend=backend)
    watch.start()
    watch.thread.join(SOON)
    assert not watch.thread.is_alive()


@pytest.mark.realtime
async def test_no_running_task(
    anyio_backend: object, records: Records, blocking_calls: None
) -> None:
    """A callback that blocks the event loop outside of tasks is logged without a name."""
    watch = LoopWatch("m", 0.05)
    watch.start()
    watch._post(lambda: block(records))
    await records.wait_for(2)
    watch.stop()
    await anyio.to_thread.run_sync(watch.thread.join, SOON)
    assert records.messages[0].splitlines()[0].endswith("0.05 s")


async def test_validation(anyio_backend: object) -> None:
    """`blocked` is a finite number of seconds above 0."""
    for value in (0, -1, True, float("inf"), float("nan"), "1"):
        with pytest.raises(ValueError, match="blocked must be a finite number"):
            StallObserver(60, blocked=value)  # type: ignore[arg-type]
    assert repr(StallObserver(60, blocked=1)) == "StallObserver(after=60, blocked=1)"
