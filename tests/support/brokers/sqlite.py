"""Helpers for the tests of the SQLite broker."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio

from background.queues._states import JobState
from background.queues.abc import Claim, Message, Settlement
from background.queues.sqlite import SQLiteBroker, library
from background.queues.sqlite.library import Connection
from support.time import SOON


def message(id: str = "one", **options: Any) -> Message:
    return Message(
        **{
            "id": id,
            "handler": "h",
            "queue": "q",
            "body": b"{}",
            "retention": 60,
            "dead_retention": 60,
            **options,
        }
    )


def messages(count: int, **options: Any) -> list[Message]:
    return [message(f"{number:04}", **options) for number in range(count)]


async def finish(broker: SQLiteBroker, claims: list[Claim]) -> list[bool]:
    return await broker.settle(
        [
            Settlement(id=claim.message.id, token=claim.token, state=JobState.SUCCEEDED)
            for claim in claims
        ]
    )


@contextmanager
def other_connection(path: Path) -> Iterator[Connection]:
    """Open a connection with the SQLite library that the broker uses for the file."""
    options: dict[str, Any] = {"isolation_level": None, "check_same_thread": False}
    with closing(library.newest.connect(path, **options)) as db:
        yield db


def thread_of(broker: SQLiteBroker) -> Any:
    return broker._file._thread


class Gate:
    """Blocks a broker's thread until `opened` is set."""

    def __init__(self, broker: SQLiteBroker) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        self._call = thread_of(broker).call

    async def wait(self) -> None:
        await self._call(self._hold, writes=False)

    def _hold(self, db: Connection) -> None:
        self.reached.set()
        assert self.opened.wait(SOON)

    async def run(self, *calls: Callable[[], Awaitable[Any]]) -> None:
        """Start calls one by one while the thread is blocked, then unblock it."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.wait)
            await anyio.to_thread.run_sync(self.reached.wait, SOON)
            for call in calls:
                group.start_soon(call)
                await anyio.wait_all_tasks_blocked()
            self.opened.set()
