"""What an outstanding task takes up, running or waiting."""

from __future__ import annotations

import gc
import tracemalloc
from functools import partial

import eventloops
from contenders import ANYIO, BARE, FULL, TASK_GROUP
from held import DELAYED, QUEUED, RUNNING, SLEEPING, WAITING, Holder
from measure import interleaved
from table import Row, Samples, compared

MOST_RUNNING = 1.5  # times what anyio's own takes
MOST_WAITING = 1_000  # bytes


def rows(*, quick: bool) -> list[Row]:
    """Measure on the loops that run asyncio's code; once, as memory is not a matter of luck."""
    tasks = 100 if quick else 10_000
    found: list[Row] = []
    for loop in eventloops.ASYNCIO:
        samples = eventloops.run(loop, measured, RUNNING | WAITING, tasks)
        found += judged(samples, loop)
    return found


async def measured(holders: dict[str, Holder], tasks: int) -> Samples:
    """Return the bytes per task."""
    return await interleaved(
        {name: partial(taken, holder, tasks) for name, holder in holders.items()}, rounds=1
    )


async def taken(holder: Holder, tasks: int) -> float:
    async with holder(tasks) as fill:
        tracemalloc.start()
        await fill()
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return size / tasks


def judged(samples: Samples, loop: str) -> list[Row]:
    running, waiting = "memory of a running task", "memory of a waiting task"
    return [
        compared(samples, FULL, ANYIO, running, loop, unit="B", goal=MOST_RUNNING),
        compared(samples, BARE, ANYIO, running, loop, unit="B", goal=MOST_RUNNING),
        compared(samples, TASK_GROUP, ANYIO, running, loop, unit="B"),
        *(
            Row(
                what=f"{waiting}: {name}",
                loop=loop,
                figures=samples[name],
                unit="B",
                goal=MOST_WAITING,
            )
            for name in (DELAYED, QUEUED)
        ),
        compared(samples, DELAYED, SLEEPING, waiting, loop, unit="B"),
    ]
