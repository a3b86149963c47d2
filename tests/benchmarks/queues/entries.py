"""The contenders of the comparison, which are measured in separate processes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import eventloops
from anyio.streams.buffered import BufferedByteReceiveStream
from ours import BROKERS
from servers import STORES, emptied

OURS = "background, {}"
FLOOR = "raw client"
#: The event loop of all contenders.
LOOP = eventloops.ASYNCIO[-1]

_SCRIPT = str(Path(__file__).with_name("contend.py"))
_MEASURED_WITHIN = 600.0  # seconds
_ENDED_WITHIN = 2.0
_MAX_LINE = 1_000_000  # bytes


@dataclass(frozen=True)
class Entry:
    """A contender and its environment.

    Args:
        module: The name of the contender's module.
        store: Returns the URL of an empty store.
        python: The Python that runs the contender.
        peer: Whether the contender is another library.
    """

    module: str
    store: Callable[[], AbstractContextManager[str]]
    python: str = sys.executable
    peer: bool = False

    async def measure(self, action: str, jobs: int) -> Any:
        """Return the result of an action."""
        with self.store() as url, anyio.fail_after(_MEASURED_WITHIN):
            async with self._running(action, url, jobs) as read:
                return await read()

    async def measure_receiver(self, jobs: int) -> Any:
        """Return the result of a receiver of jobs from another process."""
        with self.store() as url, anyio.fail_after(_MEASURED_WITHIN):
            async with self._running("receive", url, jobs) as read:
                await read()
                async with self._running("send", url, jobs):
                    return await read()

    @asynccontextmanager
    async def _running(
        self, action: str, url: str, jobs: int
    ) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
        """Run an action, and yield a function that reads its next result."""
        command = [self.python, _SCRIPT, self.module, action, url, str(jobs)]
        env = os.environ if self.peer else environment()
        async with await anyio.open_process(command, stderr=None, env=env) as process:
            assert process.stdout is not None
            lines = BufferedByteReceiveStream(process.stdout)

            async def read() -> Any:
                return json.loads(await lines.receive_until(b"\n", _MAX_LINE))

            yield read
            with anyio.move_on_after(_ENDED_WITHIN if self.peer else _MEASURED_WITHIN):
                await process.wait()
            if process.returncode is None:  # some peers do not always end
                process.kill()
            elif process.returncode:
                raise RuntimeError(f"{self.module} {action} ended with {process.returncode}")


def environment() -> dict[str, str]:
    """Return the environment of a process with the same import path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def entries(server: str, pythons: dict[str, str]) -> dict[str, Entry]:
    """Return all contenders, for a Redis server, if there is one, and the peers' Pythons."""
    shared = partial(emptied, server)
    contenders = {
        OURS.format(broker): Entry("ours", shared if broker == "redis" else STORES[broker])
        for broker in BROKERS
    }
    if server:
        contenders[FLOOR] = Entry("floor", shared)
    for peer, python in pythons.items():
        contenders[peer] = Entry(f"peer_{peer.lower()}", shared, python, peer=True)
    return contenders
