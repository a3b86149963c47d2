"""A NATS server that several processes use."""

from __future__ import annotations

import asyncio
import json
import os
import re
from secrets import token_hex

import pytest
from support.brokers.nats import (
    in_real_time,
    message,
    messages,
    opened,
)
from support.brokers.nats_servers import (
    remove_streams,
    shared_server,
)
from support.processes.process import PROGRAMS, running

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState

SCRIPT = PROGRAMS / "nats_worker.py"


@in_real_time
async def test_jobs_across_processes() -> None:
    """Every job is claimed by exactly one of several processes."""
    ids = [f"{number:04}" for number in range(100)]
    async with opened(shared_server()) as broker:
        command = SCRIPT, "work", shared_server().url, broker._layout.prefix
        with running(*command) as one, running(*command) as two:
            for process in (one, two):
                await asyncio.to_thread(process.wait_for, "ready")
            await broker.enqueue(messages(100))
            await broker.enqueue([message(f"end-{number}", queue="end") for number in range(2)])
            seen: list[str] = []
            for process in (one, two):
                line = await asyncio.to_thread(process.wait_for, "claimed ")
                seen += json.loads(line.removeprefix("claimed "))
                assert await asyncio.to_thread(process.wait) == 0
        assert sorted(seen) == [*ids, "end-0", "end-1"]
        assert await broker.count(state=JobState.SUCCEEDED) == 102
        await remove_streams(broker)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_fork() -> None:
    """A forked child can't use its parent's connection, but can open the broker again."""
    prefix = f"test-{token_hex(8)}"
    with running(SCRIPT, "fork", shared_server().url, prefix) as process:
        assert process.wait() == 0
    assert process.lines[0] == "ready"
    assert re.fullmatch(
        r"refused: .* was opened by another process, before a fork.*", process.lines[1]
    )
    assert process.lines[2:] == ["child counts 0", "parent counts 0", "done"]


@in_real_time
async def test_calls_after_fork() -> None:
    """After a fork, calls fail until the broker is opened again.

    The old client is not closed, because its socket belongs to the parent.
    """
    async with opened(shared_server()) as broker:
        requests, client = broker._requests, broker._requests.connection._client
        requests.connection._process = 0
        broker._inspection.requests.connection._process = 0
        with pytest.raises(BrokerUnavailableError, match="before a fork"):
            await broker.count()
        await broker.close()
        requests.post("subject")
        assert client.is_connected
        await client.close()
        await broker.open()
        assert await broker.count() == 0
        await remove_streams(broker)
