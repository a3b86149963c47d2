"""Information about a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from .._support import redacted
from .._support.frozen import frozen
from ._errors import JobFailedError
from ._states import JobState


@frozen
class AttemptInfo:
    """One attempt of a job; times are seconds since the epoch.

    Args:
        number: The number of the attempt, from 1.
        started_at: When it began.
        finished_at: When it ended; `None` while it runs.
        worker: The process of its worker: host, process id and a random part.
        outcome: `"running"`, `"succeeded"`, `"failed"`, `"cancelled"`; `"crashed"` if the worker
            died or lost its lease; `"lost"` if its lease expired, and nothing shows that the worker
            received the job.
        error: The class and the message of its error.
    """

    number: int
    started_at: float
    finished_at: float | None
    worker: str
    outcome: str
    error: str | None = None

    def __repr__(self) -> str:
        """Return the outcome and the times, and the class of the error without its message."""
        facts = {
            "started": _shown(self.started_at),
            "finished": _shown(self.finished_at),
            "worker": self.worker,
            "error": self.error and self.error.partition(":")[0],
        }
        return f"<AttemptInfo {self.number}: {_listed(self.outcome, facts)}>"


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
        worker: The process of the worker of its latest attempt; `None` before the first.
        error: The error of its latest failed attempt, or the reason why it waits for another
            worker.
        attempts: Its latest attempts, up to 20, oldest first.
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
    worker: str | None
    error: JobFailedError | None
    attempts: Sequence[AttemptInfo]
    result: Any
    args: Sequence[Any] | None
    kwargs: Mapping[str, Any] | None
    meta: Mapping[str, Any]
    payload: bytes

    def __repr__(self) -> str:
        """Return the state and the times, and the types of values instead of the values."""
        facts = {
            "attempt": str(self.attempt),
            "enqueued": _shown(self.enqueued_at),
            "started": _shown(self.started_at),
            "finished": _shown(self.finished_at),
            "error": self.error and self.error.type,
            "result": None if self.result is None else type(self.result).__qualname__,
            "args": self.args and redacted.kinds(self.args),
            "kwargs": self.kwargs and redacted.kinds_by_name(self.kwargs),
            "meta": self.meta and redacted.kinds_by_name(self.meta),
        }
        what = "chain or group" if self.handler is None else f"job of {self.handler!r}"
        return f"<JobInfo {self.id}: {_listed(f'{what} in {self.queue!r}, {self.state}', facts)}>"


def _listed(first: str, facts: Mapping[str, object]) -> str:
    return ", ".join([first, *(f"{name} {text}" for name, text in facts.items() if text)])


def _shown(time: float | None) -> str | None:
    """Return a time in UTC, or in seconds if no calendar has it."""
    if time is None:
        return None
    try:
        return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{time:g}"
