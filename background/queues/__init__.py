"""Durable jobs, which survive crashes and restarts of the processes that run them."""

from __future__ import annotations

from ._enqueue.handle import JobHandle
from ._enqueue.handler import Handler, JobSubmission
from ._enqueue.options import JobOptions
from ._enqueue.steps import Step, chain, group
from ._errors import (
    BrokerRefusedError,
    BrokerUnavailableError,
    DuplicateJobError,
    InvalidPayloadError,
    JobCancelledError,
    JobExpiredError,
    JobFailedError,
    PayloadTooLargeError,
    QueueError,
    UnknownHandlerError,
    WorkerDiedError,
)
from ._info import AttemptInfo, JobInfo
from ._queue import HandlerDecorator, JobQueue, QueueOptions
from ._states import JobState
from ._verdicts import Cancel, Discard, Snooze
from ._worker.context import JobContext
from ._worker.selection import Ordered, Selection, Weighted
from ._worker.worker import Worker

__all__ = [
    "AttemptInfo",
    "BrokerRefusedError",
    "BrokerUnavailableError",
    "Cancel",
    "Discard",
    "DuplicateJobError",
    "Handler",
    "HandlerDecorator",
    "InvalidPayloadError",
    "JobCancelledError",
    "JobContext",
    "JobExpiredError",
    "JobFailedError",
    "JobHandle",
    "JobInfo",
    "JobOptions",
    "JobQueue",
    "JobState",
    "JobSubmission",
    "Ordered",
    "PayloadTooLargeError",
    "QueueError",
    "QueueOptions",
    "Selection",
    "Snooze",
    "Step",
    "UnknownHandlerError",
    "Weighted",
    "Worker",
    "WorkerDiedError",
    "chain",
    "group",
]

for _name in __all__:
    _error = globals()[_name]
    if isinstance(_error, type) and issubclass(_error, BaseException):
        _error.__module__ = __name__  # so that tracebacks show the name to catch


def __dir__() -> list[str]:
    return sorted([*__all__, *({"abc", "memory", "nats", "redis", "sqlite"} & {*globals()})])
