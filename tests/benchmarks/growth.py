"""Growth of the cost per task with the number of outstanding tasks."""

from __future__ import annotations

import gc
from functools import partial

import eventloops
from contenders import ANYIO, FULL
from held import DELAYED, RUNNING, WAITING, Holder
from measure import clock, interleave
from table import Row, Samples, compare

SMALL, MIDDLE, LARGE = 1_000, 10_000, 100_000
LINEAR = 1.25  # maximum ratio of costs per task; caches and hash tables add some growth
HELD = RUNNING | WAITING


def rows(*, quick: bool) -> list[Row]:
    """Compare the seconds per task, from the first submission to the end of the last task.

    Python's garbage collector traverses all objects repeatedly while more objects are made, so no
    contender that stores tasks in memory grows linearly with it. It is disabled to measure this
    library alone, and enabled to measure the total.
    """
    sizes = [size // 100 for size in (SMALL, MIDDLE, LARGE)] if quick else [SMALL, MIDDLE, LARGE]
    rows: list[Row] = []
    for loop in eventloops.ASYNCIO:
        names = [FULL, DELAYED, ANYIO]
        samples = eventloops.run(loop, measure_without_gc, names, sizes, 1 if quick else 2)
        for name in names:
            goal = None if name == ANYIO else LINEAR
            rows += compare_with_smallest(samples, name, sizes, "without gc", loop, goal)
    names, sizes = [FULL, ANYIO], [sizes[0], sizes[-1]]
    samples = eventloops.run("asyncio", measure_sizes, names, sizes, 1)
    for name in names:
        rows += compare_with_smallest(samples, name, sizes, "with gc", "asyncio", None)
    return rows


def compare_with_smallest(
    samples: Samples, name: str, sizes: list[int], how: str, loop: str, goal: float | None
) -> list[Row]:
    smallest, *larger = [label(name, size) for size in sizes]
    title = f"growth {how}"
    return [compare(samples, size, smallest, title, loop, goal=goal) for size in larger]


def label(name: str, size: int) -> str:
    return f"{name}, {size:,} outstanding"


async def measure_without_gc(names: list[str], sizes: list[int], rounds: int) -> Samples:
    gc.disable()
    try:
        return await measure_sizes(names, sizes, rounds)
    finally:
        gc.enable()


async def measure_sizes(names: list[str], sizes: list[int], rounds: int) -> Samples:
    """Return the seconds per task, by contender and number of tasks."""
    contenders = {
        label(name, size): partial(time_per_task, HELD[name], size, max(1, sizes[-1] // size // 10))
        for name in names
        for size in sizes
    }
    return await interleave(contenders, rounds)


async def time_per_task(holder: Holder, tasks: int, times: int) -> float:
    total = 0.0
    for _ in range(times):
        async with holder(tasks) as fill:
            began = clock()
            await fill()
        total += clock() - began
    return total / times / tasks
