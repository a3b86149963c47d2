"""How soon an idle worker begins a job."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import anyio
from entries import LOOP, OURS, Entry
from measure import interleaved
from table import Row, Samples, compared

#: The most seconds from an enqueue in another process.
MOST = {OURS.format("sqlite"): 0.01}


def rows(everybody: Mapping[str, Entry], *, quick: bool) -> list[Row]:
    """Take 200 samples of each, in several rounds."""
    jobs, rounds = (3, 1) if quick else (50, 4)
    own = {name: partial(entry.measured, "both", jobs) for name, entry in everybody.items()}
    others = {
        name: partial(entry.received, jobs)
        for name, entry in everybody.items()
        if name != OURS.format("memory")
    }
    peers = [name for name, entry in everybody.items() if entry.peer]
    return [
        *statistics_of(own, rounds, "in the same process", peers, {}),
        *statistics_of(others, rounds, "from another process", peers, MOST),
    ]


def statistics_of(
    measured: Mapping[str, Callable[[], Awaitable[Any]]],
    rounds: int,
    how: str,
    peers: list[str],
    most: dict[str, float],
) -> list[Row]:
    """Compare medians and 99th percentiles with those of the peer that is soonest by median."""
    found = anyio.run(interleaved, measured, rounds)
    waits = {name: [wait for every in times for wait in every] for name, times in found.items()}
    medians: Samples = {name: [statistics.median(times)] for name, times in waits.items()}
    p99: Samples = {
        name: [statistics.quantiles(times, n=100, method="inclusive")[98]]
        for name, times in waits.items()
    }
    lines: list[Row] = []
    for which, samples, goals in (("median", medians, most), ("p99", p99, {})):
        what = f"latency {how}, {which}"
        soonest = min(peers, key=lambda peer: medians[peer], default=None)
        for name, figures in samples.items():
            if name in goals or soonest is None:
                goal = goals.get(name)
                lines.append(Row(what=f"{what}: {name}", loop=LOOP, figures=figures, goal=goal))
            if soonest not in (None, name):
                lines.append(compared(samples, name, soonest, what, LOOP))
    return lines
