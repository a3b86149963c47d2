"""Who takes part, and how somebody is measured in a process of its own."""

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
#: The event loop of everybody.
LOOP = eventloops.ASYNCIO[-1]

_SCRIPT = str(Path(__file__).with_name("contend.py"))
_MEASURED_WITHIN = 600.0  # seconds
_ENDED_WITHIN = 2.0
_MOST = 1_000_000  # bytes of what is said


@dataclass(frozen=True)
class Entry:
    """Somebody who takes part.

    - `module`: is a contender, for that Python.
    - `store`: gives a URL where nothing is queued.
    - `peer`: is made by others.
    """

    module: str
    store: Callable[[], AbstractContextManager[str]]
    python: str = sys.executable
    peer: bool = False

    async def measured(self, action: str, jobs: int) -> Any:
        """Return what an action says."""
        with self.store() as url, anyio.fail_after(_MEASURED_WITHIN):
            async with self._running(action, url, jobs) as said:
                return await said()

    async def received(self, jobs: int) -> Any:
        """Return what the receiver says of jobs that come from another process."""
        with self.store() as url, anyio.fail_after(_MEASURED_WITHIN):
            async with self._running("receive", url, jobs) as received:
                await received()
                async with self._running("send", url, jobs):
                    return await received()

    @asynccontextmanager
    async def _running(
        self, action: str, url: str, jobs: int
    ) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
        """Run an action; give a function that returns what it says next."""
        command = [self.python, _SCRIPT, self.module, action, url, str(jobs)]
        env = os.environ if self.peer else environment()
        async with await anyio.open_process(command, stderr=None, env=env) as process:
            assert process.stdout is not None
            lines = BufferedByteReceiveStream(process.stdout)

            async def said() -> Any:
                return json.loads(await lines.receive_until(b"\n", _MOST))

            yield said
            with anyio.move_on_after(_ENDED_WITHIN if self.peer else _MEASURED_WITHIN):
                await process.wait()
            if process.returncode is None:  # some peers don't always come to an end
                process.kill()
            elif process.returncode:
                raise RuntimeError(f"{self.module} {action} ended with {process.returncode}")


def environment() -> dict[str, str]:
    """Return the variables of a process that imports what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def entries(server: str, pythons: dict[str, str]) -> dict[str, Entry]:
    """Return everybody, for one Redis server, if there is one, and the peers' Pythons."""
    shared = partial(emptied, server)
    found = {
        OURS.format(broker): Entry("ours", shared if broker == "redis" else STORES[broker])
        for broker in BROKERS
    }
    if server:
        found[FLOOR] = Entry("floor", shared)
    for peer, python in pythons.items():
        found[peer] = Entry(f"peer_{peer.lower()}", shared, python, peer=True)
    return found
