"""What a task costs from being submitted to being done."""

from __future__ import annotations

from functools import partial

import eventloops
from contenders import AIOJOBS, ANYIO, FULL, TENACITY, Contender, at_once, in_turn
from measure import interleaved
from table import Row, Samples, compared

#: The most that a full-featured run may take, as a multiple of these.
GOALS = {ANYIO: 1.3, AIOJOBS: 1.5, TENACITY: 1 / 3}


def rows(*, quick: bool) -> list[Row]:
    """Measure on every event loop."""
    found: list[Row] = []
    for loop in eventloops.LOOPS:
        goals = {} if loop == "trio" else GOALS
        shapes = [
            (at_once(loop), 200 if quick else 10_000, 2 if quick else 9, "{:,} at once"),
            (at_once(loop), 20 if quick else 1_000, 2 if quick else 15, "{:,} at once"),
            (in_turn(loop), 20 if quick else 1_000, 2 if quick else 15, "one by one"),
        ]
        for runners, tasks, rounds, what in shapes:
            samples = eventloops.run(loop, measured, runners, tasks, rounds)
            found += judged(samples, what.format(tasks), loop, goals)
    return found


async def measured(runners: dict[str, Contender], tasks: int, rounds: int) -> Samples:
    """Return the seconds that a task takes."""
    samples = await interleaved(
        {name: partial(runner, tasks) for name, runner in runners.items()}, rounds
    )
    return {name: [each / tasks for each in times] for name, times in samples.items()}


def judged(samples: Samples, what: str, loop: str, goals: dict[str, float]) -> list[Row]:
    """Compare everybody with `start_soon`, and this library with those for whom it has a goal."""
    others = [name for name in samples if name != ANYIO]
    found = []
    for name in others:
        goal = goals.get(ANYIO) if name == FULL else None
        found.append(compared(samples, name, ANYIO, what, loop, goal=goal))
    for peer in others:
        if peer in goals:
            found.append(compared(samples, FULL, peer, what, loop, goal=goals[peer]))
    return found
