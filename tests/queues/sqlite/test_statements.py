"""The statements of the SQLite broker use indexes and leave no job behind."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from support.brokers.sqlite import finish, message, messages, other_connection

from background.queues._states import JobState
from background.queues.abc import MaintenanceStats, Settlement
from background.queues.sqlite import SQLiteBroker, statements

HOT = [
    "INSERT",
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
async def test_no_statement_looks_at_all_jobs(broker: SQLiteBroker, path: Path, name: str) -> None:
    """So that jobs cost the same however many there are; nothing is sorted either."""
    details = plan(path, getattr(statements, name))
    assert not [each for each in details if "SCAN" in each or "TEMP B-TREE" in each]


async def test_jobs_are_claimed_by_the_index_of_those_that_are_ready(
    broker: SQLiteBroker, path: Path
) -> None:
    details = plan(path, statements.CLAIM)
    assert any("jobs_ready (queue=?)" in each for each in details)
    assert any("jobs_changing" in each for each in plan(path, statements.CHANGING))
    assert any("jobs_ended" in each for each in plan(path, statements.DELETE_OLD))


async def test_large_numbers_are_dealt_with_in_parts(
    broker: SQLiteBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no transaction keeps others waiting."""
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


async def test_what_is_over_is_unknown_even_before_it_is_forgotten(broker: SQLiteBroker) -> None:
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


async def test_what_time_has_changed_but_not_ended_is_known(broker: SQLiteBroker) -> None:
    """Even before maintenance has come across it."""
    sent = [message(), message("due", delay=5), message("late", expires=5, queue="r")]
    await broker.enqueue(sent)
    await broker.claim(["q"], 1, lease=5)
    await anyio.sleep(6)
    assert await broker.enqueue(sent) == [False, False, False]
    assert await broker.count() == 3


async def test_a_job_handed_back_can_be_delayed(broker: SQLiteBroker) -> None:
    await broker.enqueue([message()])
    (claim,) = await broker.claim(["q"], 1, lease=30)
    back = Settlement(id="one", token=claim.token, state=JobState.READY, delay=10)
    assert await broker.settle([back]) == [True]
    began = anyio.current_time()
    await broker.wait_for_work(["q"], 100)
    assert anyio.current_time() - began == pytest.approx(10, abs=0.1)


async def test_waiting_for_a_job_that_expires(broker: SQLiteBroker) -> None:
    """Nobody else has to do maintenance for that."""
    await broker.enqueue([message(expires=10)])
    job = await broker.wait("one", 100)
    assert job is not None
    assert job.state is JobState.EXPIRED
