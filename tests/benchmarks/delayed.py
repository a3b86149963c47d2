"""Costs of delayed tasks compare with timers of the event loop.

A million tasks are measured in a separate process, so that its memory starts small:
`python tests/benchmarks/delayed.py CONTENDER TASKS SECONDS`.
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
from measure import clock, interleave
from resident import peak
from table import Row, Samples, compare

from background import Manager

OURS = "background"
TIMERS = "loop.call_later"
MAX_MEMORY = 1e9
MAX_CPU = 0.001  # of one core
IDLE = 2.0  # seconds
HOUR = 3600.0


async def nothing() -> None:
    pass


def too_early() -> None:
    raise AssertionError("the delay of an hour has not passed")


@dataclass(frozen=True)
class Costs:
    """Costs of delayed tasks.

    Args:
        submit: Seconds per task.
        cancel: Seconds per task.
        close: Seconds per task.
        cpu: Share of a core while no task is due.
        process: Peak memory of the process in bytes.
        per_task: Bytes per task.
    """

    submit: float
    cancel: float
    close: float
    cpu: float
    process: int
    per_task: float


async def measure_manager(tasks: int, idle: float) -> Costs:
    """Submit and cancel tasks one by one; then submit tasks again, and close."""
    before = peak()
    async with Manager() as manager:
        began = clock()
        handles = [manager.after(HOUR, nothing) for _ in range(tasks)]
        submitted = clock() - began
        after = peak()
        cpu = await measure_cpu(idle)
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


async def measure_call_later(tasks: int, idle: float) -> Costs:
    """Set and cancel timers one by one; closing means cancelling all of them."""
    loop = asyncio.get_running_loop()
    before = peak()
    began = clock()
    handles = [loop.call_later(HOUR, too_early) for _ in range(tasks)]
    submitted = clock() - began
    after = peak()
    cpu = await measure_cpu(idle)
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


async def measure_cpu(idle: float) -> float:
    await anyio.sleep(0.1 * idle)  # until the timer has processed the first task
    before = time.process_time()
    await anyio.sleep(idle)
    return (time.process_time() - before) / idle


CONTENDERS: dict[str, Callable[[int, float], Awaitable[Costs]]] = {
    OURS: measure_manager,
    TIMERS: measure_call_later,
}


def rows(*, quick: bool) -> list[Row]:
    """Measure a moderate number of tasks several times on both loops, and a million once."""
    some, many, rounds = (100, 1_000, 1) if quick else (50_000, 1_000_000, 3)
    found: list[Row] = []
    for loop in eventloops.ASYNCIO:
        contenders = {name: partial(fn, some, 0.01) for name, fn in CONTENDERS.items()}
        samples = eventloops.run(loop, interleave, contenders, rounds)
        found += times(samples, some, loop)
    million = {
        name: [measure_in_process(name, many, 0.1 if quick else IDLE)] for name in CONTENDERS
    }
    return [*found, *times(million, many, "asyncio"), *totals(million, many)]


def times(samples: dict[str, list[Costs]], tasks: int, loop: str) -> list[Row]:
    """Compare the costs per task."""
    return [
        compare(select(samples, step), OURS, TIMERS, f"{tasks:,} delayed, {step}", loop)
        for step in ("submit", "cancel", "close")
    ]


def totals(samples: dict[str, list[Costs]], tasks: int) -> list[Row]:
    """Compare the total costs with the goals."""
    rows = [
        Row(
            title=f"{tasks:,} delayed, CPU while idle",
            loop="asyncio",
            unit="share",
            figures=select(samples, "cpu")[OURS],
            goal=MAX_CPU,
        )
    ]
    if peak():
        sizes, per_task = select(samples, "process"), select(samples, "per_task")
        rows += [
            Row(
                title=f"{tasks:,} delayed, peak memory of the process",
                loop="asyncio",
                unit="B",
                figures=sizes[OURS],
                goal=MAX_MEMORY,
            ),
            compare(
                per_task, OURS, TIMERS, f"{tasks:,} delayed, memory per task", "asyncio", unit="B"
            ),
        ]
    return rows


def select(samples: dict[str, list[Costs]], name: str) -> Samples:
    return {
        contender: [getattr(costs, name) for costs in rounds]
        for contender, rounds in samples.items()
    }


def measure_in_process(contender: str, tasks: int, idle: float) -> Costs:
    """Measure a contender in a new process."""
    command = [sys.executable, __file__, contender, str(tasks), str(idle)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    return Costs(**json.loads(finished.stdout))


if __name__ == "__main__":
    _, contender, tasks, idle = sys.argv
    costs = anyio.run(CONTENDERS[contender], int(tasks), float(idle))
    print(json.dumps(asdict(costs)))
