"""What delayed tasks cost, against timers of the event loop's own.

A million of them are measured in a process of their own, which starts small and gives everything
back: `python tests/benchmarks/delayed.py CONTENDER TASKS SECONDS`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial

import anyio
import eventloops
from measure import clock, interleaved
from resident import peak
from table import Row, Samples, compared

from background import Manager

OURS = "background"
TIMERS = "loop.call_later"
MOST_MEMORY = 1e9
MOST_CPU = 0.001  # of one core
IDLE = 2.0  # seconds
HOUR = 3600.0


async def nothing() -> None:
    pass


def too_early() -> None:
    raise AssertionError("an hour can't have passed")


@dataclass(frozen=True)
class Costs:
    """Seconds per task, bytes of the process, and the share of a core while nothing is due."""

    submit: float
    cancel: float
    close: float
    cpu: float
    process: int
    per_task: float


async def by_manager(tasks: int, idle: float) -> Costs:
    """Submit and cancel one by one; then submit again, and close."""
    before = peak()
    async with Manager() as manager:
        began = clock()
        handles = [manager.after(HOUR, nothing) for _ in range(tasks)]
        submitted = clock() - began
        after = peak()
        cpu = await cpu_used(idle)
        began = clock()
        for handle in handles:
            handle.cancel()
        cancelled = clock() - began
        del handles
        for _ in range(tasks // 10):
            manager.after(HOUR, nothing)
        began = clock()
        await manager.close(timeout=0)
        closed = clock() - began
    return Costs(
        submitted / tasks,
        cancelled / tasks,
        closed / (tasks // 10),
        cpu,
        after,
        (after - before) / tasks,
    )


async def by_call_later(tasks: int, idle: float) -> Costs:
    """Do the same with nothing but timers; to close means to cancel them all."""
    loop = asyncio.get_running_loop()
    before = peak()
    began = clock()
    handles = [loop.call_later(HOUR, too_early) for _ in range(tasks)]
    submitted = clock() - began
    after = peak()
    cpu = await cpu_used(idle)
    began = clock()
    for handle in handles:
        handle.cancel()
    cancelled = clock() - began
    return Costs(
        submitted / tasks,
        cancelled / tasks,
        cancelled / tasks,
        cpu,
        after,
        (after - before) / tasks,
    )


async def cpu_used(idle: float) -> float:
    await anyio.sleep(0.1 * idle)  # the timer has looked at the first of them
    before = time.process_time()
    await anyio.sleep(idle)
    return (time.process_time() - before) / idle


CONTENDERS: dict[str, Callable[[int, float], Awaitable[Costs]]] = {
    OURS: by_manager,
    TIMERS: by_call_later,
}


def rows(*, quick: bool) -> list[Row]:
    """Measure a moderate number several times on both loops, and a million once."""
    some, many, rounds = (100, 1_000, 1) if quick else (50_000, 1_000_000, 3)
    found: list[Row] = []
    for loop in eventloops.ASYNCIO:
        both = {name: partial(each, some, 0.01) for name, each in CONTENDERS.items()}
        samples = eventloops.run(loop, interleaved, both, rounds)
        found += times(samples, some, loop)
    million = {name: [in_process(name, many, 0.1 if quick else IDLE)] for name in CONTENDERS}
    return [*found, *times(million, many, "asyncio"), *totals(million, many)]


def times(samples: dict[str, list[Costs]], tasks: int, loop: str) -> list[Row]:
    """Compare what is done to each task."""
    return [
        compared(each_of(samples, step), OURS, TIMERS, f"{tasks:,} delayed, {step} each", loop)
        for step in ("submit", "cancel", "close")
    ]


def totals(samples: dict[str, list[Costs]], tasks: int) -> list[Row]:
    """LeaseStatus what all of them take against the goals."""
    rows = [
        Row(
            what=f"{tasks:,} delayed, CPU while idle",
            loop="asyncio",
            unit="share",
            figures=each_of(samples, "cpu")[OURS],
            goal=MOST_CPU,
        )
    ]
    if peak():
        sizes, each = each_of(samples, "process"), each_of(samples, "per_task")
        rows += [
            Row(
                what=f"{tasks:,} delayed, peak memory of the process",
                loop="asyncio",
                unit="B",
                figures=sizes[OURS],
                goal=MOST_MEMORY,
            ),
            compared(each, OURS, TIMERS, f"{tasks:,} delayed, memory of each", "asyncio", unit="B"),
        ]
    return rows


def each_of(samples: dict[str, list[Costs]], name: str) -> Samples:
    return {who: [getattr(costs, name) for costs in every] for who, every in samples.items()}


def in_process(contender: str, tasks: int, idle: float) -> Costs:
    """Measure in a new process."""
    command = [sys.executable, __file__, contender, str(tasks), str(idle)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    return Costs(**json.loads(done.stdout))


if __name__ == "__main__":
    _, contender, tasks, idle = sys.argv
    costs = anyio.run(CONTENDERS[contender], int(tasks), float(idle))
    print(json.dumps(asdict(costs)))
