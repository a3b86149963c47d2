"""SQLite files on a small disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.processes.namespaces import can_run
from support.processes.process import PROGRAMS, running
from support.processes.programs.small_disk import NAMESPACE


@pytest.mark.skipif(not can_run(NAMESPACE), reason="file systems can't be mounted here")
def test_growing_log(tmp_path: Path) -> None:
    """A log that a reader makes grow leaves space to write it back when the reader is gone."""
    with running(PROGRAMS / "small_disk.py", tmp_path) as process:
        assert process.wait() == 0, process.output
    assert "refused" in process.output
    assert "less free space than is needed to write this log back" in process.output
