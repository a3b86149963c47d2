"""Reports of a manager about its health and its closing, and the events that carry them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from traceback import FrameSummary, format_list
from typing import Any

from ._execution.handle import TaskHandle, state_of
from ._states import ManagerState, TaskKind
from ._support.frozen import empty, frozen


@frozen
class CloseReport:
    """The outcome of the tasks that were outstanding when closing began, or submitted since.

    Args:
        succeeded: Tasks that succeeded.
        failed: Tasks that failed.
        cancelled: Tasks that were cancelled while they ran, and loops that were stopped.
        expired: Tasks whose lifespan ended.
        not_started: Tasks that were cancelled before their first start.
        stuck: Tasks that were cancelled and still run: coroutines that swallow their cancellation,
            and threads.
        stacks: The stacks of stuck tasks, by task id.
    """

    succeeded: tuple[TaskHandle[Any], ...] = ()
    failed: tuple[TaskHandle[Any], ...] = ()
    cancelled: tuple[TaskHandle[Any], ...] = ()
    expired: tuple[TaskHandle[Any], ...] = ()
    not_started: tuple[TaskHandle[Any], ...] = ()
    stuck: tuple[TaskHandle[Any], ...] = ()
    stacks: Mapping[str, tuple[FrameSummary, ...]] = field(default_factory=empty)

    @property
    def summary(self) -> str:
        """The number of tasks of each outcome, in one line."""
        loops = sum(
            handle.kind is TaskKind.LOOP and state_of(handle).cancel_reason == "stopped"
            for handle in self.cancelled
        )
        counts = {
            "succeeded": len(self.succeeded),
            "failed": len(self.failed),
            "cancelled": len(self.cancelled) - loops,
            "loop stopped" if loops == 1 else "loops stopped": loops,
            "expired": len(self.expired),
            "not started": len(self.not_started),
            "stuck": len(self.stuck),
        }
        texts = (f"{count} {outcome}" for outcome, count in counts.items() if count)
        return ", ".join(texts) or "nothing was left"

    def __str__(self) -> str:
        lines = [self.summary]
        for handle in self.stuck:
            lines.append(f"{handle!r} is still at")
            lines.append("".join(format_list(list(self.stacks.get(handle.id, ())))).rstrip())
        return "\n".join(lines)


@frozen
class ManagerClosing:
    """The manager accepts no more tasks.

    Args:
        name: The manager's name.
        time: When closing began, in seconds since the epoch.
        reason: Why it closes.
        outstanding: The number of tasks that are outstanding.
    """

    name: str
    time: float
    reason: str
    outstanding: int


@frozen
class ManagerClosed:
    """The manager has closed.

    Args:
        name: The manager's name.
        time: When it closed, in seconds since the epoch.
        duration: Seconds since closing began.
        report: The outcome of its tasks.
    """

    name: str
    time: float
    duration: float
    report: CloseReport


@frozen
class Health:
    """The condition of a manager, for a health check or a dashboard.

    Args:
        name: The manager's name.
        state: The manager's state.
        ok: Whether it accepts one-off tasks.
        waiting: The number of outstanding one-offs that have not started.
        running: The number of outstanding one-offs that run.
        retrying: The number of outstanding one-offs that wait for another attempt.
        loops: The number of loops.
        threads: The number of sync functions that run in threads.
        hook_errors: The number of errors that observer hooks raised.
        events_dropped: The number of events that observers missed.
    """

    name: str
    state: ManagerState
    ok: bool
    waiting: int
    running: int
    retrying: int
    loops: int
    threads: int
    hook_errors: int
    events_dropped: int
