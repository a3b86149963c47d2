"""The README's and the documentation's snippets: programs, applications and tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A block of text right after a snippet is its output.
SNIPPET = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)
SNIPPETS = {
    f"{page.relative_to(ROOT).with_suffix('').as_posix()} {number}": found.groups()
    for page in PAGES
    for number, found in enumerate(SNIPPET.finditer(page.read_text("utf-8")), start=1)
}

CALL_THE_APPLICATION = """
from starlette.testclient import TestClient
with TestClient(app) as client:
    print(client.post("/users/ada").raise_for_status().json())
"""

CALL_THE_WSGI_APPLICATION = """
import httpx
with httpx.Client(transport=httpx.WSGITransport(app=app), base_url="http://localhost") as client:
    print(client.post("/users/ada").raise_for_status().json())
"""

# Windows has no SIGTERM that a process can handle.
STOP_THE_WORKER = """
import signal, threading, time
def stop():
    number = getattr(signal, "SIGBREAK", signal.SIGTERM)
    while signal.getsignal(number) is signal.SIG_DFL:
        time.sleep(0.01)
    signal.raise_signal(number)
threading.Thread(target=stop, daemon=True).start()
"""


def run(*arguments: object, cwd: Path, stopped: bool = False) -> str:
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=60,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONUNBUFFERED": "1",
            "PYTHONUTF8": "1",
        },
    )
    assert (process.returncode != 0) is stopped, process.stdout
    return process.stdout


_PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio")


def without_ids_and_times(text: str) -> str:
    """Return an output without ids and times."""
    return re.sub(r"\b[0-9a-f]{8,}(-\d+)?\b|\d+\.\d+", "0", text)


@pytest.mark.parametrize(("snippet", "output"), SNIPPETS.values(), ids=SNIPPETS)
def test_snippet(snippet: str, output: str | None, tmp_path: Path) -> None:
    """A snippet runs without an error or a warning, and prints what the page says."""
    program = tmp_path / "test_snippet.py"
    program.write_text(snippet, "utf-8")
    if "def test_" in snippet:
        printed = run(*_PYTEST, program, cwd=tmp_path)
        assert " passed" in printed
    elif "\napp = " in snippet:
        is_sync = "import Flask" in snippet or "wsgi" in snippet
        call = CALL_THE_WSGI_APPLICATION if is_sync else CALL_THE_APPLICATION
        program.write_text(snippet + call, "utf-8")
        assert "'task': " in run(program, cwd=tmp_path)
    elif "jobs.work(" in snippet:
        program.write_text(STOP_THE_WORKER + snippet, "utf-8")
        assert "Traceback" not in run("-W", "error", program, cwd=tmp_path, stopped=True)
    else:
        assert "anyio.run(" in snippet or "_sync(" in snippet
        printed = run("-W", "error", program, cwd=tmp_path)
        if output is not None:
            printed = printed.replace(f"{tmp_path}{os.sep}", "")
            assert without_ids_and_times(printed) == without_ids_and_times(output)


def test_kinds_of_snippets() -> None:
    """Snippets of every kind are found, and some with their output."""
    kinds = ("def test_", "\napp = ", "anyio.run(")
    assert all(any(kind in snippet for snippet, _ in SNIPPETS.values()) for kind in kinds)
    assert any(output is not None for _, output in SNIPPETS.values())
