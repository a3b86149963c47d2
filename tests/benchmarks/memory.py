"""Memory of an outstanding task, running or waiting."""

from __future__ import annotations

import gc
import tracemalloc
from functools import partial

import eventloops
from contenders import ANYIO, BARE, FULL, TASK_GROUP
from held import DELAYED, QUEUED, RUNNING, SLEEPING, WAITING, Holder
from measure import interleave
from table import Row, Samples, compare

MAX_RUNNING = 1.5  # times the memory of a task of anyio
MAX_WAITING = 1_000  # bytes


def rows(*, quick: bool) -> list[Row]:
    """Measure on the event loops that run asyncio code; once, as memory does not vary."""
    tasks = 100 if quick else 10_000
    rows: list[Row] = []
    for loop in eventloops.ASYNCIO:
        samples = eventloops.run(loop, measure_holders, RUNNING | WAITING, tasks)
        rows += compare_all(samples, loop)
    return rows


async def measure_holders(holders: dict[str, Holder], tasks: int) -> Samples:
    """Return the bytes per task, by contender."""
    return await interleave(
        {name: partial(bytes_per_task, holder, tasks) for name, holder in holders.items()}, rounds=1
    )


async def bytes_per_task(holder: Holder, tasks: int) -> float:
    async with holder(tasks) as fill:
        tracemalloc.start()
        await fill()
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return size / tasks


def compare_all(samples: Samples, loop: str) -> list[Row]:
    running, waiting = "memory of a running task", "memory of a waiting task"
    return [
        compare(samples, FULL, ANYIO, running, loop, unit="B", goal=MAX_RUNNING),
        compare(samples, BARE, ANYIO, running, loop, unit="B", goal=MAX_RUNNING),
        compare(samples, TASK_GROUP, ANYIO, running, loop, unit="B"),
        *(
            Row(
                title=f"{waiting}: {name}",
                loop=loop,
                figures=samples[name],
                unit="B",
                goal=MAX_WAITING,
            )
            for name in (DELAYED, QUEUED)
        ),
        compare(samples, DELAYED, SLEEPING, waiting, loop, unit="B"),
    ]
