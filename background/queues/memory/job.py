"""One job of the memory broker, and what time does to it."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from ..._support import clock
from .._states import FINAL, JobState
from ..abc import Message, StoredJob


class MemoryJob:
    """One job; times are the event loop's, but for those that people get to see."""

    def __init__(self, message: Message, number: int, now: float) -> None:
        wall = clock.wall()
        self.message = message
        self.number = number
        self.state = JobState.SCHEDULED
        self.due = inf
        self.blocked = 0  # by so many jobs that it needs
        self.previous: list[bytes | None] = [None] * len(message.needs)
        self.expires = inf if message.expires is None else now + message.expires
        self.lease_ends = inf
        self.ended = inf
        self.forget = inf
        self.token = ""
        self.attempt = 0
        self.crashes = 0
        self.cancelled = False  # while it runs
        self.enqueued_at = wall
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.error: Mapping[str, Any] | None = None
        self.result: bytes | None = None

    @property
    def next_change(self) -> float:
        """When time alone will change its state."""
        if self.state in FINAL:
            return self.forget
        if self.state is JobState.RUNNING:
            return self.lease_ends
        return min(self.due, self.expires) if self.state is JobState.SCHEDULED else self.expires

    def schedule(self, now: float) -> None:
        """Let it be due after its delay."""
        at = self.message.at
        delay = self.message.delay if at is None else at - clock.wall()
        self.due = now + max(0.0, delay)

    def end(self, state: JobState, now: float) -> None:
        self.state = state
        self.token = ""
        self.finished_at = clock.wall()
        self.ended = now
        self.forget = now + self.message.keep

    def stored(self) -> StoredJob:
        return StoredJob(
            message=self.message,
            state=self.state,
            attempt=self.attempt,
            enqueued_at=self.enqueued_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            error=self.error,
            result=self.result,
            previous=tuple(self.previous),
        )
