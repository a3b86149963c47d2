"""The handle of an enqueued job."""

from __future__ import annotations

from collections.abc import Callable, Generator
from math import inf
from typing import Any, Generic, TypeVar

from ..._eventloop.interruption import ki_protected
from ..._support import validation
from .._client import Client
from .._errors import JobCancelledError, JobExpiredError
from .._info import JobInfo
from .._states import JobState

T_co = TypeVar("T_co", covariant=True)


@ki_protected
class JobHandle(Generic[T_co]):
    """A job, chain or group, in any process. Awaiting it calls `result()`."""

    __slots__ = ("_client", "_load_result", "id")

    def __init__(
        self, id: str, client: Client, load_result: Callable[[str | None, Any], Any]
    ) -> None:
        self.id = id
        self._client = client
        self._load_result = load_result

    async def result(self, timeout: float | None = None) -> T_co:
        """Wait for the job and return what its handler returned.

        Args:
            timeout: Seconds to wait; `None` for no bound.

        Returns:
            The result: for a chain, the result of its last step; for a group, the list of the
            results of its steps.

        Raises:
            JobFailedError: The job is dead; for a chain or group, with the error of the step that
                failed.
            JobCancelledError: The job was cancelled.
            JobExpiredError: The job expired.
            TimeoutError: The job has not ended in time.
            QueueError: The job or its result is not stored.
            InvalidPayloadError: The result does not fit the handler's annotation.
            BrokerUnavailableError: The broker could not be reached for 30 seconds.
        """
        validation.optional(validation.seconds, "timeout", timeout, at_least=0)
        job = await self._client.wait(self.id, inf if timeout is None else timeout)
        if job.state is JobState.DEAD:
            raise await self._client.failure(job)
        if job.state is JobState.CANCELLED:
            raise JobCancelledError(self.id)
        if job.state is JobState.EXPIRED:
            raise JobExpiredError(self.id)
        value: T_co = self._load_result(job.message.handler, await self._client.result(job))
        return value

    def __await__(self) -> Generator[Any, Any, T_co]:
        return self.result().__await__()

    async def wait(self, timeout: float | None = None) -> JobState:
        """Wait until the job has ended.

        Args:
            timeout: Seconds to wait; `None` for no bound.

        Returns:
            The final state.

        Raises:
            TimeoutError: The job has not ended in time.
            QueueError: The job is not stored.
            BrokerUnavailableError: The broker could not be reached for 30 seconds.
        """
        validation.optional(validation.seconds, "timeout", timeout, at_least=0)
        return (await self._client.wait(self.id, inf if timeout is None else timeout)).state

    async def info(self) -> JobInfo | None:
        """Return information about the job, or `None` if it is not stored."""
        return await self._client.info(self.id)

    async def cancel(self) -> bool:
        """Cancel the job; the worker of a running job does so within two seconds.

        Returns:
            Whether the job had not ended.
        """
        return await self._client.cancel(self.id)

    def __repr__(self) -> str:
        return f"<JobHandle {self.id}>"
