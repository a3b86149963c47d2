"""The benchmarks of durable jobs, without peers: their output, but no results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "queues"

# There is no Redis server for Windows.
BROKERS = ["memory", "sqlite", "nats", *([] if sys.platform == "win32" else ["redis"])]
RAW = [] if sys.platform == "win32" else ["raw client"]

# Measurements in the output of the parts: for each broker, and others.
PARTS = {
    "throughput": (["run", "enqueued and run", "enqueued, 100 a call"], RAW),
    "latency": (["latency in the same process, median", "latency in the same process, p99"], RAW),
    "backlog": ([], ["to enqueue a job: 20,000 queued", "to run a job: 20,000 queued"]),
}


def run_benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", BENCHMARKS, "--quick", *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"},
    )


@pytest.mark.parametrize("part", PARTS)
def test_part(part: str) -> None:
    """A part prints a table with rows for every broker."""
    finished = run_benchmarks(part)
    assert finished.returncode == 0, finished.stderr
    time, conditions = finished.stderr.splitlines()
    assert time.startswith(part)
    assert conditions.endswith("with --quick the figures mean nothing")
    _, _, *rows = [line.strip("|").split("|") for line in finished.stdout.splitlines()]
    assert {len(row) for row in rows} == {9}
    titles = [row[0].strip() for row in rows]
    per_broker, general = PARTS[part]
    for broker in BROKERS:
        assert any(f"background, {broker}" in title for title in titles)
        for label in per_broker:
            assert f"{label}: background, {broker}" in titles
    for label in general:
        assert any(label in title for title in titles)
    assert {row[-1].strip() for row in rows if row[-2].strip()} <= {"met", "missed"}


def test_unknown_part() -> None:
    """An unknown part is an error that lists all parts."""
    finished = run_benchmarks("throughputs")
    assert finished.returncode == 2
    assert f"unknown part: throughputs; parts: {', '.join(PARTS)}" in finished.stderr
