"""Every snippet of the README and of docs/ is run: as a program, an application, or tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = {
    f"{page.stem} {number}": snippet
    for page in PAGES
    for number, snippet in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL), start=1
    )
}

CALL_THE_APPLICATION = """
from fastapi.testclient import TestClient
with TestClient(app) as client:
    print(client.post("/users/ada").raise_for_status().json())
"""


def run(*arguments: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("snippet", SNIPPETS.values(), ids=SNIPPETS)
def test_snippet(snippet: str, tmp_path: Path) -> None:
    program = tmp_path / "test_snippet.py"
    if "def test_" in snippet:
        program.write_text(snippet, "utf-8")
        assert "2 passed" in run(
            "-m", "pytest", "-q", "-p", "no:cacheprovider", program, cwd=tmp_path
        )
    elif "FastAPI(" in snippet:
        program.write_text(snippet + CALL_THE_APPLICATION, "utf-8")
        assert "task" in run(program, cwd=tmp_path)
    else:
        assert "anyio.run(main)" in snippet
        program.write_text(snippet, "utf-8")
        run("-W", "error", program, cwd=tmp_path)


def test_there_are_snippets_of_every_kind() -> None:
    kinds = ("def test_", "FastAPI(", "anyio.run(main)")
    assert all(any(kind in snippet for snippet in SNIPPETS.values()) for kind in kinds)
