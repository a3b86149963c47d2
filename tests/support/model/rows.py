"""The state of one task in the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from typing import Any

from background import TaskKind, TaskStatus
from support.model.plans import Plan


def plain(value: Any) -> Any:
    """Round a float, and replace an error by the name of its class."""
    if isinstance(value, BaseException):
        return type(value).__name__
    return round(value, 5) if isinstance(value, float) else value


class Phase(Enum):
    DELAYED = auto()
    QUEUED = auto()
    STARTING = auto()  # has a slot, but has not made its first step
    RUNNING = auto()
    CLEANING = auto()  # cancelled, but not yet ended
    BACKOFF = auto()
    AWAITING = auto()  # waits for a method of the manager


SHOWN = {Phase.RUNNING: TaskStatus.RUNNING, Phase.CLEANING: TaskStatus.RUNNING}
SHOWN |= {Phase.BACKOFF: TaskStatus.RETRYING, Phase.AWAITING: TaskStatus.RUNNING}


@dataclass(eq=False)
class Row:
    """A task that was accepted."""

    plan: Plan
    submitted: float
    due: float
    expires: float
    phase: Phase = Phase.DELAYED
    final: TaskStatus | None = None
    at: float = inf  # the end of the call, the cleanup or the backoff
    times_out: float = inf
    fails: bool = False
    cancel_pending: bool = False  # cancelled, but the cancellation has not been delivered
    cancelled: bool = False
    reason: str | None = None
    raised: str | None = None  # the error of the latest attempt
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
        """Return the expected result of awaiting the task."""
        return {
            TaskStatus.SUCCEEDED: self.plan.number if not self.is_loop else None,
            TaskStatus.FAILED: self.error,
            TaskStatus.CANCELLED: ("TaskCancelledError", self.reason),
            TaskStatus.EXPIRED: "TaskExpiredError",
        }[self.status]

    def snapshot(self) -> tuple[object, ...]:
        """Return the expected attributes of the task's handle."""
        times = self.submitted, self.started, self.finished
        attributes = self.status.value, self.attempt, self.iteration, self.error, *times
        return tuple(map(plain, attributes))

    @property
    def next(self) -> float:
        """The time of the next change."""
        starting = self.phase is Phase.STARTING
        if starting or (self.cancel_pending and self.phase is not Phase.CLEANING):
            return -inf
        times = {
            Phase.DELAYED: (self.due, self.expires),
            Phase.QUEUED: (self.expires,),
            Phase.RUNNING: (self.at, self.times_out, self.expires),
            Phase.CLEANING: (self.at,),
            Phase.BACKOFF: (self.at, self.expires),
            Phase.AWAITING: (self.times_out, self.expires),
        }
        return min(times[self.phase])
