"""Jobs per second: enqueued in batches, and run by a busy worker process."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial

import anyio
from entries import LOOP, OURS, Entry
from measure import interleave
from table import Row, Samples

#: Minimum ratios to the fastest peer.
RUN = {OURS.format("redis"): 8.0, OURS.format("memory"): 12.0}
ENQUEUED = {OURS.format("redis"): 5.0}
#: Minimum ratios with enqueuing, to a peer whose jobs are all queued before.
BOTH = {OURS.format("sqlite"): 2.0}


def rows(contenders: Mapping[str, Entry], *, quick: bool) -> list[Row]:
    """Measure all contenders in every round; peers run fewer jobs, which take as long."""
    jobs, fewer, rounds = (300, 300, 1) if quick else (20_100, 2_100, 9)
    peers = [name for name, entry in contenders.items() if entry.peer]
    measured = {
        name: partial(entry.measure, "process", fewer if entry.peer else jobs)
        for name, entry in contenders.items()
    }
    seconds: dict[str, list[dict[str, float]]] = anyio.run(interleave, measured, rounds)
    rates: dict[str, Samples] = {
        step: {name: [1 / steps[step] for steps in rounds] for name, rounds in seconds.items()}
        for step in next(iter(seconds.values()))[0]
    }
    both = {
        name: [1 / (steps["run"] + statistics.mean(enqueue_times(steps))) for steps in rounds]
        for name, rounds in seconds.items()
        if name not in peers
    }
    run = rates.pop("run")
    lines = compare_with_fastest(run, run, peers, "run", RUN)
    lines += compare_with_fastest(both, run, peers, "enqueued and run", BOTH)
    for step, samples in rates.items():
        lines += compare_with_fastest(samples, samples, peers, step, ENQUEUED)
    return lines


def enqueue_times(seconds: Mapping[str, float]) -> list[float]:
    return [time for step, time in seconds.items() if step != "run"]


def compare_with_fastest(
    samples: Samples, references: Samples, peers: list[str], title: str, goals: dict[str, float]
) -> list[Row]:
    """Compare with the peer that has the highest median in `references`, if there are peers."""
    fastest = max(peers, key=lambda peer: statistics.median(references[peer]), default="")
    return [
        Row(
            title=f"{title}: {name}",
            loop=LOOP,
            figures=figures,
            peer=fastest,
            peers=references.get(fastest, ()),
            unit="jobs/s",
            minimum=goals.get(name) if fastest else None,
        )
        for name, figures in samples.items()
        if name != fastest
    ]
