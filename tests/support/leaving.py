"""Helpers for the tests of leaving a manager's block."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.from_thread

from background import (
    CloseReport,
    ManagerClosed,
)
from background.testing import RecordingObserver, VirtualTimeLoop


async def fails_after(seconds: float, error: BaseException) -> None:
    await anyio.sleep(seconds)
    raise error


def report_to(recorder: RecordingObserver) -> CloseReport:
    (event,) = recorder.of(ManagerClosed)
    return event.report


def uv_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


LOOPS = [VirtualTimeLoop] if sys.platform == "win32" else [VirtualTimeLoop, uv_loop]


Run = Callable[[Callable[[], Awaitable[Any]]], Any]
