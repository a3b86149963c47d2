"""One task as `model.py` keeps it: a row with times."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from typing import Any

from background import TaskKind, TaskStatus
from support.model.plans import Plan


def plain(value: Any) -> Any:
    """Return a value without what sums of floats add to it, and an error by its name."""
    if isinstance(value, BaseException):
        return type(value).__name__
    return round(value, 5) if isinstance(value, float) else value


class Phase(Enum):
    DELAYED = auto()
    QUEUED = auto()
    STARTING = auto()  # may run, and has not had its first step
    RUNNING = auto()
    CLEANING = auto()  # cut short, and not yet ended
    BACKOFF = auto()
    ASKING = auto()  # waits for what its function asked of the manager


SHOWN = {Phase.RUNNING: TaskStatus.RUNNING, Phase.CLEANING: TaskStatus.RUNNING}
SHOWN |= {Phase.BACKOFF: TaskStatus.RETRYING, Phase.ASKING: TaskStatus.RUNNING}


@dataclass(eq=False)
class Row:
    """A task that was taken."""

    plan: Plan
    submitted: float
    due: float
    expires: float
    phase: Phase = Phase.DELAYED
    final: TaskStatus | None = None
    at: float = inf  # when the call, the clean-up or the backoff is over
    times_out: float = inf
    fails: bool = False
    cut: bool = False  # its cancellation has not reached it yet
    cancelled: bool = False
    reason: str | None = None
    raised: str | None = None  # by its latest attempt
    error: str | None = None
    calls: int = 0
    attempt: int = 0
    iteration: int = 0
    failures: int = 0
    started: float | None = None
    finished: float | None = None
    events: list[tuple[object, ...]] = field(default_factory=list)

    @property
    def status(self) -> TaskStatus:
        return self.final or SHOWN.get(self.phase, TaskStatus.WAITING)

    @property
    def is_loop(self) -> bool:
        return self.plan.kind is TaskKind.LOOP

    def result(self) -> object:
        """Return what awaiting the task should come to."""
        return {
            TaskStatus.SUCCEEDED: self.plan.number if not self.is_loop else None,
            TaskStatus.FAILED: self.error,
            TaskStatus.CANCELLED: ("TaskCancelledError", self.reason),
            TaskStatus.EXPIRED: "TaskExpiredError",
        }[self.status]

    def look(self) -> tuple[object, ...]:
        """Return what the task's handle should show now."""
        times = self.submitted, self.started, self.finished
        about = self.status.value, self.attempt, self.iteration, self.error, *times
        return tuple(map(plain, about))

    @property
    def next(self) -> float:
        """When something happens to it."""
        if self.phase is Phase.STARTING or (self.cut and self.phase is not Phase.CLEANING):
            return -inf
        times = {
            Phase.DELAYED: (self.due, self.expires),
            Phase.QUEUED: (self.expires,),
            Phase.RUNNING: (self.at, self.times_out, self.expires),
            Phase.CLEANING: (self.at,),
            Phase.BACKOFF: (self.at, self.expires),
            Phase.ASKING: (self.times_out, self.expires),
        }
        return min(times[self.phase])
