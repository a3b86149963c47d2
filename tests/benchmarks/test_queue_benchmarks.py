"""The benchmarks of durable jobs work, without the peers; what they find out is for people."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "queues"

# Of Redis there is no server for Windows.
BROKERS = ["memory", "sqlite", "nats", *([] if sys.platform == "win32" else ["redis"])]
RAW = [] if sys.platform == "win32" else ["raw client"]

# What each part has to tell of: for each broker, and besides.
PARTS = {
    "throughput": (["run", "enqueued and run", "enqueued, 100 a call"], RAW),
    "latency": (["latency in the same process, median", "latency in the same process, p99"], RAW),
    "backlog": ([], ["to enqueue a job: 20,000 queued", "to run a job: 20,000 queued"]),
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", BENCHMARKS, "--quick", *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"},
    )


@pytest.mark.parametrize("part", PARTS)
def test_every_part_prints_its_rows(part: str) -> None:
    done = run(part)
    assert done.returncode == 0, done.stderr
    time, conditions = done.stderr.splitlines()
    assert time.startswith(part)
    assert conditions.endswith("with --quick the figures mean nothing")
    _, _, *rows = [line.strip("|").split("|") for line in done.stdout.splitlines()]
    assert {len(row) for row in rows} == {9}
    titles = [row[0].strip() for row in rows]
    for_each, besides = PARTS[part]
    for broker in BROKERS:
        assert any(f"background, {broker}" in title for title in titles)
        for what in for_each:
            assert f"{what}: background, {broker}" in titles
    for what in besides:
        assert any(what in title for title in titles)
    assert {row[-1].strip() for row in rows if row[-2].strip()} <= {"met", "missed"}


def test_an_unknown_part_is_refused() -> None:
    done = run("throughputs")
    assert done.returncode == 2
    assert f"no part throughputs; there are {', '.join(PARTS)}" in done.stderr
