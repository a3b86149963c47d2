"""What has to hold once a manager is done with, whatever happened to it."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio
import trio
from anyio.lowlevel import current_token

from background import Manager, ManagerClosed, ManagerState, TaskHandle, TaskKind
from background.testing import RecordingObserver
from support.time import SOON

_GRAMMAR = {
    TaskKind.ONE_OFF: r"added( started( retrying)*)?( succeeded| failed| cancelled| expired)",
    TaskKind.LOOP: r"added( started( retrying)*( succeeded| failed))*"
    r"(( started( retrying)*)?( cancelled| expired))?",
}

_DESCRIPTORS = Path("/proc/self/fd")


def untrue_fates(recorder: RecordingObserver, handles: Iterable[TaskHandle[Any]]) -> Iterator[str]:
    """Tell of handles that are not final, or of which observers heard something else."""
    for handle in handles:
        names = [name for name in recorder.names(handle.id) if name != "stalled"]
        if not re.fullmatch(_GRAMMAR[handle.kind], " ".join(names)) or names[-1] != handle.status:
            yield f"{handle!r} was told of as {names}"
        events = [each for each in recorder.events if getattr(each, "id", None) == handle.id]
        for event in events:
            if hasattr(event, "final") and event.final is not (event is events[-1]):
                yield f"{handle!r} was told of by {event!r}"
        if handle.finished_at is None:
            yield f"{handle!r} has never finished"


async def unheard_ends(handles: Iterable[TaskHandle[Any]]) -> Iterator[str]:
    """Tell of handles that keep those waiting who ask for their end."""
    for handle in handles:
        with anyio.move_on_after(0.001):
            if await handle.wait() is handle.status:
                continue
        yield f"{handle!r} keeps its waiters"


def untrue_report(
    manager: Manager, recorder: RecordingObserver, handles: Iterable[TaskHandle[Any]]
) -> Iterator[str]:
    """Tell of a manager that is not closed, or reports something else than was told."""
    health = manager.health()
    if manager.state is not ManagerState.CLOSED or manager.count() or health.threads:
        yield f"{manager!r} has {manager.tasks()} and {health}"
    if health.hook_errors:
        yield f"{manager!r} had {health.hook_errors} errors of observers"
    names, events = recorder.names(), recorder.events
    if (names.count("closing"), names.count("closed")) != (1, 1):
        yield f"{manager!r} told {names}"
        return
    between = events[names.index("closing") : names.index("closed")]
    told = {event.id for event in between if hasattr(event, "id")}
    late = {event.id for event in events[names.index("closed") :] if hasattr(event, "id")}
    ended = sorted(each.id for each in handles if each.id in told - late)
    (closed,) = recorder.of(ManagerClosed)
    report = closed.report
    if report.stuck or sorted(each.id for part in _parts(report) for each in part[1]) != ended:
        yield f"{manager!r} reported {report!r} after {names}"
    for status, part in _parts(report):
        if any(handle.status != status for handle in part):
            yield f"{manager!r} reported {part} as {status}"


def _parts(report: Any) -> list[tuple[str, tuple[TaskHandle[Any], ...]]]:
    fates = ("succeeded", "failed", "cancelled", "expired")
    return [*((fate, getattr(report, fate)) for fate in fates), ("cancelled", report.not_started)]


def has_asyncio() -> bool:
    """Tell whether the event loop is asyncio's."""
    return isinstance(current_token().native_token, asyncio.AbstractEventLoop)


def living() -> int:
    """Return how many tasks the event loop has."""
    if has_asyncio():
        return len(asyncio.all_tasks())
    return trio.lowlevel.current_statistics().tasks_living


def handlers() -> list[Any]:
    """Return who handles the signals that end a process."""
    return [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]


def footprint() -> dict[str, Any]:
    """Return what a process has that could be left behind.

    anyio's worker threads end with their event loop, trio's keep idle for a while.
    """
    for thread in threading.enumerate():
        if thread.name.startswith("AnyIO"):
            thread.join(SOON)
    return {
        "threads": {
            thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread")
        },
        "descriptors": len(list(_DESCRIPTORS.iterdir())) if _DESCRIPTORS.exists() else 0,
        "signal handlers": handlers(),
    }
