"""Log records of a worker's start and end."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from support.brokers import redis_servers
from support.brokers.faulty import FaultyBroker
from support.brokers.nats_servers import make_nats_broker

from background import Manager, every
from background.queues import JobQueue, Weighted
from background.queues.abc import Broker
from background.queues.memory import MemoryBroker
from background.queues.redis import RedisBroker
from background.queues.sqlite import SQLiteBroker


def records(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the level and the message of all records."""
    return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_start_and_stop(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A worker logs its settings when it starts, and that it has stopped."""
    caplog.set_level("INFO")
    broker = MemoryBroker() if kind == "memory" else SQLiteBroker(tmp_path / "jobs.db")
    jobs = JobQueue(broker, lease=60)
    sleep = jobs.handler(name="sleep", queue="mail")(anyio.sleep)
    jobs.handler(name="other")(anyio.sleep)
    jobs.schedule(every(3600), sleep.job(1))
    async with Manager() as manager, jobs:
        await jobs.start(manager, concurrency=5)
        await (await sleep.enqueue(1)).wait()
    started, stopped = records(caplog)
    assert started == (
        f"INFO worker started: {broker!r}; queues: mail, default; handlers (2): other, sleep; "
        "concurrency: 5; lease: 60 s; schedules: 1"
    )
    assert stopped == "INFO worker stopped; queues: mail, default"


async def test_two_workers(caplog: pytest.LogCaptureFixture, manager: Manager) -> None:
    """Each worker has one record of its start and one of its end."""
    caplog.set_level("INFO")
    jobs = JobQueue(MemoryBroker())
    jobs.handler(name="sleep", queue="low")(anyio.sleep)
    jobs.handler(name="wait", queue="high")(anyio.sleep)
    async with jobs:
        first = await jobs.start(manager, Weighted({"high": 3, "low": 1}))
        await jobs.start(manager, ["low"])
        await first.close()
        await first.close()
        await manager.close()
    logged = records(caplog)
    assert [line.partition(";")[0] for line in logged] == [
        "INFO worker started: <MemoryBroker>",
        "INFO worker started: <MemoryBroker>",
        "INFO worker stopped",
        "INFO worker stopped",
    ]
    assert "; queues by weight: high, low; " in logged[0]
    assert logged[2:] == [
        "INFO worker stopped; queues: high, low",
        "INFO worker stopped; queues: low",
    ]


async def test_queue_without_handler(
    broker: FaultyBroker, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker of a queue that no handler uses logs a warning, because the name may be wrong."""
    jobs = JobQueue(broker)
    jobs.handler(name="sleep", queue="mail")(anyio.sleep)
    async with jobs:
        await jobs.start(manager, ["mail", "mial"])
        await jobs.start(manager, ["mail"])
        await manager.close()
    assert records(caplog) == [
        "WARNING worker: no handler here belongs to the queues mial; the handlers' queues are mail"
    ]


async def test_many_names(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    """Many handlers and queues are counted, and only a few are named."""
    caplog.set_level("INFO")
    jobs = JobQueue(MemoryBroker())
    for number in range(1000):
        name = f"handler-{number:04}-{'x' * 100}"
        jobs.handler(name=name, queue=f"queue-{number:04}")(anyio.sleep)
    async with jobs:
        await jobs.start(manager)
        await jobs.start(manager, [f"wrong-{number}" for number in range(1000)])
        await manager.close()
    lines = records(caplog)
    assert "queue-0004 and 995 more; handlers (1000): handler-0000-x" in lines[0]
    assert max(map(len, lines)) < 1500


@pytest.mark.parametrize("name", [*redis_servers.available(), "nats"])
def test_server(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The record of a worker has the server's address and the prefix."""
    caplog.set_level("INFO")
    if name == "nats":
        broker: Broker = make_nats_broker()
    else:
        broker = RedisBroker(redis_servers.server(name).url, prefix="named")
    jobs = JobQueue(broker)
    jobs.handler(name="sleep")(anyio.sleep)

    async def main() -> None:
        async with Manager() as manager, jobs:
            await jobs.start(manager)

    anyio.run(main)
    started, stopped = [line for line in records(caplog) if line.startswith("INFO worker")]
    assert started.startswith(
        f"INFO worker started: {broker!r}; queues: default; handlers (1): sleep"
    )
    assert "127.0.0.1" in started
    assert stopped == "INFO worker stopped; queues: default"


def test_no_password() -> None:
    """The text of a broker has no password."""
    for url in ("redis://user:s3cr3t@localhost/0", "nats://user:s3cr3t@localhost:4222"):
        assert "s3cr3t" not in repr(JobQueue.from_url(url)._client.broker)
