"""What a task costs from being submitted to being done, as ratios within one run.

    nox -s bench

Each contender runs the same function that does nothing, many times at once; repetitions are
interleaved, as machines are noisy, and medians are printed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable

import aiojobs
import anyio
from tenacity import AsyncRetrying, stop_after_attempt

from background import Manager, Observer
from background.observers import StallObserver

TASKS = 10_000
REPETITIONS = 5


async def nothing() -> None:
    pass


class EveryHook(Observer):
    """Listens to everything, and does nothing with it."""


for hook in (name for name in vars(Observer) if name.startswith("on_")):
    setattr(EveryHook, hook, lambda self, event: None)


async def start_soon() -> None:
    async with anyio.create_task_group() as group:
        for _ in range(TASKS):
            group.start_soon(nothing)


async def start_soon_with_tenacity() -> None:
    policy = AsyncRetrying(stop=stop_after_attempt(3))

    async def retried() -> None:
        await policy.copy()(nothing)

    async with anyio.create_task_group() as group:
        for _ in range(TASKS):
            group.start_soon(retried)


async def aiojobs_spawn() -> None:
    async with aiojobs.Scheduler(limit=None) as scheduler:
        jobs = [await scheduler.spawn(nothing()) for _ in range(TASKS)]
        for job in jobs:
            await job.wait()


async def bare_run() -> None:
    async with Manager() as manager:
        for _ in range(TASKS):
            manager.run(nothing)


async def full_run() -> None:
    async with Manager(retry=3, observers=[StallObserver(after=60), EveryHook()]) as manager:
        for _ in range(TASKS):
            manager.run(nothing)


CONTENDERS: dict[str, Callable[[], Awaitable[None]]] = {
    "anyio start_soon": start_soon,
    "start_soon with AsyncRetrying": start_soon_with_tenacity,
    "aiojobs spawn": aiojobs_spawn,
    "background, bare": bare_run,
    "background, policy and two observers": full_run,
}


async def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(REPETITIONS):
        for name, contender in CONTENDERS.items():
            began = time.perf_counter()
            await contender()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    base = medians["anyio start_soon"]
    print(f"{'time of start_soon':>40}  spread")
    for name, times in seconds.items():
        spread = f"{min(times) / base:.2f} to {max(times) / base:.2f}"
        print(f"{name:<36} {medians[name] / base:>4.2f}x  {spread}")


if __name__ == "__main__":
    anyio.run(main)
