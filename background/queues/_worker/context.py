"""The access of a job's function to its job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..._eventloop.interruption import ki_protected
from .._errors import QueueError
from .attempt import JobAttempt, current_attempt


@ki_protected
class JobContext:
    """The running job, for its function and the functions that it calls.

    Example:
        ```python
        async def resize(path: str) -> str:
            context = JobContext.current()
            await context.save({"step": "reading"})
            ...
        ```
    """

    __slots__ = ("_attempt",)

    def __init__(self, attempt: JobAttempt) -> None:
        self._attempt = attempt

    @classmethod
    def current(cls) -> JobContext:
        """Return the job that the running code belongs to, in its threads, too.

        Raises:
            QueueError: No job is running.
        """
        attempt = current_attempt()
        if attempt is None:
            raise QueueError("no job is running here: JobContext is for the functions of handlers")
        return cls(attempt)

    @property
    def id(self) -> str:
        """The job's id."""
        return self._attempt.job.id

    @property
    def queue(self) -> str:
        """The queue that the job came from."""
        return self._attempt.job.queue

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1, including attempts whose worker died."""
        return self._attempt.job.attempt

    @property
    def enqueued_at(self) -> float:
        """When the job was enqueued, in seconds since the epoch."""
        return self._attempt.job.enqueued_at

    @property
    def previous(self) -> Any:
        """The result of the previous step in a chain; a list after a group; otherwise `None`.

        It is plain data, which is not converted by annotations.
        """
        return self._attempt.previous

    @property
    def meta(self) -> Mapping[str, Any]:
        """The metadata from `options(meta=…)`."""
        return self._attempt.meta

    @property
    def saved(self) -> Any:
        """The latest value that this or an earlier attempt saved, as plain data; or `None`."""
        return self._attempt.saved

    async def save(self, value: Any) -> None:
        """Store an intermediate result, for later attempts and the job's info.

        It is deleted when the job succeeds.

        In a sync function call `anyio.from_thread.run(context.save, value)`.

        Args:
            value: Plain data.

        Raises:
            InvalidPayloadError: The value is not plain data.
            PayloadTooLargeError: The value is larger than `max_payload`.
            BrokerUnavailableError: The broker can't be reached.
            QueueError: The lease was lost, or the job's function has returned.
        """
        await self._attempt.save(value)

    def __repr__(self) -> str:
        return f"<JobContext {self.id} attempt {self.attempt}>"
