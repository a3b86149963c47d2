"""The commands of installation in the documentation and the examples."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.py")]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
    "optional-dependencies"
]
COMMAND = re.compile(r"pip install ([^#\n&)`]+)")
COMMANDS = sorted(
    (path.relative_to(ROOT).as_posix(), command.strip())
    for path in TEXTS
    for command in COMMAND.findall(path.read_text("utf-8"))
)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_command(page: str, command: str) -> None:
    """A command installs the checkout, with extras that exist, or packages of the tests."""
    names = {
        re.split(r"[^\w-]", requirement)[0] for extra in EXTRAS.values() for requirement in extra
    }
    for word in shlex.split(command):
        if found := re.fullmatch(r"\.(?:\[(.+)\])?", word):
            assert {*(found[1] or "test").split(",")} <= EXTRAS.keys()
        elif not word.startswith("-"):
            assert word in (names | {"nox"}) - {"anyio-background"}


def test_commands_are_found() -> None:
    """Commands are found in the README, the documentation and the examples."""
    assert {"README.md", "docs/tutorial.md", "examples/otel.py"} <= {page for page, _ in COMMANDS}
