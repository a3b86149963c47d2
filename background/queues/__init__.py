"""Durable jobs: what a crashed or restarted process leaves is taken over by another."""

from __future__ import annotations

from ._enqueue.composites import Step, chain, group
from ._enqueue.handle import JobHandle
from ._enqueue.handler import Handler
from ._errors import (
    BrokerUnavailableError,
    DuplicateJobError,
    InvalidPayloadError,
    JobCancelledError,
    JobExpiredError,
    JobFailedError,
    PayloadTooLargeError,
    QueueError,
    UnknownHandlerError,
)
from ._info import JobInfo
from ._queue import JobQueue
from ._states import JobState
from ._worker.context import JobContext
from ._worker.selection import Ordered, Weighted
from ._worker.worker import Worker

__all__ = [
    "BrokerUnavailableError",
    "DuplicateJobError",
    "Handler",
    "InvalidPayloadError",
    "JobCancelledError",
    "JobContext",
    "JobExpiredError",
    "JobFailedError",
    "JobHandle",
    "JobInfo",
    "JobQueue",
    "JobState",
    "Ordered",
    "PayloadTooLargeError",
    "QueueError",
    "Step",
    "UnknownHandlerError",
    "Weighted",
    "Worker",
    "chain",
    "group",
]
