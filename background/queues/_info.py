"""Information about a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._support.frozen import frozen
from ._errors import JobFailedError
from ._states import JobState


@frozen
class JobInfo:
    """A snapshot of a job; times are seconds since the epoch.

    Args:
        id: The job's id.
        handler: The name of its handler; `None` for a chain or group.
        queue: The name of its queue.
        state: Its state.
        attempt: The number of its latest attempt, from 1; 0 before the first.
        enqueued_at: When it was enqueued.
        started_at: When its latest attempt began.
        finished_at: When it ended.
        error: The error of its latest failed attempt.
        result: Its result, or the latest value that it saved.
        args: Its positional arguments as plain data; `None` if the payload can't be read.
        kwargs: Its keyword arguments as plain data; `None` if the payload can't be read.
        meta: Its metadata.
        payload: Its payload as it is stored.
    """

    id: str
    handler: str | None
    queue: str
    state: JobState
    attempt: int
    enqueued_at: float
    started_at: float | None
    finished_at: float | None
    error: JobFailedError | None
    result: Any
    args: Sequence[Any] | None
    kwargs: Mapping[str, Any] | None
    meta: Mapping[str, Any]
    payload: bytes
