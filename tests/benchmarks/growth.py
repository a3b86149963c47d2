"""Whether a task costs more when many others are outstanding."""

from __future__ import annotations

import gc
from functools import partial

import eventloops
from contenders import ANYIO, FULL
from held import DELAYED, RUNNING, WAITING, Holder
from measure import clock, interleaved
from table import Row, Samples, compared

LEAST, MIDDLE, MOST = 1_000, 10_000, 100_000
LINEAR = 1.25  # times as much for each; caches and the sizes of tables leave their traces
HELD = RUNNING | WAITING


def rows(*, quick: bool) -> list[Row]:
    """Compare the time per task, from submitting the first to the end of the last.

    Python's garbage collector looks at everything again and again while more is made, so with it
    nothing that keeps tasks in memory grows in a straight line: it is switched off to see what this
    library does, and left on to see what that comes to.
    """
    sizes = [size // 100 for size in (LEAST, MIDDLE, MOST)] if quick else [LEAST, MIDDLE, MOST]
    found: list[Row] = []
    for loop in eventloops.ASYNCIO:
        names = [FULL, DELAYED, ANYIO]
        samples = eventloops.run(loop, uncollected, names, sizes, 1 if quick else 2)
        for name in names:
            goal = None if name == ANYIO else LINEAR
            found += compared_with_least(samples, name, sizes, "without gc", loop, goal)
    names, sizes = [FULL, ANYIO], [sizes[0], sizes[-1]]
    samples = eventloops.run("asyncio", measured, names, sizes, 1)
    for name in names:
        found += compared_with_least(samples, name, sizes, "with gc", "asyncio", None)
    return found


def compared_with_least(
    samples: Samples, name: str, sizes: list[int], how: str, loop: str, goal: float | None
) -> list[Row]:
    least, *more = [label(name, size) for size in sizes]
    return [compared(samples, each, least, f"growth {how}", loop, goal=goal) for each in more]


def label(name: str, size: int) -> str:
    return f"{name}, {size:,} outstanding"


async def uncollected(names: list[str], sizes: list[int], rounds: int) -> Samples:
    gc.disable()
    try:
        return await measured(names, sizes, rounds)
    finally:
        gc.enable()


async def measured(names: list[str], sizes: list[int], rounds: int) -> Samples:
    """Return the seconds that a task takes, by name and number of tasks."""
    contenders = {
        label(name, size): partial(taken, HELD[name], size, max(1, sizes[-1] // size // 10))
        for name in names
        for size in sizes
    }
    return await interleaved(contenders, rounds)


async def taken(holder: Holder, tasks: int, times: int) -> float:
    total = 0.0
    for _ in range(times):
        async with holder(tasks) as fill:
            began = clock()
            await fill()
        total += clock() - began
    return total / times / tasks
