"""How late the iterations of loops begin, when there are thousands of them a second.

The peer is as little as can be done: a callback that arms `loop.call_at` for the next tick of the
same grid, skips the ticks that it has missed in the same way, and does the same beside that.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from functools import partial
from time import monotonic

import anyio
import eventloops
from measure import interleaved
from table import Row, compared

from background import Manager, Task, TaskKind, every

# When iterations began: by the loop's clock, which uvloop reads once a cycle and in whole
# milliseconds, and by the one that it stands for.
Times = list[tuple[float, float]]

OURS = "background"
BARE = "loop.call_at"


@dataclass(frozen=True)
class Shape:
    """Some loops with the same interval, for a number of seconds."""

    loops: int
    interval: float
    seconds: float
    together: bool = False  # all have their ticks at the same time; else spread evenly

    def __str__(self) -> str:
        when = " on the same tick" if self.together else ""
        return f"{self.loops:,} loops, every({self.interval:g}){when}"

    def anchors(self, now: float) -> list[float]:
        """Return when each loop begins: late enough for all to have been submitted."""
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
    """Seconds from the time of a tick to the beginning of its iteration."""

    median: float
    p99: float
    worst: float
    skipped: float  # the share of the ticks that had no iteration


FIGURES = {"median": "s", "p99": "s", "worst": "s", "skipped": "share"}


def rows(*, quick: bool) -> list[Row]:
    """Measure on the loops that have `call_at`."""
    found: list[Row] = []
    for loop in eventloops.ASYNCIO:
        for shape in QUICK if quick else SHAPES:
            both = {OURS: partial(in_manager, shape), BARE: partial(by_call_at, shape)}
            samples = eventloops.run(loop, interleaved, both, 1 if quick else 2)
            for name, unit in FIGURES.items():
                figures = {
                    who: [getattr(each, name) for each in all] for who, all in samples.items()
                }
                label = "ticks skipped" if name == "skipped" else f"{name} lateness"
                row = compared(figures, OURS, BARE, f"{shape}: {label}", loop, unit=unit)
                found.append(row)
    return found


async def in_manager(shape: Shape) -> Lateness:
    loop = asyncio.get_running_loop()
    times: list[Times] = [[] for _ in range(shape.loops)]

    async def note(own: Times) -> None:
        own.append((loop.time(), monotonic()))

    async with Manager() as manager:
        anchors = shape.anchors(loop.time())
        schedule = every(shape.interval)
        for own, anchor in zip(times, anchors, strict=True):
            delay = max(0.0, anchor - loop.time())
            manager.run_task(
                Task(note, args=(own,), kind=TaskKind.LOOP, schedule=schedule, delay=delay)
            )
        await anyio.sleep_until(anchors[0] + shape.seconds)
        await manager.stop_loops()
    return lateness(times, anchors, shape.interval)


class Rearming:
    """A callback that notes the time, and has itself called again on the next tick."""

    def __init__(self, own: Times, anchor: float, interval: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._own = own
        self._anchor = anchor
        self._interval = interval
        self._number = 0
        self._handle = self._loop.call_at(anchor, self)

    def __call__(self) -> None:
        now = self._loop.time()
        self._own.append((now, monotonic()))
        self._number = following(self._number, now - self._anchor, self._interval)
        self._handle = self._loop.call_at(self._anchor + self._number * self._interval, self)

    def cancel(self) -> None:
        self._handle.cancel()


async def by_call_at(shape: Shape) -> Lateness:
    times: list[Times] = [[] for _ in range(shape.loops)]
    anchors = shape.anchors(asyncio.get_running_loop().time())
    callbacks = [
        Rearming(own, anchor, shape.interval) for own, anchor in zip(times, anchors, strict=True)
    ]
    await anyio.sleep_until(anchors[0] + shape.seconds)
    for callback in callbacks:
        callback.cancel()
    return lateness(times, anchors, shape.interval)


def following(number: int, passed: float, interval: float) -> int:
    """Return the number of the tick after this one; those before `passed` have been missed."""
    return max(number + 1, math.ceil(passed / interval - 1e-6))


def lateness(times: list[Times], anchors: list[float], interval: float) -> Lateness:
    """Compare the times at which iterations began with the ticks that they began for."""
    late: list[float] = []
    skipped = 0
    for own, anchor in zip(times, anchors, strict=True):
        number = -1
        passed = 0.0
        for time, really in own:
            expected = following(number, passed, interval)
            skipped += expected - number - 1
            number, passed = expected, time - anchor
            late.append(really - anchor - number * interval)
    late.sort()
    return Lateness(
        median=late[len(late) // 2],
        p99=late[len(late) * 99 // 100],
        worst=late[-1],
        skipped=skipped / (len(late) + skipped),
    )
