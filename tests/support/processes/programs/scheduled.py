"""A worker with a schedule of half a second in a SQLite file: `python scheduled.py PATH`.

It prints "ready" when it runs, and "tick" for each job.
"""

from __future__ import annotations

import sys
import warnings

import anyio

from background import Manager, every
from background.queues import JobQueue
from background.queues.sqlite import SQLiteBroker


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def main(path: str) -> None:
    warnings.filterwarnings("ignore", "several connections")
    async with Manager() as manager, JobQueue(SQLiteBroker(path)) as jobs:

        @jobs.handler(name="record")
        async def record() -> None:
            say("tick")

        jobs.schedule(every(0.5), record.job(), missed="all")
        await jobs.start(manager)
        say("ready")
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
