"""Linux namespaces for the programs of tests."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence


def can_run(command: Sequence[str]) -> bool:
    """Return whether this user may run programs with a command that makes a namespace."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run([*command, "true"], capture_output=True).returncode == 0
