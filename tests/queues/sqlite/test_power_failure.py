"""What a power failure costs, by copies of a file without what had not reached the disk."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile

import anyio
import pytest
from support.brokers.sqlite import messages, other_connection

from background.queues.sqlite import SQLiteBroker

JOBS = 500
STEPS = 8


async def numbers(path: Path) -> list[int]:
    """Return the numbers of the jobs in a file, whose ids are numbers."""
    broker = SQLiteBroker(path)
    await broker.open()
    found = [int(job.message.id) async for job in broker.scan()]
    await broker.close()
    with other_connection(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return found


@pytest.mark.parametrize("kept", [*range(STEPS + 1)])
async def test_power_failure(broker: SQLiteBroker, path: Path, tmp_path: Path, kept: int) -> None:
    """The latest jobs are lost, from one job on, and never one before another.

    With `synchronous="NORMAL"` only checkpoints wait for the disk: of the log, any part may have
    reached it.
    """
    for message in messages(JOBS):
        await broker.enqueue([message])
    copy = tmp_path / "copy.db"
    log = await anyio.Path(f"{path}-wal").read_bytes()
    copyfile(path, copy)
    await anyio.Path(f"{copy}-wal").write_bytes(log[: len(log) * kept // STEPS])
    found = await numbers(copy)
    assert found == [*range(len(found))]
    assert kept or len(found) < JOBS
    assert kept < STEPS or len(found) == JOBS
    print(f"{len(log) * kept // STEPS:,} of {len(log):,} bytes: {JOBS - len(found)} jobs lost")
