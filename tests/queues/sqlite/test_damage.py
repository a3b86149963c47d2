"""Jobs that another program has changed in the file."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.brokers.jobs import message, settle

from background import Manager
from background.queues import InvalidPayloadError, JobFailedError, JobQueue, JobState
from background.queues.memory import MemoryBroker
from background.queues.sqlite import SQLiteBroker, SQLiteResults
from background.queues.sqlite.library import newest

pytestmark = pytest.mark.filterwarnings("ignore:several connections")

COLUMNS = (
    *("id", "handler", "queue", "state", "token", "changes_at", "expires_at", "attempt", "crashes"),
    *("unconfirmed", "confirmed", "lost", "cancelled", "delay", "at", "expires", "retention"),
    *("dead_retention", "depends_on", "blocked", "enqueued_at", "started_at", "finished_at"),
    *("error", "result", "body"),
)
NOT_UTF8 = b"\xffA"  # stored as a text
GARBAGE = ("x", b"\xff\x00", NOT_UTF8, -1, 10**18, "[", "5", '"x"')


def change(path: Path, column: str, value: Any) -> None:
    """Change a column of the first job, as another program may do."""
    with closing(newest.connect(path)) as db, db:
        as_text = isinstance(value, bytes) and value == NOT_UTF8
        new = "CAST(? AS TEXT)" if as_text else "?"
        db.execute(f"UPDATE background_jobs SET {column} = {new} WHERE number = 1", (value,))


@pytest.mark.parametrize("column", COLUMNS)
async def test_damaged_column(
    manager: Manager, tmp_path: Path, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged job stops neither the jobs after it nor the inspection of the queue."""
    async with JobQueue(SQLiteBroker(tmp_path / "jobs.db"), unknown_for=0) as jobs:

        @jobs.handler(name="add")
        async def add(a: int) -> int:
            return a + 1

        worker = await jobs.start(manager)
        for value in GARBAGE:
            await worker.close()
            await jobs.purge(older_than=0)
            damaged = await add.enqueue(1)
            change(tmp_path / "jobs.db", column, value)
            innocent = await add.enqueue(2)
            worker = await jobs.start(manager)
            assert await innocent.result() == 3
            infos = [info async for info in jobs.list()]
            assert innocent.id in [info.id for info in infos]
            await damaged.info()
            await jobs.count(state=JobState.DEAD)
            await jobs.cancel(damaged.id)
            with closing(newest.connect(tmp_path / "jobs.db")) as db, db:
                db.execute("DELETE FROM background_jobs")
        await manager.close(timeout=0)
    raised = [record.getMessage() for record in caplog.records if "trying again" in record.message]
    assert raised == []


async def test_damaged_job_is_dead(manager: Manager, tmp_path: Path) -> None:
    """A job that can't be read is dead, with the reason."""
    async with JobQueue(SQLiteBroker(tmp_path / "jobs.db")) as jobs:
        handler = jobs.handler(name="add")(pow)
        job = await handler.enqueue(1, 2)
        change(tmp_path / "jobs.db", "depends_on", "[")
        await jobs.start(manager)
        with pytest.raises(JobFailedError, match=r"what is stored can't be read"):
            await job.result()
        info = await job.info()
        assert info is not None
        assert info.state is JobState.DEAD
        await manager.close(timeout=0)


async def test_damaged_dependant(tmp_path: Path) -> None:
    """A damaged job that depends on another one does not prevent the settlement of that one."""
    broker = SQLiteBroker(tmp_path / "jobs.db")
    await broker.open()
    await broker.enqueue([message("one"), message("two", depends_on=("one",))])
    with closing(newest.connect(tmp_path / "jobs.db")) as db, db:
        db.execute("UPDATE background_jobs SET at = 'x' WHERE id = 'two'")
    (claim,) = await broker.claim(["q"], 1, lease=30)
    assert await settle(broker, claim, JobState.SUCCEEDED)
    job = await broker.get("two")
    assert job is not None
    assert job.state is JobState.DEAD
    await broker.close()


@pytest.mark.parametrize("tick", ["garbage", b"\xff", 1e300, float("inf"), -1])
async def test_damaged_schedule(
    broker: SQLiteBroker, path: Path, tick: object, caplog: pytest.LogCaptureFixture
) -> None:
    """A schedule whose stored tick can't be read begins again, with one record."""
    await broker.advance_schedule("damaged", None, 5.0, retention=60)
    await broker.advance_schedule("two", None, 5.0, retention=60)
    with closing(newest.connect(path)) as db, db:
        db.execute("UPDATE background_schedules SET tick = ? WHERE name = 'damaged'", (tick,))
    assert await broker.advance_schedule("damaged", None, 6.0, retention=60) == 6.0
    assert await broker.advance_schedule("damaged", None, 7.0, retention=60) == 6.0
    assert await broker.advance_schedule("two", None, 7.0, retention=60) == 5.0
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "schedule damaged: its latest tick is stored as" in caplog.text


@pytest.mark.parametrize("value", ["text", NOT_UTF8, 5.5])
async def test_damaged_result(manager: Manager, tmp_path: Path, value: Any) -> None:
    """A damaged result in a store costs the result of that job only."""
    path = tmp_path / "results.db"
    async with JobQueue(MemoryBroker(), results=SQLiteResults(path)) as jobs:

        @jobs.handler(name="add")
        async def add(a: int) -> int:
            return a + 1

        await jobs.start(manager)
        damaged, innocent = await add.enqueue(1), await add.enqueue(2)
        assert [await damaged.result(), await innocent.result()] == [2, 3]
        with closing(newest.connect(path)) as db, db:
            db.execute("UPDATE background_results SET result = ? WHERE result = x'32'", (value,))
        with pytest.raises(InvalidPayloadError, match="the result"):
            await damaged.result()
        assert await damaged.info() is not None
        results = {info.id: info.result async for info in jobs.list()}
        assert results[innocent.id] == 3
        assert damaged.id in results
        await manager.close(timeout=0)
