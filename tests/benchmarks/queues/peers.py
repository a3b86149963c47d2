"""The peers, each in an environment of its own: they need different versions of the same client."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

#: What to install. SAQ needs `typing-extensions` without saying so; the rest makes them quicker.
NEEDS = {
    "SAQ": ["saq[redis,hiredis]>=0.26", "typing-extensions", "orjson"],
    "arq": ["arq>=0.28"],
    "streaQ": ["streaq>=7.2"],
    "taskiq": ["taskiq[orjson]>=0.13", "taskiq-redis>=1.2", "hiredis"],
}
COMMON = ["uvloop; sys_platform != 'win32'"]


def pythons(folder: Path) -> dict[str, str]:
    """Return the Python of each peer, after having installed those that are missing."""
    return {peer: installed(folder / peer, needs) for peer, needs in NEEDS.items()}


def installed(folder: Path, needs: list[str]) -> str:
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = folder / "complete"
    if not complete.exists():
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *needs, *COMMON]
        subprocess.run(command, check=True)
        complete.touch()
    return str(python)
