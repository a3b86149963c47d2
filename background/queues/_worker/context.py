"""What a job's function can ask about its job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..._eventloop.protection import uninterrupted
from ..._execution.runner import current_handle
from .._errors import QueueError
from .attempt import JobRun


class JobContext:
    """The job whose function is running, for that function and all that it calls.

    Made by `JobContext.current()`:

        async def resize(path: str) -> str:
            context = JobContext.current()
            await context.save({"step": "reading"})
            …
    """

    __slots__ = ("_run",)

    def __init__(self, run: JobRun) -> None:
        self._run = run

    @classmethod
    def current(cls) -> JobContext:
        """Return that of the job which the running code belongs to, also in its threads.

        Raises `QueueError` where no job is running.
        """
        handle = current_handle.get()
        run = None if handle is None else handle._durable
        if not isinstance(run, JobRun):
            raise QueueError("no job is running here: JobContext is for the functions of handlers")
        return cls(run)

    @property
    def id(self) -> str:
        """The job's id."""
        return self._run.job.id

    @property
    def queue(self) -> str:
        """The queue that it was in."""
        return self._run.job.queue

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1; attempts whose worker died count."""
        return self._run.job.attempt

    @property
    def enqueued_at(self) -> float:
        """When the job was enqueued, in seconds since the epoch."""
        return self._run.job.enqueued_at

    @property
    def previous(self) -> Any:
        """The result of the step before it in a chain: for a group a list; else `None`.

        Plain data, whatever that step's function is annotated with.
        """
        return self._run.plan.previous

    @property
    def meta(self) -> Mapping[str, Any]:
        """What was given as `options(meta=…)`."""
        return self._run.plan.meta

    @uninterrupted
    async def save(self, value: Any) -> None:
        """Keep an intermediate result, for whoever asks for the job's info meanwhile.

        The result takes its place when the job succeeds. In a sync function:
        `anyio.from_thread.run(context.save, value)`.

        Raises `InvalidPayloadError` and `PayloadTooLargeError`, `BrokerUnavailableError`, and `QueueError` when
        the job is no longer this worker's.
        """
        await self._run.save(value)

    def __repr__(self) -> str:
        return f"<JobContext {self.id} attempt {self.attempt}>"
