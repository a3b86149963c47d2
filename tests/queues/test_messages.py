"""Log records and tracebacks of queues and workers."""

from __future__ import annotations

import os
import re
from traceback import format_exception
from typing import Any

import anyio
import pytest
from support.brokers.faulty import FaultyBroker
from support.brokers.redis_servers import free_port
from tenacity import AsyncRetrying, stop_after_attempt

from background import Manager, TaskFailed
from background.queues import BrokerUnavailableError, JobFailedError, JobQueue
from background.testing import RecordingObserver

OURS = f"{os.sep}background{os.sep}"  # in the paths of the library's modules


def messages(caplog: pytest.LogCaptureFixture, text: str) -> list[tuple[str, str, bool]]:
    """Return the level, the message, and whether there is a traceback, of records with a text."""
    return [
        (record.levelname, record.getMessage(), record.exc_info is not None)
        for record in caplog.records
        if text in record.getMessage()
    ]


# Outages


@pytest.mark.parametrize("failure", ["down", "hangs"])
async def test_outage_of_renewal(
    jobs: JobQueue,
    manager: Manager,
    broker: FaultyBroker,
    caplog: pytest.LogCaptureFixture,
    failure: str,
) -> None:
    """Leases that can't be renewed are logged once for each outage, without a traceback."""
    caplog.set_level("INFO")
    handler = jobs.handler(name="h")(anyio.sleep)
    await jobs.start(manager)
    job = await handler.enqueue(100)
    began = broker.calls["renew"]
    for _ in range(2):
        if failure == "down":
            broker.down.add("renew")
        else:
            broker.fail("renew", error=TimeoutError(), times=5)
        await anyio.sleep(20)
        broker.down.clear()
        await anyio.sleep(20)
    await job.wait()
    assert broker.calls["renew"] - began > 20
    reason = "renew: no broker" if failure == "down" else "no answer"
    began_and_ended = [
        ("WARNING", f"renewing leases: {reason}; trying again", False),
        ("INFO", "renewing leases: works again after 0 s", False),
    ]
    logged = [
        (level, re.sub(r"\d+\.\d s$", "0 s", text), traced)
        for level, text, traced in messages(caplog, "renewing leases")
    ]
    assert logged == began_and_ended * 2


async def test_unexpected_error(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that is no outage is logged once with its traceback, while it lasts."""
    broker.fail("maintain", error=ZeroDivisionError("odd"), times=5)
    broker.fail("maintain", error=KeyError("odder"), times=5)
    await jobs.start(manager, ["q"])
    await broker.called("maintain", 11)
    assert messages(caplog, "maintaining jobs") == [
        ("WARNING", "maintaining jobs: odd; trying again", True),
        ("WARNING", "maintaining jobs: 'odder'; trying again", True),
    ]


# Tracebacks


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{port}", "nats://127.0.0.1:{port}"])
def test_unavailable_server(url: str) -> None:
    """A queue whose server is down raises an error with a short traceback."""
    jobs = JobQueue.from_url(url.format(port=free_port()))
    with pytest.raises(BrokerUnavailableError) as caught:
        anyio.run(jobs.__aenter__)
    assert_short(caught.value)
    assert os.name != "posix" or str(caught.value).endswith(": Connection refused")


async def test_unavailable_broker(broker: FaultyBroker) -> None:
    """A queue whose broker can't be reached raises an error with a short traceback."""
    broker.down.add("open")
    with pytest.raises(BrokerUnavailableError) as caught:
        await JobQueue(broker).__aenter__()
    assert_short(caught.value)


def assert_short(error: BaseException) -> None:
    """Check that only one frame of the library, and no other error, is printed."""
    printed = "".join(format_exception(error))
    assert printed.count("Traceback (most recent call last)") == 1
    assert printed.count(OURS) == 1


def test_unusable_file(tmp_path: Any) -> None:
    """The error of a file that can't be used has no other error as its cause."""
    jobs = JobQueue.from_url(f"sqlite:///{tmp_path}")
    with pytest.raises(BrokerUnavailableError) as caught:
        anyio.run(jobs.__aenter__)
    assert_short(caught.value)


ONCE = AsyncRetrying(stop=stop_after_attempt(1))


@pytest.mark.parametrize("retry", [None, 2, ONCE], ids=["no policy", "twice", "once"])
@pytest.mark.parametrize("is_sync", [False, True])
async def test_traceback_of_job(
    jobs: JobQueue, manager: Manager, recorder: RecordingObserver, retry: Any, is_sync: bool
) -> None:
    """Observers and the stored error have the frames of the job's function only."""

    async def fail() -> None:
        raise ValueError("wrong")

    def fail_in_thread() -> None:
        raise ValueError("wrong")

    handler = jobs.handler(name="h", retry=retry)(fail_in_thread if is_sync else fail)
    await jobs.start(manager)
    with pytest.raises(JobFailedError) as caught:
        await (await handler.enqueue()).result()
    (failed,) = recorder.of(TaskFailed)
    for text in (caught.value.traceback, "".join(format_exception(failed.error))):
        assert "in fail" in text
        assert OURS not in text


@pytest.mark.parametrize("problem", ["timeout", "result"])
async def test_traceback_of_own_error(jobs: JobQueue, manager: Manager, problem: str) -> None:
    """An error that the library raises on purpose has no frames of the library."""

    async def work() -> object:
        await anyio.sleep(5 if problem == "timeout" else 0)
        return object()

    handler = jobs.handler(name="h", timeout=1)(work)
    await jobs.start(manager)
    with pytest.raises(JobFailedError) as caught:
        await (await handler.enqueue()).result()
    assert len(caught.value.traceback.splitlines()) == 1
