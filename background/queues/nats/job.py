"""One job of the NATS broker: the state machine, and what its record needs beside that.

Times are seconds since the epoch.
"""

from __future__ import annotations

from .._state_machine import JobRecord
from .._states import JobState
from ..abc import Message


class NatsJob(JobRecord):
    """A job as its record has it: changed, then stored unless the record has changed meanwhile.

    `revision` is that of the record that the job was read from. `number` is the revision of its
    first record, in all later records. `dependants` are the ids of the jobs that depend on it.
    """

    __slots__ = ("dependants", "number", "revision")

    def __init__(self, message: Message, now: float) -> None:
        super().__init__(message, now, message.at)
        self.revision = 0
        self.number: int | None = None
        self.dependants: list[str] = []

    @property
    def age(self) -> int:
        """The number by which jobs are sorted."""
        return self.revision if self.number is None else self.number

    def outgrow(self, message: str, now: float) -> None:
        """Become dead, because the results take more room than a record has."""
        self.result, self.previous = None, [None] * len(self.previous)
        self.error = {"type": "PayloadTooLargeError", "message": message}
        self.end(JobState.DEAD, now)
