"""The brokers that the contract's tests run for, and how time passes for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import anyio

from background.queues.abc import Broker, Results
from background.queues.memory import MemoryBroker, MemoryResults
from background.queues.sqlite import SQLiteBroker, SQLiteResults
from background.testing import virtual_wall_clock

S = TypeVar("S", Broker, Results)


async def sleep(broker: Any, seconds: float) -> None:
    """Let time pass for a broker whose clock is the event loop's."""
    await anyio.sleep(seconds)


@dataclass(frozen=True)
class Kind:
    """A kind of broker.

    - `make`: makes one that is empty; the folder is the test's own.
    - `backends`: what its tests run on, as for the `anyio_backend` fixture.
    - `results`: makes a store of results that is empty.
    - `elapse`: lets so many seconds pass for either; real ones need not.
    """

    make: Callable[[Path], Broker]
    results: Callable[[Path], Results]
    backends: tuple[str, ...] = ("virtual-asyncio", "virtual-trio")
    elapse: Callable[[Any, float], Awaitable[None]] = sleep

    @asynccontextmanager
    async def opened(self, made: S) -> AsyncIterator[S]:
        """Open what was made; its wall clock is as virtual as the event loop's."""
        _kinds[made] = self
        with virtual_wall_clock(datetime(2030, 1, 1, tzinfo=UTC)):
            await made.open()
            try:
                yield made
            finally:
                await made.close()
                await made.close()


_kinds: WeakKeyDictionary[Broker | Results, Kind] = WeakKeyDictionary()


async def elapse(store: Broker | Results, seconds: float) -> None:
    """Let so many seconds pass for a broker or a store of results."""
    await _kinds[store].elapse(store, seconds)


KINDS = {
    "memory": Kind(lambda folder: MemoryBroker(), lambda folder: MemoryResults()),
    "sqlite": Kind(
        lambda folder: SQLiteBroker(folder / "jobs.db"),
        lambda folder: SQLiteResults(folder / "results.db"),
    ),
}

#: A test that has a `broker_kind` runs for all of these.
CASES = [(name, backend) for name, kind in KINDS.items() for backend in kind.backends]
