"""A service as the first process of a container."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.processes.namespaces import can_run
from support.processes.process import PROGRAMS, Process, running
from support.processes.programs.container import NAMESPACE

SCRIPT = PROGRAMS / "container.py"


pytestmark = pytest.mark.skipif(
    not can_run(NAMESPACE), reason="namespaces of processes can't be made here"
)


@contextmanager
def process_one(*, signals: bool) -> Iterator[tuple[Process, int]]:
    """Run the service, and yield its id outside of the namespace."""
    with running(SCRIPT, str(signals)) as process:
        process.wait_for("ready as 1")
        parent = process.pid
        (child,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        yield process, int(child)


def test_signals() -> None:
    """With `signals=True`, SIGTERM closes the manager, and the program continues behind it."""
    with process_one(signals=True) as (process, pid):
        os.kill(pid, signal.SIGTERM)
        process.wait_for("left")
        assert process.wait() == 0


def test_no_signals() -> None:
    """Without, the kernel ignores SIGTERM, because process 1 has no handler for it."""
    with process_one(signals=False) as (process, pid):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGUSR1)
        process.wait_for("alive")
        assert "left" not in process.output
