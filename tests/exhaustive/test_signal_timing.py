"""Signals at the worst moments: each program ends by them, in time, and nothing is half told."""

from __future__ import annotations

import json
import random
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.processes.process import PATIENCE, PROGRAMS, Process, running

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="no process can be sent SIGINT or SIGTERM on Windows"
)

SCRIPT = PROGRAMS / "interrupted.py"
INT, TERM = signal.SIGINT, signal.SIGTERM
LINES = 24  # for each signal and backend; the script takes any number
BACKENDS = ["asyncio", "uvloop", "trio"]

Case = dict[str, Any]


class Cases:
    """What the script tells of its cases, on all backends at once."""

    def __init__(self, seed: int, stack: ExitStack) -> None:
        self._processes: dict[str, Process] = {
            backend: stack.enter_context(running(SCRIPT, backend, str(seed), str(LINES)))
            for backend in BACKENDS
        }
        self._ended: dict[str, list[Case]] = {}

    def of(self, backend: str, name: str) -> list[Case]:
        if backend not in self._ended:
            process = self._processes[backend]
            process.wait_for("last of")
            assert process.wait() == 0, process.output
            lines = [line for line in process.lines if line.startswith("{")]
            self._ended[backend] = [json.loads(line) for line in lines]
        return [case for case in self._ended[backend] if case["case"] == name]


@pytest.fixture(scope="module")
def cases() -> Iterator[Cases]:
    seed = random.randrange(2**32)
    print("seed", seed)
    with ExitStack() as stack:
        yield Cases(seed, stack)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def check_end(case: Case) -> None:
    """The signal has its way, soon, and nothing is printed that is not to be expected."""
    assert case["status"] == -case["signal"], case["output"]
    assert case["took"] < PATIENCE / 2
    if case["signal"] == TERM:
        assert "Traceback" not in case["output"], case["output"]
    else:  # KeyboardInterrupt shows its own, and that of the cancellation that it came in
        errors = set(re.findall(r"^[\w.]*(?:Error|Exception|Warning)\b", case["output"], re.M))
        assert errors <= {"asyncio.exceptions.CancelledError"}, case["output"]


def check_events(case: Case) -> None:
    """Every task that was added has one end, and the manager told that it has closed."""
    added = re.findall(r"^added (.*)", case["output"], re.M)
    ended = re.findall(r"^ended (.*)", case["output"], re.M)
    assert sorted(added) == sorted(ended), case["output"]
    closed = re.findall(r"^closed: ", case["output"], re.M)
    assert len(closed) == 1 or not added, case["output"]


# What becomes of what was under way, after one signal and after two.
REPORTS = {
    "in_the_hook_of_closing": ("1 succeeded", "1 cancelled|1 not started"),
    "in_the_hook_of_closed": ("1 succeeded", "1 succeeded"),
    "in_the_hook_of_a_task": ("nothing was left", "1 cancelled|nothing was left"),
    "while_observers_catch_up": ("1 succeeded", "1 succeeded"),
    "while_closing_waits": ("1 cancelled", "1 cancelled"),
    "while_tasks_clean_up": ("1 stuck", "1 stuck"),
    "in_a_backoff": ("1 cancelled", "1 cancelled"),
    "in_the_backoff_of_a_loop": ("1 loop stopped|nothing was left", "1 cancelled|nothing was left"),
    "in_a_delay": ("1 not started", "1 not started"),
    "in_a_thread": ("1 cancelled", "1 cancelled"),
    "in_an_iteration": ("1 loop stopped", "1 cancelled"),
    "in_watch": ("1 succeeded|nothing was left", ".*"),  # the task may come first
    "after_leaving": ("1 succeeded", "1 succeeded"),
}


@pytest.mark.parametrize("moment", REPORTS)
def test_one_signal_or_two(cases: Cases, backend: str, moment: str) -> None:
    found = [case for case in cases.of(backend, moment) if case["times"] < 3]
    assert len(found) == 4
    for case in found:
        check_end(case)
        if moment != "while_tasks_clean_up":
            check_events(case)
        expected = REPORTS[moment][case["times"] - 1]
        assert re.search(rf"^closed: ({expected})$", case["output"], re.M), case
        if moment == "in_an_iteration":
            assert ("iteration finished" in case["output"]) == (case["times"] == 1)


@pytest.mark.parametrize("moment", REPORTS)
def test_three_signals(cases: Cases, backend: str, moment: str) -> None:
    """The third may come before the event loop has heard of any: then it ends the process."""
    found = [case for case in cases.of(backend, moment) if case["times"] == 3]
    assert len(found) == 2
    for case in found:
        assert case["status"] == -case["signal"], case["output"]
        assert case["took"] < PATIENCE / 2


@pytest.mark.parametrize("moment", ["before_entering"])
def test_before_entering_nobody_has_to_be_told(cases: Cases, backend: str, moment: str) -> None:
    found = cases.of(backend, moment)
    assert len(found) == 6
    for case in found:
        check_end(case)
        check_events(case)


def test_signals_at_any_line(cases: Cases, backend: str) -> None:
    """One or two, from the first line of entering to the last one of leaving."""
    found = [case for case in cases.of(backend, "lines") if "signal in" in case["output"]]
    print(f"signals at lines tried = {len(found)}, of {2 * LINES}")
    assert len(found) > LINES
    for case in found:
        check_end(case)
        check_events(case)


def test_ctrl_c_at_any_line_of_a_manager_that_handles_no_signals(
    cases: Cases, backend: str
) -> None:
    """What raises it does so in the program's own task, and the manager is left by it."""
    found = [case for case in cases.of(backend, "unhandled") if "signal in" in case["output"]]
    print(f"Ctrl-C tried at lines = {len(found)}, of {LINES}")
    assert len(found) > 0.5 * LINES  # where a run is shorter than another, some come too late
    for case in found:
        check_end(case)
        check_events(case)
