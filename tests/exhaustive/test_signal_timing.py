"""Signals at every moment: programs end in time, and all events are emitted."""

from __future__ import annotations

import json
import random
import re
import signal
import sys
from typing import Any

import pytest
from support.processes.process import PROGRAMS, running

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="no process can be sent SIGINT or SIGTERM on Windows"
)

SCRIPT = PROGRAMS / "interrupted.py"
INT, TERM = signal.SIGINT, signal.SIGTERM
LINES = 24  # for each signal and backend; the script accepts any number
BACKENDS = ["asyncio", "uvloop", "trio"]

Case = dict[str, Any]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def run(part: str, backend: str) -> list[Case]:
    """Run a part of the script, and return its cases."""
    seed = random.randrange(2**32)
    print("seed", seed)
    with running(SCRIPT, part, backend, str(seed), str(LINES)) as process:
        while not process.wait_for("").startswith("last of"):
            pass
        assert process.wait() == 0, process.output
    return [json.loads(line) for line in process.lines if line.startswith("{")]


def check_end(case: Case) -> None:
    """Check that the signal ended the process in time, with the expected output only."""
    assert case["status"] == -case["signal"], case["output"]
    if case["times"] == 3:  # Ctrl-C may be raised anywhere
        return
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


def check_report(case: Case) -> None:
    """Check what the manager reports after one signal or two."""
    expected = REPORTS[case["case"]][case["times"] - 1]
    assert re.search(rf"^closed: ({expected})$", case["output"], re.M), case
    if case["case"] == "in_an_iteration":
        assert ("iteration finished" in case["output"]) == (case["times"] == 1)


def test_moments(backend: str) -> None:
    """One or two signals at a moment end the program with the expected report, three at once.

    The third one may end it before the event loop has handled the first one. Before the manager
    is entered no events are required.
    """
    cases = run("moments", backend)
    assert len(cases) == 6 * (len(REPORTS) + 1)
    for case in cases:
        check_end(case)
        if case["times"] == 3:
            continue
        if case["case"] != "while_tasks_clean_up":
            check_events(case)
        if case["case"] != "before_entering":
            check_report(case)


def test_any_line(backend: str) -> None:
    """One or two signals at any line from entering to leaving end the program."""
    found = [case for case in run("lines", backend) if "signal in" in case["output"]]
    print(f"signals at lines tried = {len(found)}, of {2 * LINES}")
    assert len(found) > LINES
    for case in found:
        check_end(case)
        check_events(case)


def test_unhandled_ctrl_c(backend: str) -> None:
    """An unhandled Ctrl-C at any line is raised in the main task, and the manager is left."""
    found = [case for case in run("unhandled", backend) if "signal in" in case["output"]]
    print(f"Ctrl-C tried at lines = {len(found)}, of {LINES}")
    assert len(found) > 0.5 * LINES  # some come too late if a run is shorter than the first one
    for case in found:
        check_end(case)
        check_events(case)
