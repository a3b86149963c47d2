"""Jobs per second: enqueued many at a time, and run by one worker process that has enough to do."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial

import anyio
from entries import LOOP, OURS, Entry
from measure import interleaved
from table import Row, Samples

#: How many times as fast as the fastest peer is to be.
RUN = {OURS.format("redis"): 8.0, OURS.format("memory"): 12.0}
ENQUEUED = {OURS.format("redis"): 5.0}
#: With enqueueing, against a peer that has everything queued.
BOTH = {OURS.format("sqlite"): 2.0}


def rows(everybody: Mapping[str, Entry], *, quick: bool) -> list[Row]:
    """Measure everybody in each round; peers have fewer jobs, which take them as long."""
    jobs, fewer, rounds = (300, 300, 1) if quick else (20_100, 2_100, 9)
    peers = [name for name, entry in everybody.items() if entry.peer]
    measured = {
        name: partial(entry.measured, "process", fewer if entry.peer else jobs)
        for name, entry in everybody.items()
    }
    found: dict[str, list[dict[str, float]]] = anyio.run(interleaved, measured, rounds)
    rates: dict[str, Samples] = {
        step: {name: [1 / each[step] for each in every] for name, every in found.items()}
        for step in next(iter(found.values()))[0]
    }
    both = {
        name: [1 / (each["run"] + statistics.mean(enqueued(each))) for each in every]
        for name, every in found.items()
        if name not in peers
    }
    run = rates.pop("run")
    lines = against_fastest(run, run, peers, "run", RUN)
    lines += against_fastest(both, run, peers, "enqueued and run", BOTH)
    for step, samples in rates.items():
        lines += against_fastest(samples, samples, peers, step, ENQUEUED)
    return lines


def enqueued(seconds: Mapping[str, float]) -> list[float]:
    return [each for step, each in seconds.items() if step != "run"]


def against_fastest(
    samples: Samples, others: Samples, peers: list[str], what: str, goals: dict[str, float]
) -> list[Row]:
    """Compare with the peer that has the highest median among `others`, if there are peers."""
    fastest = max(peers, key=lambda peer: statistics.median(others[peer]), default="")
    return [
        Row(
            what=f"{what}: {name}",
            loop=LOOP,
            figures=figures,
            peer=fastest,
            peers=others.get(fastest, ()),
            unit="jobs/s",
            least=goals.get(name) if fastest else None,
        )
        for name, figures in samples.items()
        if name != fastest
    ]
