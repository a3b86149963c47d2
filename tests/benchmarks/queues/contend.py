"""One measurement of one contender, in a process of its own, under the contender's Python.

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
except ModuleNotFoundError:  # as on Windows
    from asyncio import new_event_loop

#: How many jobs are enqueued in a call, by those that have a call for many.
BATCHES = (100, 1_000)

#: How many jobs come before those, as some open their connections one after the other.
WARM = 100

#: Seconds between jobs for an idle worker; those who look less and less often do so by then.
GAPS = (0.05, 0.1)


class Tally:
    """Notes when so many jobs ran."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.began = self.ended = 0.0
        self.waits: list[float] = []
        self.done = asyncio.Event()

    def ran(self, sent: float) -> None:
        """Note that a job runs; the first one begins what is measured, the last one ends it."""
        now = clock()
        if not self.waits:
            self.began = now
        self.waits.append(now - sent)
        if len(self.waits) == self.jobs:
            self.ended = now
            self.done.set()


def say(found: object) -> None:
    """Tell what was found, before the worker is closed: some don't always come to an end."""
    print(json.dumps(found), flush=True)


async def process(contender: Contender, tally: Tally) -> None:
    """Say how many seconds each job takes: to enqueue it, and to run it when all are queued."""
    await contender.enqueue_many(WARM, WARM)
    jobs = (tally.jobs - WARM) // len(BATCHES)
    found: dict[str, float] = {}
    for batch in BATCHES:
        began = clock()
        await contender.enqueue_many(jobs, batch)
        found[f"enqueued, {batch:,} a call"] = (clock() - began) / jobs
    async with contender.working():
        await tally.done.wait()
        found["run"] = (tally.ended - tally.began) / (tally.jobs - 1)
        say(found)


async def send(contender: Contender, tally: Tally) -> None:
    """Enqueue jobs for a worker that is idle."""
    for _ in range(tally.jobs):
        await asyncio.sleep(random.uniform(*GAPS))
        await contender.enqueue(clock())


async def receive(contender: Contender, tally: Tally) -> None:
    """Run what another process sends; say how many seconds went by until each job ran."""
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
    each.__name__: each for each in (process, send, receive, both)
}


async def main(module: str, action: str, url: str, jobs: str) -> None:
    logging.disable(logging.CRITICAL)
    tally = Tally(int(jobs))
    async with import_module(module).opened(url, tally.ran) as contender:
        await ACTIONS[action](contender, tally)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
