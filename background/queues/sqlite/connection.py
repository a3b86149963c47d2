"""The connection to a SQLite file, for jobs and for results."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio

from ..._support import validation
from .._errors import BrokerRefusedError, BrokerUnavailableError
from .schema import connect, refusal
from .thread import SQLiteThread
from .transaction import Work

T = TypeVar("T")

Synchronous = Literal["NORMAL", "FULL"]


class SQLiteFile:
    """A file that can be opened and closed, with a thread for its connection.

    It is open in one event loop at a time.

    Args:
        path: The file.
        synchronous: SQLite's setting `PRAGMA synchronous`.
        timeout: Seconds that a call waits for the locks of other connections.
        on_foreign_change: Called when another connection changes the file while it is watched.

    Raises:
        ValueError: The path does not name a file, or another argument is not valid.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        synchronous: Synchronous,
        timeout: float,
        on_foreign_change: Callable[[], None],
    ) -> None:
        name = os.fspath(path)
        if name in ("", ":memory:"):
            raise ValueError(
                f"path must name a file, not {name!r}; use MemoryBroker for jobs in memory"
            )
        if synchronous not in ("NORMAL", "FULL"):
            raise ValueError(f'synchronous must be "NORMAL" or "FULL", not {synchronous!r}')
        validation.seconds("timeout", timeout, above=0)
        self.path = str(Path(name).absolute())
        self._connect = partial(connect, self.path, synchronous, timeout)
        self._timeout = timeout
        self._on_foreign_change = on_foreign_change
        self._thread: SQLiteThread | None = None
        self._opening: anyio.Lock | None = None  # held while closing, too
        self._refusal: str | None = None

    async def open(self) -> None:
        async with self._exclusively():
            if self._thread is not None:
                return
            thread = SQLiteThread(self.path, self._connect, self._timeout, self._on_foreign_change)
            try:
                await thread.start()
            except BaseException:
                thread.abandon()
                raise
            self._thread = thread
            self._refusal = None

    async def close(self) -> None:
        async with self._exclusively() as opening:
            thread, self._thread = self._thread, None
            if thread is not None:
                await thread.stop()
        if not opening.statistics().locked:  # otherwise it was passed to a waiter
            self._opening = None  # the next event loop may be that of another library

    @asynccontextmanager
    async def _exclusively(self) -> AsyncGenerator[anyio.Lock]:
        opening = self._opening = self._opening or anyio.Lock()
        async with opening:
            yield opening

    async def read(self, work: Work[T]) -> T:
        return await self._opened().call(work, writes=False)

    async def write(self, work: Work[T], *, adds: bool = False) -> T:
        thread = self._opened()
        if adds:
            thread.wal.require_space()
        return await thread.call(work, writes=True)

    async def check_version(self) -> None:
        """Refuse all calls until the file is opened again, if a newer version has migrated it.

        Raises:
            BrokerRefusedError: A newer version of the library has migrated the file.
        """
        self._refusal = await self.read(partial(refusal, path=self.path))
        self._opened()

    @property
    def library(self) -> Any:
        """The SQLite library of the open connection."""
        return self._opened().library

    @contextmanager
    def watched(self) -> Generator[None]:
        """Report changes by other connections inside the block."""
        thread = self._opened()
        thread.watchers += 1
        try:
            yield
        finally:
            thread.watchers -= 1

    def _opened(self) -> SQLiteThread:
        if self._thread is None:
            raise BrokerUnavailableError(f"{self.path} is not open")
        if self._refusal:
            raise BrokerRefusedError(self._refusal)
        return self._thread
