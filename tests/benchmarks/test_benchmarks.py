"""The benchmarks of tasks: their output and calculations, but no results."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent

# Peers and measurements in the output of the parts.
PARTS = {
    "spawn": [
        "anyio start_soon",
        "asyncio.TaskGroup",
        "tenacity",
        "job.wait()",
        "wait_and_close()",
        "trio nursery",
    ],
    "memory": ["anyio start_soon", "asyncio.TaskGroup", "above the limit"],
    "growth": ["anyio start_soon", "without gc", "with gc"],
    "delayed": ["loop.call_later", "submit", "cancel", "close", "CPU while idle"],
    "loops": ["loop.call_at", "median", "p99", "worst", "skipped"],
    "imports": ["anyio, tenacity, opentelemetry", "background.observers.otel"],
}


def run_benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", BENCHMARKS, *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"},
    )


@pytest.mark.parametrize("part", PARTS)
def test_part(part: str) -> None:
    """A part prints a table with a row for every peer."""
    finished = run_benchmarks("--quick", part)
    assert finished.returncode == 0, finished.stderr
    time, conditions = finished.stderr.splitlines()
    assert time.startswith(part)
    assert conditions.endswith("with --quick the figures mean nothing")
    heading, rule, *rows = [line.strip("|").split("|") for line in finished.stdout.splitlines()]
    assert rows
    assert {len(row) for row in (heading, rule, *rows)} == {9}
    for peer in PARTS[part]:
        assert peer in finished.stdout
    judged = {row[-1].strip() for row in rows if row[-2].strip()}
    assert judged <= {"met", "missed"}
    assert bool(judged) == (part != "loops")
    assert {row[-1].strip() for row in rows if not row[-2].strip()} <= {""}


def test_unknown_part() -> None:
    """An unknown part is an error that lists all parts, which are the tested ones."""
    finished = run_benchmarks("--quick", "spwan")
    assert finished.returncode == 2
    assert f"unknown part: spwan; parts: {', '.join(PARTS)}" in finished.stderr


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("table")


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("loops")


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("measure")


def test_ratio_is_median_of_rounds(table: ModuleType) -> None:
    """The ratio is the median of the ratios of all rounds.

    The ratio of the medians would mix rounds with a slow and a fast machine.
    """
    samples = {"own": [1e-6, 20e-6, 6e-6], "peer": [2e-6, 10e-6, 2e-6]}
    row = table.compare(samples, "own", "peer", "run", "uvloop", goal=2.0)
    assert row.cells() == [
        "run: own",
        "uvloop",
        "6 µs",
        "peer",
        "2 µs",
        "2.00x",
        "0.50x to 3.00x",
        "≤ 2.00x",
        "met",
    ]


@pytest.mark.parametrize(("figure", "met"), [(999.0, "met"), (1000.0, "met"), (1001.0, "missed")])
def test_goal_without_peer(table: ModuleType, figure: float, met: str) -> None:
    """Without a peer, the figure is compared with the goal."""
    cells = table.Row(title="size", figures=[figure], unit="B", goal=1000).cells()
    assert cells[3:] == ["", "", "", "", "≤ 1 kB", met]


@pytest.mark.parametrize(("figure", "met"), [(3.0, "met"), (2.5, "met"), (2.4, "missed")])
def test_minimum(table: ModuleType, figure: float, met: str) -> None:
    """A minimum is a goal for figures that should be large."""
    row = table.Row(title="run", figures=[figure], peers=[1.0], unit="jobs/s", minimum=2.5)
    assert row.has_goal
    assert row.cells()[-2:] == ["≥ 2.50x", met]
    assert not table.Row(title="run", figures=[figure]).has_goal


def test_peer_of_zero(table: ModuleType) -> None:
    """There is no ratio to a peer whose figure is zero."""
    samples = {"own": [0.5], "peer": [0.0]}
    row = table.compare(samples, "own", "peer", "skipped", "", unit="share")
    assert row.cells()[2:6] == ["50 %", "peer", "0 %", ""]


def test_spread(table: ModuleType) -> None:
    """The spread is that of the middle half, or of all figures if there are few."""
    assert table.spread([float(number) for number in range(11)], "x") == "2.00x to 8.00x"
    assert table.spread([3.0, 1.0, 2.0], "x") == "1.00x to 3.00x"


def test_table_is_markdown(table: ModuleType) -> None:
    """The table is a Markdown table with aligned columns."""
    rows = [table.Row(title="short", figures=[1.0]), table.Row(title="much longer", figures=[2.0])]
    heading, rule, *lines = table.table(rows).splitlines()
    assert heading.startswith("| measurement | loop |")
    assert set(rule) <= set("|- ")
    assert [line[:14] for line in lines] == ["| short       ", "| much longer "]
    assert len({len(line) for line in (heading, rule, *lines)}) == 1


async def test_interleave(measure: ModuleType) -> None:
    """Every contender runs once per round, in varying order."""
    turns: list[str] = []

    async def turn(name: str) -> int:
        turns.append(name)
        return turns.count(name)

    random.seed(1)
    contenders = {name: lambda name=name: turn(name) for name in "abc"}
    samples = await measure.interleave(contenders, 3)
    assert samples == {name: [1, 2, 3] for name in "abc"}
    rounds = {"".join(turns[at : at + 3]) for at in range(0, 9, 3)}
    assert {"".join(sorted(order)) for order in rounds} == {"abc"}
    assert len(rounds) > 1, "always in the same order"


def test_lateness(loops: ModuleType) -> None:
    """Lateness counts from the tick of the iteration.

    The second iteration ends after the third tick, which is skipped; the fourth is not.
    """
    began = [100.0, 101.5, 103.25]
    ended = [100.0, 102.5, 103.25]
    lateness = loops.lateness([list(zip(ended, began, strict=True))], [100.0], 1.0)
    assert lateness == loops.Lateness(median=0.25, p99=0.5, worst=0.5, skipped=0.25)


def test_early_timer(loops: ModuleType) -> None:
    """An iteration that starts slightly before its tick is not repeated."""
    assert loops.next_tick(0, 0.0, 1.0) == 1
    assert loops.next_tick(1, 0.9999999, 1.0) == 2
    assert loops.next_tick(1, 1.9999999, 1.0) == 2
    assert loops.next_tick(1, 2.1, 1.0) == 3
