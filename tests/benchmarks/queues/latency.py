"""Latency of jobs with an idle worker."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import anyio
from entries import LOOP, OURS, Entry
from measure import interleave
from table import Row, Samples, compare

#: Maximum seconds from an enqueue in another process.
LIMITS = {OURS.format("sqlite"): 0.01}


def rows(contenders: Mapping[str, Entry], *, quick: bool) -> list[Row]:
    """Take 200 samples of every contender, in several rounds."""
    jobs, rounds = (3, 1) if quick else (50, 4)
    same = {name: partial(entry.measure, "both", jobs) for name, entry in contenders.items()}
    separate = {
        name: partial(entry.measure_receiver, jobs)
        for name, entry in contenders.items()
        if name != OURS.format("memory")
    }
    peers = [name for name, entry in contenders.items() if entry.peer]
    return [
        *statistics_of(same, rounds, "in the same process", peers, {}),
        *statistics_of(separate, rounds, "from another process", peers, LIMITS),
    ]


def statistics_of(
    measured: Mapping[str, Callable[[], Awaitable[Any]]],
    rounds: int,
    how: str,
    peers: list[str],
    limits: dict[str, float],
) -> list[Row]:
    """Compare medians and 99th percentiles with the peer that has the lowest median."""
    found = anyio.run(interleave, measured, rounds)
    waits = {
        name: [wait for times in measurements for wait in times]
        for name, measurements in found.items()
    }
    medians: Samples = {name: [statistics.median(times)] for name, times in waits.items()}
    p99: Samples = {
        name: [statistics.quantiles(times, n=100, method="inclusive")[98]]
        for name, times in waits.items()
    }
    lines: list[Row] = []
    for which, samples, goals in (("median", medians, limits), ("p99", p99, {})):
        title = f"latency {how}, {which}"
        fastest = min(peers, key=lambda peer: medians[peer], default=None)
        for name, figures in samples.items():
            if name in goals or fastest is None:
                goal = goals.get(name)
                lines.append(Row(title=f"{title}: {name}", loop=LOOP, figures=figures, goal=goal))
            if fastest not in (None, name):
                lines.append(compare(samples, name, fastest, title, LOOP))
    return lines
