"""Cost of a task from its submission to its end."""

from __future__ import annotations

from functools import partial

import eventloops
from contenders import AIOJOBS, ANYIO, FULL, TENACITY, Contender, at_once, in_turn
from measure import interleave
from table import Row, Samples, compare

#: Maximum ratios of the full manager to these peers.
GOALS = {ANYIO: 1.3, AIOJOBS: 1.5, TENACITY: 1 / 3}


def rows(*, quick: bool) -> list[Row]:
    """Measure on all event loops."""
    rows: list[Row] = []
    for loop in eventloops.LOOPS:
        goals = {} if loop == "trio" else GOALS
        shapes = [
            (at_once(loop), 200 if quick else 10_000, 2 if quick else 9, "{:,} at once"),
            (at_once(loop), 20 if quick else 1_000, 2 if quick else 15, "{:,} at once"),
            (in_turn(loop), 20 if quick else 1_000, 2 if quick else 15, "one by one"),
        ]
        for runners, tasks, rounds, title in shapes:
            samples = eventloops.run(loop, measure, runners, tasks, rounds)
            rows += compare_all(samples, title.format(tasks), loop, goals)
    return rows


async def measure(runners: dict[str, Contender], tasks: int, rounds: int) -> Samples:
    """Return the seconds per task, by contender."""
    samples = await interleave(
        {name: partial(runner, tasks) for name, runner in runners.items()}, rounds
    )
    return {name: [time / tasks for time in times] for name, times in samples.items()}


def compare_all(samples: Samples, title: str, loop: str, goals: dict[str, float]) -> list[Row]:
    """Compare all contenders with `start_soon`, and this library with the peers in its goals."""
    names = [name for name in samples if name != ANYIO]
    rows = []
    for name in names:
        goal = goals.get(ANYIO) if name == FULL else None
        rows.append(compare(samples, name, ANYIO, title, loop, goal=goal))
    for peer in names:
        if peer in goals:
            rows.append(compare(samples, FULL, peer, title, loop, goal=goals[peer]))
    return rows
