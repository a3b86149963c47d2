"""Whether a job costs more when many others are queued.

`python backlog.py BROKER ROUNDS SIZE …` measures in a process of its own, which nobody else's
objects slow down.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent.parent))

import ours
from contend import Tally, new_event_loop
from contender import Contender
from entries import LOOP, OURS, Entry, environment
from measure import clock, interleaved
from servers import STORES
from table import Row, Samples, compared

SIZES = (1_000, 10_000, 100_000, 1_000_000)
QUICK = (1_000, 20_000)
BATCH = 1_000  # jobs that are measured at a time, and enqueued in a call
LINEAR = 1.25  # times as much for each; caches and the depth of trees leave their traces


def rows(everybody: Mapping[str, Entry], *, quick: bool) -> list[Row]:
    """Compare with the least number, for each broker and step."""
    sizes, rounds = (QUICK, 1) if quick else (SIZES, 9)
    found: list[Row] = []
    for broker in ours.BROKERS:
        command = [sys.executable, __file__, broker, str(rounds), *map(str, sizes)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment())
        steps: dict[str, Samples] = json.loads(done.stdout)
        least, *more = map(label, sizes)
        for step, samples in steps.items():
            what = f"{OURS.format(broker)}, to {step} a job"
            found += [compared(samples, each, least, what, LOOP, goal=LINEAR) for each in more]
    return found


def label(size: int) -> str:
    return f"{size:,} queued"


class Queue:
    """A queue that always has as many jobs."""

    def __init__(self) -> None:
        self._tally = Tally(BATCH)

    def ran(self, sent: float) -> None:
        """Note that a job runs."""
        self._tally.ran(sent)

    async def measured(self, contender: Contender) -> tuple[float, float]:
        """Return the seconds that it takes to enqueue a job, and to run one."""
        began = clock()
        await contender.enqueue_many(BATCH, BATCH)
        enqueued = clock() - began
        tally = self._tally = Tally(BATCH)
        async with contender.working():
            await tally.done.wait()
        more = len(tally.waits) - BATCH  # until the worker was closed
        await contender.enqueue_many(more, BATCH)
        return enqueued / BATCH, (tally.ended - tally.began) / (BATCH - 1)


async def measured(broker: str, rounds: int, sizes: list[int]) -> dict[str, Samples]:
    """Take turns with a store for each size.

    Python's garbage collector looks at everything again and again while more is made, so with it
    nothing that keeps jobs in memory is flat: it is switched off to see what this library does.
    """
    async with AsyncExitStack() as stack:
        contenders = {}
        for size in sizes:
            queue, url = Queue(), stack.enter_context(STORES[broker]())
            contender = await stack.enter_async_context(ours.opened(url, queue.ran))
            await contender.enqueue_many(size, BATCH)
            contenders[label(size)] = partial(queue.measured, contender)
        gc.disable()
        found = await interleaved(contenders, rounds)
    return {
        step: {name: [each[at] for each in every] for name, every in found.items()}
        for at, step in enumerate(("enqueue", "run"))
    }


def main(broker: str, rounds: str, *sizes: str) -> None:
    logging.disable(logging.CRITICAL)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        print(json.dumps(runner.run(measured(broker, int(rounds), list(map(int, sizes))))))


if __name__ == "__main__":
    main(*sys.argv[1:])
