"""A job of the NATS broker: the state machine, and the fields that only its record needs."""

from __future__ import annotations

from .._state_machine import JobRecord
from .._states import JobState
from ..abc import Message


class NatsJob(JobRecord):
    """A job that is read from its record, changed, and written back by compare-and-set.

    Times are seconds since the epoch, on the server's clock.

    Args:
        message: The job as it was enqueued.
        now: When it is enqueued.

    Attributes:
        revision: The revision of the record that the job was read from.
        number: The revision of the job's first record; `None` in that record itself.
        dependants: The ids of the jobs that depend on this one.
    """

    __slots__ = ("dependants", "number", "revision")

    def __init__(self, message: Message, now: float) -> None:
        super().__init__(message, now, message.at)
        self.revision = 0
        self.number: int | None = None
        self.dependants: list[str] = []

    @property
    def age(self) -> int:
        """The revision of the first record, by which jobs are sorted."""
        return self.revision if self.number is None else self.number

    @property
    def unmet_ids(self) -> list[str]:
        """The ids of the jobs that this job still waits for."""
        return [self.message.depends_on[place] for place in self.unmet]

    def outgrow(self, message: str, now: float) -> None:
        """End the job as dead, because its results do not fit into a record."""
        self.result, self.previous = None, [None] * len(self.previous)
        self.error = {"type": "background.queues.PayloadTooLargeError", "message": message}
        self.end(JobState.DEAD, now)
