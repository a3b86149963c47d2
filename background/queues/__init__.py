"""Durable jobs: what a crashed or restarted process leaves is taken over by another."""

from __future__ import annotations

from ._composites import Step, chain, group
from ._context import JobContext
from ._errors import (
    BrokerUnavailable,
    DuplicateJob,
    InvalidPayload,
    JobCancelled,
    JobExpired,
    JobFailed,
    PayloadTooLarge,
    QueueError,
    UnknownHandler,
)
from ._handler import Handler
from ._info import JobInfo
from ._job_handle import JobHandle
from ._job_queue import JobQueue
from ._selection import Ordered, Weighted
from ._states import JobState
from ._worker import Worker

__all__ = [
    "BrokerUnavailable",
    "DuplicateJob",
    "Handler",
    "InvalidPayload",
    "JobCancelled",
    "JobContext",
    "JobExpired",
    "JobFailed",
    "JobHandle",
    "JobInfo",
    "JobQueue",
    "JobState",
    "Ordered",
    "PayloadTooLarge",
    "QueueError",
    "Step",
    "UnknownHandler",
    "Weighted",
    "Worker",
    "chain",
    "group",
]
