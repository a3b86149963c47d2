"""Growth of the cost per job with the number of queued jobs.

`python backlog.py BROKER ROUNDS SIZE …` measures in a separate process, so that objects of other
measurements do not slow it down.
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
from measure import clock, interleave
from servers import STORES
from table import Row, Samples, compare

SIZES = (1_000, 10_000, 100_000, 1_000_000)
QUICK = (1_000, 20_000)
BATCH = 1_000  # jobs per measurement, and per call of enqueue
LINEAR = 1.25  # maximum ratio of costs per job; caches and deeper trees add some growth


def rows(contenders: Mapping[str, Entry], *, quick: bool) -> list[Row]:
    """Compare with the smallest number of queued jobs, for every broker and step."""
    sizes, rounds = (QUICK, 1) if quick else (SIZES, 9)
    lines: list[Row] = []
    for broker in ours.BROKERS:
        command = [sys.executable, __file__, broker, str(rounds), *map(str, sizes)]
        finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment())
        steps: dict[str, Samples] = json.loads(finished.stdout)
        smallest, *larger = map(label, sizes)
        for step, samples in steps.items():
            title = f"{OURS.format(broker)}, to {step} a job"
            lines += [compare(samples, size, smallest, title, LOOP, goal=LINEAR) for size in larger]
    return lines


def label(size: int) -> str:
    return f"{size:,} queued"


class Queue:
    """A queue with a constant number of jobs."""

    def __init__(self) -> None:
        self._tally = Tally(BATCH)

    def ran(self, sent: float) -> None:
        """Record that a job runs."""
        self._tally.ran(sent)

    async def measure(self, contender: Contender) -> tuple[float, float]:
        """Return the seconds to enqueue a job, and to run a job."""
        began = clock()
        await contender.enqueue_many(BATCH, BATCH)
        enqueued = clock() - began
        tally = self._tally = Tally(BATCH)
        async with contender.working():
            await tally.done.wait()
        more = len(tally.waits) - BATCH  # run until the worker was closed
        await contender.enqueue_many(more, BATCH)
        return enqueued / BATCH, (tally.ended - tally.began) / (BATCH - 1)


async def measure_sizes(broker: str, rounds: int, sizes: list[int]) -> dict[str, Samples]:
    """Interleave the measurements of a store for each size.

    Python's garbage collector traverses all objects repeatedly while more objects are made, so no
    store in memory has constant costs with it. It is disabled to measure this library alone.
    """
    async with AsyncExitStack() as stack:
        contenders = {}
        for size in sizes:
            queue, url = Queue(), stack.enter_context(STORES[broker]())
            contender = await stack.enter_async_context(ours.opened(url, queue.ran))
            await contender.enqueue_many(size, BATCH)
            contenders[label(size)] = partial(queue.measure, contender)
        gc.disable()
        seconds = await interleave(contenders, rounds)
    return {
        step: {name: [pair[at] for pair in rounds] for name, rounds in seconds.items()}
        for at, step in enumerate(("enqueue", "run"))
    }


def main(broker: str, rounds: str, *sizes: str) -> None:
    logging.disable(logging.CRITICAL)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        print(json.dumps(runner.run(measure_sizes(broker, int(rounds), list(map(int, sizes))))))


if __name__ == "__main__":
    main(*sys.argv[1:])
