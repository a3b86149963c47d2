"""The benchmarks work, and calculate what they say; what they find out is for people to read."""

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

# The peers that each part has to compare with.
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


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", BENCHMARKS, *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"},
    )


@pytest.mark.parametrize("part", PARTS)
def test_every_part_prints_its_rows(part: str) -> None:
    done = run("--quick", part)
    assert done.returncode == 0, done.stderr
    time, conditions = done.stderr.splitlines()
    assert time.startswith(part)
    assert conditions.endswith("with --quick the figures mean nothing")
    heading, rule, *rows = [line.strip("|").split("|") for line in done.stdout.splitlines()]
    assert rows
    assert {len(row) for row in (heading, rule, *rows)} == {9}
    for peer in PARTS[part]:
        assert peer in done.stdout
    judged = {row[-1].strip() for row in rows if row[-2].strip()}
    assert judged <= {"met", "missed"}
    assert bool(judged) == (part != "loops")
    assert {row[-1].strip() for row in rows if not row[-2].strip()} <= {""}


def test_an_unknown_part_is_refused_and_all_others_are_tested() -> None:
    done = run("--quick", "spwan")
    assert done.returncode == 2
    assert f"no part spwan; there are {', '.join(PARTS)}" in done.stderr


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


def test_a_ratio_is_the_median_of_those_of_each_round(table: ModuleType) -> None:
    """Not the ratio of the medians, which mixes rounds that the machine was slow or quick in."""
    samples = {"own": [1e-6, 20e-6, 6e-6], "other": [2e-6, 10e-6, 2e-6]}
    row = table.compared(samples, "own", "other", "run", "uvloop", goal=2.0)
    assert row.cells() == [
        "run: own",
        "uvloop",
        "6 µs",
        "other",
        "2 µs",
        "2.00x",
        "0.50x to 3.00x",
        "≤ 2.00x",
        "met",
    ]


@pytest.mark.parametrize(("figure", "met"), [(999.0, "met"), (1000.0, "met"), (1001.0, "missed")])
def test_without_a_peer_the_figure_is_judged(table: ModuleType, figure: float, met: str) -> None:
    cells = table.Row(what="size", figures=[figure], unit="B", goal=1000).cells()
    assert cells[3:] == ["", "", "", "", "≤ 1 kB", met]


@pytest.mark.parametrize(("figure", "met"), [(3.0, "met"), (2.5, "met"), (2.4, "missed")])
def test_of_what_is_better_the_more_the_least_is_a_goal(
    table: ModuleType, figure: float, met: str
) -> None:
    row = table.Row(what="run", figures=[figure], peers=[1.0], unit="jobs/s", least=2.5)
    assert row.has_goal
    assert row.cells()[-2:] == ["≥ 2.50x", met]
    assert not table.Row(what="run", figures=[figure]).has_goal


def test_a_peer_that_takes_nothing_has_no_ratio(table: ModuleType) -> None:
    samples = {"own": [0.5], "other": [0.0]}
    row = table.compared(samples, "own", "other", "skipped", "", unit="share")
    assert row.cells()[2:6] == ["50 %", "other", "0 %", ""]


def test_the_spread_of_many_is_that_of_the_middle_half(table: ModuleType) -> None:
    assert table.spread([float(number) for number in range(11)], "x") == "2.00x to 8.00x"
    assert table.spread([3.0, 1.0, 2.0], "x") == "1.00x to 3.00x"


def test_the_table_is_markdown(table: ModuleType) -> None:
    rows = [table.Row(what="short", figures=[1.0]), table.Row(what="much longer", figures=[2.0])]
    heading, rule, *lines = table.table(rows).splitlines()
    assert heading.startswith("| what        | loop |")
    assert set(rule) <= set("|- ")
    assert [line[:14] for line in lines] == ["| short       ", "| much longer "]
    assert len({len(line) for line in (heading, rule, *lines)}) == 1


async def test_each_contender_has_one_turn_a_round(measure: ModuleType) -> None:
    turns: list[str] = []

    async def turn(name: str) -> int:
        turns.append(name)
        return turns.count(name)

    random.seed(1)
    contenders = {name: lambda name=name: turn(name) for name in "abc"}
    samples = await measure.interleaved(contenders, 3)
    assert samples == {name: [1, 2, 3] for name in "abc"}
    rounds = {"".join(turns[at : at + 3]) for at in range(0, 9, 3)}
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(rounds) > 1, "always in the same order"


def test_lateness_is_counted_from_the_tick_that_the_iteration_is_for(loops: ModuleType) -> None:
    """The second iteration ends after the third tick: that one is skipped, the fourth is not."""
    began = [100.0, 101.5, 103.25]
    ended = [100.0, 102.5, 103.25]
    found = loops.lateness([list(zip(ended, began, strict=True))], [100.0], 1.0)
    assert found == loops.Lateness(median=0.25, p99=0.5, worst=0.5, skipped=0.25)


def test_an_iteration_before_its_tick_does_not_repeat_it(loops: ModuleType) -> None:
    """Timers may fire a hair too early."""
    assert loops.following(0, 0.0, 1.0) == 1
    assert loops.following(1, 0.9999999, 1.0) == 2
    assert loops.following(1, 1.9999999, 1.0) == 2
    assert loops.following(1, 2.1, 1.0) == 3
