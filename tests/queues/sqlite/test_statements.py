"""Query plans, chunked statements, and jobs that maintenance has not processed yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from support.brokers.jobs import settle
from support.brokers.sqlite import finish, message, messages, other_connection

from background.queues._states import JobState
from background.queues.abc import MaintenanceStats, Settlement
from background.queues.sqlite import SQLiteBroker, statements, transitions

HOT = [
    "INSERT",
    "SIZES",
    "CLAIM",
    "RENEW",
    "END",
    "RELEASE_CLAIM",
    "GET",
    "STATE",
    "HAS_READY",
    "NEXT_CHANGE",
]
HOT += [
    "CHANGING",
    "BECOMES_READY",
    "LOSES_ITS_LEASE",
    "ENDS_BY_TIME",
    "DELETE_IF_OLD",
    "DELETE_OLD",
]
HOT += ["CANCEL_RUNNING", "CANCEL_WAITING", "REQUEUE", "PAGE", "PURGE_PAGE", "COUNT_READY"]


def plan(path: Path, statement: str) -> list[str]:
    with other_connection(path) as db:
        values = (None,) * statement.count("?")
        return [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", values)]


@pytest.mark.parametrize("name", HOT)
async def test_no_full_scan(broker: SQLiteBroker, path: Path, name: str) -> None:
    """No statement scans a table or sorts rows, so none is slower with more jobs."""
    details = plan(path, getattr(statements, name))
    assert not [line for line in details if "SCAN" in line or "TEMP B-TREE" in line]


async def test_partial_indexes(broker: SQLiteBroker, path: Path) -> None:
    """Claims, changes by time, and deletions use the partial indexes made for them."""
    details = plan(path, statements.CLAIM)
    assert any("background_jobs_ready (queue=?)" in line for line in details)
    assert any("background_jobs_changing" in line for line in plan(path, statements.CHANGING))
    assert any("jobs_ended" in line for line in plan(path, statements.DELETE_OLD))


async def test_chunks(broker: SQLiteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many jobs are scanned, maintained and purged in chunks.

    A long transaction would block other connections.
    """
    monkeypatch.setattr("background.queues.sqlite.transitions.CHUNK", 4)
    await broker.enqueue([*messages(10, delay=5), message("z", queue="r")])
    assert [job.message.id async for job in broker.scan(queue="r")] == ["z"]
    assert len([job async for job in broker.scan()]) == 11
    await anyio.sleep(6)
    assert await broker.maintain() == MaintenanceStats(due=10)
    await finish(broker, await broker.claim(["q"], 10, lease=30))
    assert await broker.purge(state=JobState.DEAD) == 0
    await anyio.sleep(61)
    assert await broker.maintain() == MaintenanceStats(deleted=10)
    await broker.enqueue(messages(12))
    await finish(broker, await broker.claim(["q"], 12, lease=30))
    assert await broker.purge(state=JobState.SUCCEEDED) == 12
    assert await broker.count() == 1


@pytest.mark.parametrize("part", ["body", "result"])
async def test_pages_of_large_jobs(
    broker: SQLiteBroker, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A page of a scan ends with the job that brings it to 4 MB."""
    large, pages = bytes(900_000), list[int]()
    await broker.enqueue(messages(8, body=large if part == "body" else b"{}"))
    while claims := await broker.claim(["q"], 8, lease=30):
        for claim in claims:
            await settle(
                broker, claim, JobState.SUCCEEDED, result=large if part == "result" else b""
            )
    page = transitions.page

    def record_size(db: Any, **options: Any) -> Any:
        jobs, last = page(db, **options)
        pages.append(len(jobs))
        return jobs, last

    monkeypatch.setattr(transitions, "page", record_size)
    assert [job.message.id async for job in broker.scan()] == [job.id for job in messages(8)]
    assert pages == [5, 3]


async def test_past_retention(broker: SQLiteBroker) -> None:
    """A job past its retention is not found, even before maintenance deletes it."""
    await broker.enqueue([message(retention=5), message("two", expires=5)])
    await finish(broker, await broker.claim(["q"], 1, lease=30))
    await anyio.sleep(6)
    assert await broker.get("one") is None
    assert await broker.cancel("one") is None
    assert not await broker.requeue("one")
    assert await broker.claim(["q"], 1, lease=30) == []
    assert [job.message.id async for job in broker.scan()] == ["two"]
    assert await broker.count() == 1
    assert await broker.count(queue="q", state=JobState.READY) == 0


async def test_unfinished_before_maintenance(broker: SQLiteBroker) -> None:
    """Jobs that are due, expired or without a lease are stored before maintenance, too."""
    sent = [message(), message("due", delay=5), message("late", expires=5, queue="r")]
    await broker.enqueue(sent)
    await broker.claim(["q"], 1, lease=5)
    await anyio.sleep(6)
    assert await broker.enqueue(sent) == [False, False, False]
    assert await broker.count() == 3


async def test_release_with_delay(broker: SQLiteBroker) -> None:
    """A job can be released with a delay."""
    await broker.enqueue([message()])
    (claim,) = await broker.claim(["q"], 1, lease=30)
    release = Settlement(id="one", token=claim.token, state=JobState.READY, delay=10)
    assert await broker.settle([release]) == [True]
    began = anyio.current_time()
    await broker.wait_for_work(["q"], 100)
    assert anyio.current_time() - began == pytest.approx(10, abs=0.1)


async def test_wait_for_expiry(broker: SQLiteBroker) -> None:
    """Waiting for a job returns when it expires, without maintenance by another process."""
    await broker.enqueue([message(expires=10)])
    job = await broker.wait("one", 100)
    assert job is not None
    assert job.state is JobState.EXPIRED
