"""Opening a queue while its broker can't be reached."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.brokers.faulty import FaultyBroker
from support.brokers.redis_servers import Server, available
from support.time import SOON, Clock

from background import Manager, Observer
from background.queues import BrokerRefusedError, BrokerUnavailableError, JobQueue
from background.queues.memory import MemoryResults
from background.queues.sqlite import SQLiteBroker


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.parametrize("wait", [-1, float("nan"), float("inf"), True, "5", None])
def test_invalid_wait(wait: Any) -> None:
    """`wait` must be a finite number of seconds."""
    with pytest.raises(ValueError, match=r"^wait must be a"):
        JobQueue.from_url("memory://", wait=wait)


async def test_no_wait(broker: FaultyBroker, caplog: pytest.LogCaptureFixture) -> None:
    """By default, opening fails at once."""
    broker.down.add("open")
    with pytest.raises(BrokerUnavailableError, match="no broker"):
        await JobQueue(broker).__aenter__()
    assert broker.calls["open"] == 1
    assert messages(caplog) == []


async def test_wait(broker: FaultyBroker, caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """Opening waits for the broker, and logs the beginning and the end of the wait."""
    caplog.set_level("INFO")
    broker.down.add("open")

    async def start_broker() -> None:
        await anyio.sleep(20)
        broker.down.clear()

    async with anyio.create_task_group() as group:
        group.start_soon(start_broker)
        async with JobQueue(broker, wait=30) as jobs:
            assert 20 <= clock.now <= 22
            assert await jobs.count() == 0
    began, ended = messages(caplog)
    assert began == ("WARNING", "waiting up to 30 s for the broker: open: no broker")
    assert ended == ("INFO", f"the broker can be reached after {clock.now:.1f} s")


async def test_wait_too_short(broker: FaultyBroker, clock: Clock) -> None:
    """Opening fails with the broker's error when the wait has ended."""
    broker.down.add("open")
    with pytest.raises(BrokerUnavailableError, match="open: no broker"):
        await JobQueue(broker, wait=5).__aenter__()
    assert clock.now == 5
    broker.down.clear()
    async with JobQueue(broker):
        pass


async def test_wait_for_results(broker: FaultyBroker) -> None:
    """Opening waits for the store of results, and closes the broker before it tries again."""

    class Away(MemoryResults):
        async def open(self) -> None:
            if broker.calls["open"] < 3:
                raise BrokerUnavailableError("away")

    async with JobQueue(broker, results=Away(), wait=60):
        assert (broker.calls["open"], broker.calls["close"]) == (3, 2)


async def test_other_error(broker: FaultyBroker) -> None:
    """Opening does not try again after an error that is not an outage."""
    broker.fail("open", error=RuntimeError("wrong event loop"))
    with pytest.raises(RuntimeError, match="wrong event loop"):
        await JobQueue(broker, wait=60).__aenter__()
    assert broker.calls["open"] == 1


async def test_refusal(tmp_path: Path, caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """Opening does not wait for a broker that can't be used as it is."""
    path = tmp_path / "application.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE background_jobs (id)")
    with pytest.raises(BrokerRefusedError, match="use another file"):
        await JobQueue(SQLiteBroker(path), wait=60).__aenter__()
    assert clock.now == 0
    assert "waiting" not in caplog.text


async def test_cancelled_wait(broker: FaultyBroker) -> None:
    """A wait can be cancelled, and the queue opened later."""
    broker.down.add("open")
    jobs = JobQueue(broker, wait=60)
    with anyio.move_on_after(5):
        await jobs.__aenter__()
    broker.down.clear()
    async with jobs:
        assert await jobs.count() == 0


async def test_shutdown_during_wait(broker: FaultyBroker, clock: Clock) -> None:
    """`work()` returns at once if a shutdown is requested while it waits for the broker."""

    class Stop(Observer):
        async def watch(self, manager: Manager) -> None:
            await anyio.sleep(5)
            manager.request_shutdown()

    broker.down.add("open")
    jobs = JobQueue(broker, wait=60)
    await jobs.work(["default"], signals=False, observers=[Stop()])
    assert clock.now == 5


async def test_shutdown_before_opening(broker: FaultyBroker) -> None:
    """`work()` does not open the queue after a shutdown request."""

    class Stop(Observer):
        async def watch(self, manager: Manager) -> None:
            manager.request_shutdown()

    jobs = JobQueue(broker)
    await jobs.work(["default"], signals=False, observers=[Stop()])
    assert broker.calls["open"] <= 1


@pytest.mark.parametrize("name", available())
def test_server_starts_late(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A queue waits for a server that starts after it."""
    caplog.set_level("INFO")
    server = Server(name)
    server.kill()

    async def main() -> int:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, start_server)
            async with JobQueue.from_url(server.url, wait=SOON) as jobs:
                return await jobs.count()

    def start_server() -> None:
        while not caplog.records:
            time.sleep(0.01)
        server.start()

    try:
        assert anyio.run(main) == 0
    finally:
        server.close()
    waited = [record.levelname for record in caplog.records if record.module == "_backoff"]
    assert waited == ["WARNING", "INFO"]
