"""One measurement of a contender in a separate process, with the contender's Python.

python contend.py MODULE ACTION URL JOBS
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from time import perf_counter as clock

from contender import Contender

try:
    from uvloop import new_event_loop
except ModuleNotFoundError:  # on Windows
    from asyncio import new_event_loop

#: Jobs per call of enqueue, for contenders with such a call.
BATCHES = (100, 1_000)

#: Jobs before the measurement, as some contenders open their connections one by one.
WARM = 100

#: Seconds between jobs for an idle worker; workers that back off have done so by then.
GAPS = (0.05, 0.1)


class Tally:
    """Records the times at which `jobs` jobs ran."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.began = self.ended = 0.0
        self.waits: list[float] = []
        self.done = asyncio.Event()

    def ran(self, sent: float) -> None:
        """Record that a job runs; the first job starts the measurement, the last one ends it."""
        now = clock()
        if not self.waits:
            self.began = now
        self.waits.append(now - sent)
        if len(self.waits) == self.jobs:
            self.ended = now
            self.done.set()


def say(result: object) -> None:
    """Print a result before the worker is closed, as some workers do not always end."""
    print(json.dumps(result), flush=True)


async def process(contender: Contender, tally: Tally) -> None:
    """Print the seconds per job to enqueue it, and to run it when all jobs are queued."""
    await contender.enqueue_many(WARM, WARM)
    jobs = (tally.jobs - WARM) // len(BATCHES)
    seconds: dict[str, float] = {}
    for batch in BATCHES:
        began = clock()
        await contender.enqueue_many(jobs, batch)
        seconds[f"enqueued, {batch:,} a call"] = (clock() - began) / jobs
    async with contender.working():
        await tally.done.wait()
        seconds["run"] = (tally.ended - tally.began) / (tally.jobs - 1)
        say(seconds)


async def send(contender: Contender, tally: Tally) -> None:
    """Enqueue jobs for an idle worker."""
    for _ in range(tally.jobs):
        await asyncio.sleep(random.uniform(*GAPS))
        await contender.enqueue(clock())


async def receive(contender: Contender, tally: Tally) -> None:
    """Run jobs of another process, and print the seconds until every job ran."""
    async with contender.working():
        say("ready")
        await tally.done.wait()
        say(tally.waits)


async def both(contender: Contender, tally: Tally) -> None:
    """Send and receive in one process."""
    async with contender.working():
        await send(contender, tally)
        await tally.done.wait()
        say(tally.waits)


ACTIONS: dict[str, Callable[[Contender, Tally], Awaitable[None]]] = {
    action.__name__: action for action in (process, send, receive, both)
}


async def main(module: str, action: str, url: str, jobs: str) -> None:
    logging.disable(logging.CRITICAL)
    tally = Tally(int(jobs))
    async with import_module(module).opened(url, tally.ran) as contender:
        await ACTIONS[action](contender, tally)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
