"""Signals at every moment: programs end in time, and all events are emitted."""

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
LINES = 24  # for each signal and backend; the script accepts any number
BACKENDS = ["asyncio", "uvloop", "trio"]

Case = dict[str, Any]


class Cases:
    """The results of the script, which runs on all backends at the same time."""

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
    """Check that the signal ended the process in time, with the expected output only."""
    assert case["status"] == -case["signal"], case["output"]
    assert case["took"] < PATIENCE / 2
    if case["signal"] == TERM:
        assert "Traceback" not in case["output"], case["output"]
    else:  # the traceback of a KeyboardInterrupt may include that of a cancellation
        errors = set(re.findall(r"^[\w.]*(?:Error|Exception|Warning)\b", case["output"], re.M))
        assert errors <= {"asyncio.exceptions.CancelledError"}, case["output"]


def check_events(case: Case) -> None:
    """Check that every task has one end, and that the manager emitted one "closed" event."""
    added = re.findall(r"^added (.*)", case["output"], re.M)
    ended = re.findall(r"^ended (.*)", case["output"], re.M)
    assert sorted(added) == sorted(ended), case["output"]
    closed = re.findall(r"^closed: ", case["output"], re.M)
    assert len(closed) == 1 or not added, case["output"]


# The manager's report after one signal and after two.
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
    "in_watch": ("1 succeeded|nothing was left", ".*"),  # the task may start first
    "after_leaving": ("1 succeeded", "1 succeeded"),
}


@pytest.mark.parametrize("moment", REPORTS)
def test_one_or_two_signals(cases: Cases, backend: str, moment: str) -> None:
    """One or two signals at a moment end the program with the expected report."""
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
    """Three signals end the process, perhaps before the event loop has handled the first one."""
    found = [case for case in cases.of(backend, moment) if case["times"] == 3]
    assert len(found) == 2
    for case in found:
        assert case["status"] == -case["signal"], case["output"]
        assert case["took"] < PATIENCE / 2


@pytest.mark.parametrize("moment", ["before_entering"])
def test_before_entering(cases: Cases, backend: str, moment: str) -> None:
    """Signals before the manager is entered end the process; no events are required."""
    found = cases.of(backend, moment)
    assert len(found) == 6
    for case in found:
        check_end(case)
        check_events(case)


def test_any_line(cases: Cases, backend: str) -> None:
    """One or two signals at any line from entering to leaving end the program."""
    found = [case for case in cases.of(backend, "lines") if "signal in" in case["output"]]
    print(f"signals at lines tried = {len(found)}, of {2 * LINES}")
    assert len(found) > LINES
    for case in found:
        check_end(case)
        check_events(case)


def test_unhandled_ctrl_c(cases: Cases, backend: str) -> None:
    """An unhandled Ctrl-C at any line is raised in the main task, and the manager is left."""
    found = [case for case in cases.of(backend, "unhandled") if "signal in" in case["output"]]
    print(f"Ctrl-C tried at lines = {len(found)}, of {LINES}")
    assert len(found) > 0.5 * LINES  # some come too late if a run is shorter than the first one
    for case in found:
        check_end(case)
        check_events(case)
