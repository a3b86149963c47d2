"""Lateness of iterations with thousands of iterations per second.

The peer is a minimal implementation: a callback that calls `loop.call_at` for the next tick of the
same grid, and skips missed ticks in the same way.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from functools import partial
from time import monotonic

import anyio
import eventloops
from measure import interleave
from table import Row, compare

from background import Manager, Task, TaskKind, every

# Starts of iterations: by the loop's clock, which uvloop reads once per cycle in milliseconds, and
# by the monotonic clock.
Times = list[tuple[float, float]]

OURS = "background"
BARE = "loop.call_at"


@dataclass(frozen=True)
class Shape:
    """Loops with the same interval that run for a number of seconds."""

    loops: int
    interval: float
    seconds: float
    together: bool = False  # whether all loops have the same ticks, or evenly spread ones

    def __str__(self) -> str:
        when = " on the same tick" if self.together else ""
        return f"{self.loops:,} loops, every({self.interval:g}){when}"

    def anchors(self, now: float) -> list[float]:
        """Return the start of every loop, late enough for all loops to be submitted before."""
        first = now + 0.1 + self.loops * 1e-4
        step = 0.0 if self.together else self.interval / self.loops
        return [first + number * step for number in range(self.loops)]


SHAPES = [
    Shape(10, 0.001, 2),
    Shape(1_000, 0.1, 2),
    Shape(10_000, 1.0, 2),
    Shape(10_000, 1.0, 2, together=True),
]
QUICK = [Shape(3, 0.01, 0.1), Shape(20, 0.1, 0.1, together=True)]


@dataclass(frozen=True)
class Lateness:
    """Seconds from a tick to the start of its iteration."""

    median: float
    p99: float
    worst: float
    skipped: float  # share of the ticks without an iteration


FIGURES = {"median": "s", "p99": "s", "worst": "s", "skipped": "share"}


def rows(*, quick: bool) -> list[Row]:
    """Measure on the event loops with `call_at`."""
    rows: list[Row] = []
    for loop in eventloops.ASYNCIO:
        for shape in QUICK if quick else SHAPES:
            contenders = {
                OURS: partial(measure_manager, shape),
                BARE: partial(measure_call_at, shape),
            }
            samples = eventloops.run(loop, interleave, contenders, 1 if quick else 2)
            for name, unit in FIGURES.items():
                figures = {
                    contender: [getattr(lateness, name) for lateness in rounds]
                    for contender, rounds in samples.items()
                }
                label = "ticks skipped" if name == "skipped" else f"{name} lateness"
                row = compare(figures, OURS, BARE, f"{shape}: {label}", loop, unit=unit)
                rows.append(row)
    return rows


async def measure_manager(shape: Shape) -> Lateness:
    loop = asyncio.get_running_loop()
    times: list[Times] = [[] for _ in range(shape.loops)]

    async def record(starts: Times) -> None:
        starts.append((loop.time(), monotonic()))

    async with Manager() as manager:
        anchors = shape.anchors(loop.time())
        schedule = every(shape.interval)
        for starts, anchor in zip(times, anchors, strict=True):
            delay = max(0.0, anchor - loop.time())
            manager.run_task(
                Task(record, args=(starts,), kind=TaskKind.LOOP, schedule=schedule, delay=delay)
            )
        await anyio.sleep_until(anchors[0] + shape.seconds)
        await manager.stop_loops()
    return lateness(times, anchors, shape.interval)


class Rearming:
    """A callback that records the time, and schedules itself for the next tick."""

    def __init__(self, starts: Times, anchor: float, interval: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._starts = starts
        self._anchor = anchor
        self._interval = interval
        self._number = 0
        self._handle = self._loop.call_at(anchor, self)

    def __call__(self) -> None:
        now = self._loop.time()
        self._starts.append((now, monotonic()))
        self._number = next_tick(self._number, now - self._anchor, self._interval)
        self._handle = self._loop.call_at(self._anchor + self._number * self._interval, self)

    def cancel(self) -> None:
        self._handle.cancel()


async def measure_call_at(shape: Shape) -> Lateness:
    times: list[Times] = [[] for _ in range(shape.loops)]
    anchors = shape.anchors(asyncio.get_running_loop().time())
    callbacks = [
        Rearming(starts, anchor, shape.interval)
        for starts, anchor in zip(times, anchors, strict=True)
    ]
    await anyio.sleep_until(anchors[0] + shape.seconds)
    for callback in callbacks:
        callback.cancel()
    return lateness(times, anchors, shape.interval)


def next_tick(number: int, passed: float, interval: float) -> int:
    """Return the number of the next tick, skipping the ticks before `passed`."""
    return max(number + 1, math.ceil(passed / interval - 1e-6))


def lateness(times: list[Times], anchors: list[float], interval: float) -> Lateness:
    """Compare the starts of iterations with their ticks."""
    late: list[float] = []
    skipped = 0
    for starts, anchor in zip(times, anchors, strict=True):
        number = -1
        passed = 0.0
        for time, real_time in starts:
            expected = next_tick(number, passed, interval)
            skipped += expected - number - 1
            number, passed = expected, time - anchor
            late.append(real_time - anchor - number * interval)
    late.sort()
    return Lateness(
        median=late[len(late) // 2],
        p99=late[len(late) * 99 // 100],
        worst=late[-1],
        skipped=skipped / (len(late) + skipped),
    )
