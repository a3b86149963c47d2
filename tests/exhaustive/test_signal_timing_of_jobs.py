"""Signals at random lines of a program with durable jobs."""

from __future__ import annotations

import json
import random
import re
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from support.processes.process import PROGRAMS, Process, running

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="no process can be sent SIGINT or SIGTERM on Windows"
)

SCRIPT = PROGRAMS / "interrupted_jobs.py"
LINES = 6  # for each backend, signal and kind of handling; the script accepts any number
BACKENDS = ["asyncio", "uvloop", "trio"]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    seed = random.randrange(2**32)
    print("seed", seed)
    directory = str(tmp_path_factory.mktemp("interrupted"))
    with ExitStack() as stack:
        yield {
            backend: stack.enter_context(running(SCRIPT, backend, str(seed), str(LINES), directory))
            for backend in BACKENDS
        }


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_line(processes: dict[str, Process], backend: str) -> None:
    """A signal at any line ends the program, and no acknowledged job is lost."""
    process = processes[backend]
    process.wait_for("last of")
    assert process.wait() == 0, process.output
    cases = [json.loads(line) for line in process.lines if line.startswith("{")]
    assert len(cases) == 3 * LINES
    tried = [case for case in cases if "signal in" in case["output"]]
    print(f"signals at lines tried = {len(tried)}")
    assert len(tried) > 0.5 * len(cases)  # some are too late in a shorter run
    for case in tried:
        check_case(case)


def check_case(case: dict[str, Any]) -> None:
    output = case["output"]
    assert case["status"] == -case["signal"], output
    errors = set(re.findall(r"^[\w.]*(?:Error|Exception|Warning)\b", output, re.M))
    expected = {"ValueError"}  # from the job that fails
    if case["signal"] == signal.SIGINT:
        expected.add("asyncio.exceptions.CancelledError")
    assert errors <= expected, output
    assert set(re.findall(r"^stored (.*)", output, re.M)) <= read_ids(case["file"]), output


def read_ids(file: str) -> set[str]:
    if not Path(file).exists():
        return set()
    with closing(sqlite3.connect(file)) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'background_jobs'").fetchone():
            return set()
        return {id for (id,) in db.execute("SELECT id FROM background_jobs")}
