"""What one gets to know of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._support.frozen import record
from ._errors import JobFailedError
from ._states import JobState


@record
class JobInfo:
    """A job as it was when it was looked at; times are seconds since the epoch.

    - `handler`: its handler's name; `None` for what stands for a chain or a group.
    - `attempt`: the number of the latest, counted from 1; 0 before the first.
    - `started_at`: when the latest attempt began; `finished_at`: when the job ended.
    - `error`: what the latest attempt that failed did so with.
    - `result`: what it returned, or what it has saved so far.
    - `args`, `kwargs`: plain data; `None` if the payload can't be read.
    - `payload`: the bytes in which they travel.
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
