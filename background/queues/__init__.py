"""Durable jobs: what a crashed or restarted process leaves is taken over by another."""

from __future__ import annotations

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
from ._states import JobState

__all__ = [
    "BrokerUnavailable",
    "DuplicateJob",
    "InvalidPayload",
    "JobCancelled",
    "JobExpired",
    "JobFailed",
    "JobState",
    "PayloadTooLarge",
    "QueueError",
    "UnknownHandler",
]
