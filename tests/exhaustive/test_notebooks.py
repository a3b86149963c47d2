"""A manager and a queue in the cells of a notebook, run by Jupyter's kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes.process import IMPORTS, PATIENCE

jupyter = pytest.importorskip("jupyter_client.manager")
pytest.importorskip("ipykernel")

pytestmark = pytest.mark.filterwarnings("default")  # those of the client are not ours

START = """
import anyio
from background import Manager
from background.queues import JobQueue

jobs = JobQueue.from_url("sqlite:///jobs.db")

@jobs.handler(name="add")
async def add(a: int, b: int) -> int:
    return a + b

async def open() -> None:
    global manager
    manager = Manager()
    await manager.open()
    await jobs.open()
    await jobs.start(manager)
"""
RUN_A_JOB = "print(await (await add.enqueue(1, 2)).result(timeout=10))"


class Notebook:
    """A kernel that runs cells."""

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join([*IMPORTS, os.environ.get("PYTHONPATH", "")])
        self.kernel, self._client = jupyter.start_new_kernel(
            startup_timeout=PATIENCE, cwd=str(folder), env={**os.environ, "PYTHONPATH": path}
        )

    def run(self, cell: str, *, interrupted: bool = False) -> str:
        """Run a cell, and return what it prints and the name of its error.

        Args:
            cell: The code.
            interrupted: Whether the kernel is interrupted when the cell has printed something.
        """
        output = ""

        def receive(message: Any) -> None:
            nonlocal output
            content = message["content"]
            if message["msg_type"] == "stream":
                output += content["text"]
                if interrupted:
                    self.kernel.interrupt_kernel()
            elif message["msg_type"] == "error":
                output += content["ename"]

        self._client.execute_interactive(cell, timeout=PATIENCE, output_hook=receive)
        return output

    def restart(self) -> None:
        self.kernel.restart_kernel()
        self._client.wait_for_ready(timeout=PATIENCE)

    def close(self) -> None:
        self._client.stop_channels()
        self.kernel.shutdown_kernel(now=True)


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path)
    yield notebook
    notebook.close()


def test_cells(notebook: Notebook) -> None:
    """Tasks and jobs go on between cells, until the manager is closed; it can be opened again."""
    notebook.run(START)
    for _ in range(2):
        assert notebook.run("await open()") == ""
        assert notebook.run("task = manager.run(anyio.sleep, 0.01)") == ""
        assert notebook.run(f"await task; {RUN_A_JOB}") == "3\n"
        notebook.run("await jobs.close(); await manager.close()")
        assert notebook.run("print(manager.state)") == "closed\n"


@pytest.mark.parametrize("blocks", [False, True])
def test_interrupted_cell(notebook: Notebook, blocks: bool) -> None:
    """The interrupt of a cell ends the cell only, also while it blocks the event loop."""
    notebook.run(START)
    notebook.run("await open(); task = manager.run(anyio.sleep_forever)")
    wait = "import time; time.sleep(600)" if blocks else "await anyio.sleep(600)"
    output = notebook.run(f"print('begins', flush=True); {wait}", interrupted=True)
    assert output.splitlines() == ["begins", "KeyboardInterrupt" if blocks else "CancelledError"]
    assert notebook.run(f"print(task.status); {RUN_A_JOB}") == "running\n3\n"


def test_restarted_kernel(notebook: Notebook) -> None:
    """A kernel with an open manager and an open queue can be restarted, and uses the file again."""
    notebook.run(START)
    notebook.run("await open(); manager.run(anyio.sleep_forever)")
    assert notebook.run(RUN_A_JOB) == "3\n"
    notebook.restart()
    assert notebook.run("print('manager' in globals())") == "False\n"
    notebook.run(START)
    assert notebook.run(f"await open(); {RUN_A_JOB}") == "3\n"
