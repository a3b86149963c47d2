"""Environments of the peers, which need different versions of the same Redis client."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

#: Requirements. SAQ does not declare `typing-extensions`; the others make the peers faster.
REQUIREMENTS = {
    "SAQ": ["saq[redis,hiredis]>=0.26", "typing-extensions", "orjson"],
    "arq": ["arq>=0.28"],
    "streaQ": ["streaq>=7.2"],
    "taskiq": ["taskiq[orjson]>=0.13", "taskiq-redis>=1.2", "hiredis"],
}
COMMON = ["uvloop; sys_platform != 'win32'"]


def pythons(folder: Path) -> dict[str, str]:
    """Install the missing peers, and return the Python of every peer."""
    return {peer: install(folder / peer, packages) for peer, packages in REQUIREMENTS.items()}


def install(folder: Path, packages: list[str]) -> str:
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = folder / "complete"
    if not complete.exists():
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *packages, *COMMON]
        subprocess.run(command, check=True)
        complete.touch()
    return str(python)
