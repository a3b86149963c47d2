"""The brokers that the contract's tests run for, and how time passes for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import anyio

from background.queues.abc import Broker
from background.queues.memory import MemoryBroker
from background.queues.sqlite import SQLiteBroker
from background.testing import virtual_wall_clock


async def sleep(broker: Any, seconds: float) -> None:
    """Let time pass for a broker whose clock is the event loop's."""
    await anyio.sleep(seconds)


@dataclass(frozen=True)
class Kind:
    """A kind of broker.

    - `make`: makes one that is empty; the folder is the test's own.
    - `backends`: what its tests run on, as for the `anyio_backend` fixture.
    - `elapse`: lets so many seconds pass for the broker; real ones need not.
    """

    make: Callable[[Path], Broker]
    backends: tuple[str, ...] = ("virtual-asyncio", "virtual-trio")
    elapse: Callable[[Any, float], Awaitable[None]] = sleep

    @asynccontextmanager
    async def opened(self, folder: Path) -> AsyncIterator[Broker]:
        """Give a broker that is open; its wall clock is as virtual as the event loop's."""
        broker = self.make(folder)
        _kinds[broker] = self
        with virtual_wall_clock(datetime(2030, 1, 1, tzinfo=UTC)):
            await broker.open()
            try:
                yield broker
            finally:
                await broker.close()
                await broker.close()


_kinds: WeakKeyDictionary[Broker, Kind] = WeakKeyDictionary()


async def elapse(broker: Broker, seconds: float) -> None:
    """Let so many seconds pass for a broker."""
    await _kinds[broker].elapse(broker, seconds)


KINDS = {
    "memory": Kind(lambda folder: MemoryBroker()),
    "sqlite": Kind(lambda folder: SQLiteBroker(folder / "jobs.db")),
}

#: A test that has a `broker_kind` runs for all of these.
CASES = [(name, backend) for name, kind in KINDS.items() for backend in kind.backends]
