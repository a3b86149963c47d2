"""Helpers for the tests of leaving a manager's block."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio
import anyio.from_thread

from background import (
    CloseReport,
    ManagerClosed,
)
from background.testing import RecordingObserver, VirtualTimeLoop

T = TypeVar("T")


async def fails_after(seconds: float, error: BaseException) -> None:
    await anyio.sleep(seconds)
    raise error


def report_to(recorder: RecordingObserver) -> CloseReport:
    (event,) = recorder.of(ManagerClosed)
    return event.report


def uv_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


async def run_in_task(fn: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `fn` in a native task, which has no cancel scope, and return its result."""
    if asyncio_running():
        return await asyncio.create_task(fn())
    import trio
    from outcome import Outcome, acapture

    outcomes: list[Outcome[T]] = []

    async def run() -> None:
        outcomes.append(await acapture(fn))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
    return outcomes[0].unwrap()


def asyncio_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def count_tasks() -> int:
    """Return the number of tasks in the event loop, including those of this library."""
    if asyncio_running():
        return len(asyncio.all_tasks())
    import trio

    return trio.lowlevel.current_statistics().tasks_living


LOOPS = [VirtualTimeLoop] if sys.platform == "win32" else [VirtualTimeLoop, uv_loop]


Run = Callable[[Callable[[], Awaitable[Any]]], Any]
