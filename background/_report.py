"""What a manager says of itself: on closing, and on being asked how it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from traceback import FrameSummary, format_list
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ._states import ManagerState, TaskKind
from ._support.frozen import record

if TYPE_CHECKING:
    from ._execution.handle import TaskHandle


@record
class CloseReport:
    """What became of the tasks that were outstanding when closing began.

    `not_started` were cancelled before their first start. `cancelled` are the others that were cut
    short, and the loops that were stopped. `stuck` were cancelled and still run: coroutines that
    swallow their cancellation, and threads; `stacks` has, by id, where each stood.
    """

    succeeded: tuple[TaskHandle[Any], ...] = ()
    failed: tuple[TaskHandle[Any], ...] = ()
    cancelled: tuple[TaskHandle[Any], ...] = ()
    expired: tuple[TaskHandle[Any], ...] = ()
    not_started: tuple[TaskHandle[Any], ...] = ()
    stuck: tuple[TaskHandle[Any], ...] = ()
    stacks: Mapping[str, tuple[FrameSummary, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )

    @property
    def summary(self) -> str:
        """How many there are of each, in one line."""
        loops = sum(
            handle.kind is TaskKind.LOOP and handle._reason == "stopped"
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
        texts = (f"{count} {fate}" for fate, count in counts.items() if count)
        return ", ".join(texts) or "nothing was left"

    def __str__(self) -> str:
        lines = [self.summary]
        for handle in self.stuck:
            lines.append(f"{handle!r} stands at")
            lines.append("".join(format_list(list(self.stacks.get(handle.id, ())))).rstrip())
        return "\n".join(lines)


@record
class Health:
    """How a manager stands, for a health check or a dashboard.

    `ok` is true while it takes one-off tasks. `waiting`, `running` and `retrying` count the
    outstanding one-offs, `loops` the loops, `threads` the sync functions in threads now.
    `hook_errors` and `events_dropped` count what went wrong with observers.
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
