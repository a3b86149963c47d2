"""The enqueuer's end of a job."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Generic, TypeVar

from ..._eventloop.protection import uninterrupted
from ..._support import validation
from .._client import Client
from .._errors import JobCancelledError, JobExpiredError
from .._info import JobInfo
from .._states import JobState

T = TypeVar("T")


class JobHandle(Generic[T]):
    """A job, or a chain or group, in whichever process it runs; `id` is its name."""

    __slots__ = ("_client", "_convert", "id")

    def __init__(self, id: str, client: Client, convert: Callable[[str | None, Any], Any]) -> None:
        self.id = id
        self._client = client
        self._convert = convert

    @uninterrupted
    async def result(self, timeout: float | None = None) -> T:
        """Wait for the job and return what its handler returned.

        - `timeout`: seconds to wait at most (default: as long as it takes).

        Raises `JobFailedError` for a job that is dead, with the error of the step that failed if it is a
        chain or group, `JobCancelledError`, `JobExpiredError`, `TimeoutError`, `QueueError` for a job that is
        not known or whose result is not kept, `InvalidPayloadError` for a result that is not what the
        handler's annotation says now, and `BrokerUnavailableError` after 30 s without a broker.
        """
        validation.optional(validation.seconds, "timeout", timeout, at_least=0)
        job = await self._client.wait(self.id, inf if timeout is None else timeout)
        if job.state is JobState.DEAD:
            raise await self._client.failure(job)
        if job.state is JobState.CANCELLED:
            raise JobCancelledError(self.id)
        if job.state is JobState.EXPIRED:
            raise JobExpiredError(self.id)
        value: T = self._convert(job.message.handler, await self._client.result(job))
        return value

    @uninterrupted
    async def wait(self, timeout: float | None = None) -> JobState:
        """Wait until the job has ended and return how; raises nothing for the job's fate."""
        validation.optional(validation.seconds, "timeout", timeout, at_least=0)
        return (await self._client.wait(self.id, inf if timeout is None else timeout)).state

    @uninterrupted
    async def info(self) -> JobInfo | None:
        """Return the job as it is now; `None` if it is not known."""
        return await self._client.info(self.id)

    @uninterrupted
    async def cancel(self) -> bool:
        """Cancel the job: one that runs is told within two seconds. `False` if it has ended."""
        return await self._client.cancel(self.id)

    def __repr__(self) -> str:
        return f"<JobHandle {self.id}>"
