"""Invariants of a closed manager, however it was closed."""

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


def task_violations(
    recorder: RecordingObserver, handles: Iterable[TaskHandle[Any]]
) -> Iterator[str]:
    """Yield the handles that are not final, or that disagree with their events."""
    for handle in handles:
        names = [name for name in recorder.names(handle.id) if name != "stalled"]
        if not re.fullmatch(_GRAMMAR[handle.kind], " ".join(names)) or names[-1] != handle.status:
            yield f"{handle!r} had the events {names}"
        events = [event for event in recorder.events if getattr(event, "id", None) == handle.id]
        for event in events:
            if hasattr(event, "final") and event.final is not (event is events[-1]):
                yield f"{handle!r} had the event {event!r}"
        if handle.finished_at is None:
            yield f"{handle!r} has never finished"


async def unnotified_waiters(handles: Iterable[TaskHandle[Any]]) -> Iterator[str]:
    """Yield the handles whose `wait()` does not return although the task has ended."""
    for handle in handles:
        with anyio.move_on_after(0.001):
            if await handle.wait() is handle.status:
                continue
        yield f"{handle!r}.wait() does not return"


def report_violations(
    manager: Manager, recorder: RecordingObserver, handles: Iterable[TaskHandle[Any]]
) -> Iterator[str]:
    """Yield problems of a manager that is not closed, or whose report disagrees with its events."""
    health = manager.health()
    if manager.state is not ManagerState.CLOSED or manager.count() or health.threads:
        yield f"{manager!r} has {manager.tasks()} and {health}"
    if health.hook_errors:
        yield f"{manager!r} had {health.hook_errors} errors of observers"
    names, events = recorder.names(), recorder.events
    if (names.count("closing"), names.count("closed")) != (1, 1):
        yield f"{manager!r} emitted {names}"
        return
    between = events[names.index("closing") : names.index("closed")]
    reported = {event.id for event in between if hasattr(event, "id")}
    late = {event.id for event in events[names.index("closed") :] if hasattr(event, "id")}
    ended = sorted(handle.id for handle in handles if handle.id in reported - late)
    (closed,) = recorder.of(ManagerClosed)
    report = closed.report
    if report.stuck or sorted(task.id for part in _parts(report) for task in part[1]) != ended:
        yield f"{manager!r} reported {report!r} after {names}"
    for status, part in _parts(report):
        if any(handle.status != status for handle in part):
            yield f"{manager!r} reported {part} as {status}"


def _parts(report: Any) -> list[tuple[str, tuple[TaskHandle[Any], ...]]]:
    ends = ("succeeded", "failed", "cancelled", "expired")
    return [*((end, getattr(report, end)) for end in ends), ("cancelled", report.not_started)]


def has_asyncio() -> bool:
    """Return whether the event loop is asyncio's."""
    return isinstance(current_token().native_token, asyncio.AbstractEventLoop)


def count_tasks() -> int:
    """Return the number of tasks in the event loop."""
    if has_asyncio():
        return len(asyncio.all_tasks())
    return trio.lowlevel.current_statistics().tasks_living


def signal_handlers() -> list[Any]:
    """Return the handlers of SIGINT and SIGTERM."""
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def process_resources() -> dict[str, Any]:
    """Return the process's resources that could leak.

    anyio's worker threads end with their event loop; trio's stay idle for a while.
    """
    for thread in threading.enumerate():
        if thread.name.startswith("AnyIO"):
            thread.join(SOON)
    return {
        "threads": {
            thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread")
        },
        "descriptors": len(list(_DESCRIPTORS.iterdir())) if _DESCRIPTORS.exists() else 0,
        "signal handlers": signal_handlers(),
    }
