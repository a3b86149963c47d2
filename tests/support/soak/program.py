"""Thousands of tasks of all kinds, in real time: `python tests/soak.py [--seconds 60] [--seed N]
[--backend asyncio|uvloop|trio]`.

One manager lives throughout; others come and go beside it, and are closed in every way there is.
Fails if a submission has not exactly one end, if a task's events come out of order, if memory
grows, or if anything is left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import secrets
import sys
import threading
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from background import TaskKind
from support.soak.ledger import Listener, Totals
from support.soak.managers import PATIENCE, Life, alive, live

BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
LEAK = 50.0  # bytes for each task that memory may grow by; a leak of one object is more
SLACK = 300_000.0  # bytes that caches may come to in a short run
ENOUGH = 20  # measurements, without which memory is not judged: some ten seconds
AT_ONCE = 5  # short-lived managers
PRODUCERS = 3  # coroutines, and as many threads, that put load on the long-lived one


@dataclass
class Soak:
    """One run: its accounts, and what is measured on the way."""

    seed: int
    seconds: float
    totals: Totals = field(default_factory=Totals)
    memory: list[tuple[int, int]] = field(default_factory=list)  # tasks so far, bytes

    async def run(self) -> None:
        before = living_tasks()
        ends = time.monotonic() + self.seconds
        life = Life(self.totals, f"{self.seed}")
        async with life.manager:
            number = 0
            while time.monotonic() < ends:
                number += 1
                await self._round(life, f"{self.seed}-{number}")
        await life.see_off()
        for _ in range(1000):
            if living_tasks() > before:
                await anyio.sleep(0.01)
        self.tasks_left = living_tasks() - before

    async def _round(self, life: Life, seed: str) -> None:
        """Put load on the manager while others come and go, then measure in the calm."""
        load = life.load(seed)
        threads = [load.start_thread(number) for number in range(PRODUCERS)]
        async with anyio.create_task_group() as producers:
            for number in range(PRODUCERS):
                producers.start_soon(load.produce, number)
            async with anyio.create_task_group() as others:
                for number in range(AT_ONCE):
                    others.start_soon(live, self.totals, f"{seed}-{number}")
            load.stop()
        for thread in threads:
            await to_thread.run_sync(thread.join)
        while life.manager.count():  # threads of tasks may still submit
            for loop in life.manager.tasks(TaskKind.LOOP):
                loop.cancel()
                await loop.wait()
            await life.manager.wait()
        life.ledger.balance()
        gc.collect()
        self.memory.append((self.totals.submissions, tracemalloc.get_traced_memory()[0]))


def growth(memory: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Return the bytes by which memory grew from the earlier half to the later one, and by task.

    The first quarter is left out, in which everything is used for the first time.
    """
    counted = memory[len(memory) // 4 :]
    if len(counted) < 2:
        return 0.0, 0.0
    middle = len(counted) // 2
    # What is added now and then, as by threads that still end, is no growth: hence the least.
    (tasks, size), (later_tasks, later_size) = (
        min(half, key=itemgetter(1)) for half in (counted[:middle], counted[middle:])
    )
    return later_size - size, (later_size - size) / max(1, later_tasks - tasks)


def grows(memory: Sequence[tuple[int, int]]) -> bool:
    total, by_task = growth(memory)
    return len(memory) >= ENOUGH and by_task > LEAK and total > SLACK


def living_tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        import trio

        return trio.lowlevel.current_statistics().tasks_living


def descriptors() -> int:
    """How many the process has open, where it can be seen."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def busy_threads() -> int:
    """How many threads there are, without those that trio keeps for later."""
    frames = sys._current_frames()
    return sum(
        1
        for thread in threading.enumerate()
        if (frame := frames.get(thread.ident or 0)) is None
        or not frame.f_code.co_filename.endswith("_thread_cache.py")
    )


def settle(measure: Any, before: int) -> int:
    """Return by how much a figure is larger than before, once threads had time to end."""
    deadline = time.monotonic() + PATIENCE
    while (now := measure()) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    return now - before


def report(soak: Soak, left: dict[str, int]) -> bool:
    """Print the summary; return whether everything is as it should be."""
    totals = soak.totals
    total, by_task = growth(soak.memory)
    first, last = (soak.memory[at][1] if soak.memory else 0 for at in (len(soak.memory) // 4, -1))
    ends = sum(totals.ends.values())
    counted = {
        "submissions": totals.submissions,
        "ends": ends,
        **{f"ends {status}": count for status, count in sorted(totals.ends.items())},
        **{f"refused {error}": count for error, count in sorted(totals.refused.items())},
        "events": totals.events,
        "dropped events": totals.dropped,
        "hook errors": totals.hook_errors,
        "stuck, ended later": totals.stuck,
        "managers closed": sum(totals.managers.values()) + 1,
        **{f"closed by {way}": count for way, count in sorted(totals.managers.items())},
        "memory after warm-up, kB": first // 1000,
        "memory at the end, kB": last // 1000,
        "memory peak, kB": tracemalloc.get_traced_memory()[1] // 1000,
        "memory growth, kB": round(total / 1000),
        "memory growth by task, bytes": round(by_task, 1),
    }
    zero = {
        "lost": totals.lost,
        "doubled": totals.doubled,
        "out of order": totals.disordered,
        "other faults": len(totals.faults),
        **{f"{what} left": number for what, number in left.items()},
    }
    for what, number in {**counted, **zero}.items():
        print(f"{what} = {number}")
    for fault in totals.faults:
        print("FAULT", fault)
    return not any(zero.values()) and ends == totals.submissions > 0 and not grows(soak.memory)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Thousands of tasks, and nothing lost or left.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--backend", choices=BACKENDS, default="asyncio")
    given = parser.parse_args(arguments)
    print(f"backend {given.backend}, seed {given.seed}", flush=True)
    soak = Soak(given.seed, given.seconds)
    logger = logging.getLogger("background")
    logger.addHandler(Listener(soak.totals))
    logger.propagate = False
    backend = BACKENDS[given.backend]
    anyio.run(anyio.sleep, 0, **backend)  # opens what stays open
    threads, files = busy_threads(), descriptors()
    tracemalloc.start()
    anyio.run(soak.run, **backend)
    left = {"tasks": soak.tasks_left, "threads": settle(busy_threads, threads)}
    left["descriptors"] = settle(descriptors, files)
    gc.collect()
    left["managers"] = len(alive)
    passed = report(soak, left)
    print("passed" if passed else "FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
