"""A soak test with thousands of tasks in real time: `python -m support.soak [--seconds 60]
[--seed N] [--backend asyncio|uvloop|trio]`.

One manager runs all the time; short-lived managers run meanwhile and are closed in all ways. The
test fails if a submission has not exactly one end, if events of a task are out of order, if memory
grows, or if tasks, threads, descriptors or managers leak.
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
from support.soak.managers import PATIENCE, Session, live_managers, run_session

BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
LEAK = 50.0  # bytes by which memory may grow for each task; one leaked object is larger
SLACK = 300_000.0  # bytes that caches may use in a short run
ENOUGH = 20  # measurements needed to judge memory: about ten seconds
SHORT_LIVED = 5  # short-lived managers
PRODUCERS = 3  # coroutines, and as many threads, that put load on the long-lived manager


@dataclass
class Soak:
    """One run with its totals and measurements."""

    seed: int
    seconds: float
    totals: Totals = field(default_factory=Totals)
    memory: list[tuple[int, int]] = field(default_factory=list)  # (submissions so far, bytes)

    async def run(self) -> None:
        before = living_tasks()
        ends = time.monotonic() + self.seconds
        session = Session(self.totals, f"{self.seed}")
        async with session.manager:
            number = 0
            while time.monotonic() < ends:
                number += 1
                await self._round(session, f"{self.seed}-{number}")
        await session.check_closed()
        for _ in range(1000):
            if living_tasks() > before:
                await anyio.sleep(0.01)
        self.tasks_left = living_tasks() - before

    async def _round(self, session: Session, seed: str) -> None:
        """Put load on the manager and on short-lived ones, then measure without load."""
        load = session.load(seed)
        threads = [load.start_thread(number) for number in range(PRODUCERS)]
        async with anyio.create_task_group() as producers:
            for number in range(PRODUCERS):
                producers.start_soon(load.produce, number)
            async with anyio.create_task_group() as short_lived:
                for number in range(SHORT_LIVED):
                    short_lived.start_soon(run_session, self.totals, f"{seed}-{number}")
            load.stop()
        for thread in threads:
            await to_thread.run_sync(thread.join)
        while session.manager.count():  # threads of tasks may still submit
            for loop in session.manager.tasks(TaskKind.LOOP):
                loop.cancel()
                await loop.wait()
            await session.manager.wait()
        session.ledger.balance()
        gc.collect()
        self.memory.append((self.totals.submissions, tracemalloc.get_traced_memory()[0]))


def growth(memory: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Return the growth of memory between the halves of a run, in bytes and in bytes per task.

    The first quarter is left out, as caches fill up then.
    """
    counted = memory[len(memory) // 4 :]
    if len(counted) < 2:
        return 0.0, 0.0
    middle = len(counted) // 2
    # Temporary memory, as of threads that still end, is no growth: hence the minimum.
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
    """Return the number of open descriptors, or 0 on systems without /proc."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def busy_threads() -> int:
    """Return the number of threads, without the idle ones of trio."""
    frames = sys._current_frames()
    return sum(
        1
        for thread in threading.enumerate()
        if (frame := frames.get(thread.ident or 0)) is None
        or not frame.f_code.co_filename.endswith("_thread_cache.py")
    )


def settle(measure: Any, before: int) -> int:
    """Wait until a figure is not larger than before, and return the difference."""
    deadline = time.monotonic() + PATIENCE
    while (now := measure()) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    return now - before


def report(soak: Soak, left: dict[str, int]) -> bool:
    """Print the summary, and return whether the run has passed."""
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
        **{f"closed by {closing}": count for closing, count in sorted(totals.managers.items())},
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
        **{f"{kind} left": number for kind, number in left.items()},
    }
    for name, number in {**counted, **zero}.items():
        print(f"{name} = {number}")
    for fault in totals.faults:
        print("FAULT", fault)
    return not any(zero.values()) and ends == totals.submissions > 0 and not grows(soak.memory)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run thousands of tasks and check their ends.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--backend", choices=BACKENDS, default="asyncio")
    options = parser.parse_args(arguments)
    print(f"backend {options.backend}, seed {options.seed}", flush=True)
    soak = Soak(options.seed, options.seconds)
    logger = logging.getLogger("background")
    logger.addHandler(Listener(soak.totals))
    logger.propagate = False
    backend = BACKENDS[options.backend]
    anyio.run(anyio.sleep, 0, **backend)  # opens descriptors that stay open
    threads, files = busy_threads(), descriptors()
    tracemalloc.start()
    anyio.run(soak.run, **backend)
    left = {"tasks": soak.tasks_left, "threads": settle(busy_threads, threads)}
    left["descriptors"] = settle(descriptors, files)
    gc.collect()
    left["managers"] = len(live_managers)
    passed = report(soak, left)
    print("passed" if passed else "FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
