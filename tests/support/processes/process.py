"""Processes for tests: output by line, signals, and a cleanup that always ends them."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import background

PATIENCE = 60.0  # seconds until a test that waits for a process fails

#: The folder of the programs that tests run.
PROGRAMS = Path(__file__).parent / "programs"

#: The folders that programs import from: those of the package and of `support`.
IMPORTS = [str(Path(background.__file__).parents[1]), str(Path(__file__).parents[2])]


class Process:
    """A Python process whose stdout and stderr are read as one stream of lines."""

    def __init__(self, *command: str | Path) -> None:
        path = os.pathsep.join(filter(None, [*IMPORTS, os.environ.get("PYTHONPATH")]))
        self._popen = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
            # A separate console group, so that console events on Windows reach only this process.
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self.lines: list[str] = []
        self._unread: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            self._unread.put(line.rstrip("\n"))
        self._unread.put(None)

    def _next(self, deadline: float) -> str | None:
        line = self._unread.get(timeout=max(0.0, deadline - time.monotonic()))
        if line is None:
            self._unread.put(None)  # for the next call
        else:
            self.lines.append(line)
        return line

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._popen.pid

    @property
    def output(self) -> str:
        """All lines read so far."""
        return "\n".join(self.lines)

    def wait_for(self, text: str) -> str:
        """Read until a line contains the text, and return that line."""
        deadline = time.monotonic() + PATIENCE
        try:
            while (line := self._next(deadline)) is not None:
                if text in line:
                    return line
        except queue.Empty:
            pass
        raise AssertionError(f"no line with {text!r} came; output:\n{self.output}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._popen.send_signal(number)

    def wait(self) -> int:
        """Read until the process has ended, and return its exit status."""
        deadline = time.monotonic() + PATIENCE
        try:
            while self._next(deadline) is not None:
                pass
            return self._popen.wait(max(0.0, deadline - time.monotonic()))
        except (queue.Empty, subprocess.TimeoutExpired):
            raise AssertionError(f"the process does not end; output:\n{self.output}") from None

    def clean_up(self) -> None:
        """End the process if it still runs, and close its output."""
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.wait()
        self._reader.join()
        assert self._popen.stdout is not None
        self._popen.stdout.close()


@contextmanager
def running(*command: str | Path) -> Iterator[Process]:
    """Run `sys.executable` with these arguments until the block ends."""
    process = Process(*command)
    try:
        yield process
    finally:
        process.clean_up()
