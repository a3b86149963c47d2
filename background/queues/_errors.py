"""The errors of durable jobs."""

from __future__ import annotations

import os

from .._errors import BackgroundError


class QueueError(BackgroundError):
    """The root of the errors of durable jobs."""


class DuplicateJobError(QueueError):
    """A job with the same id is stored."""


class WorkerDiedError(QueueError):
    """The workers of a job died while they ran it; the type of a dead job's error."""


class UnknownHandlerError(QueueError):
    """The worker has no handler of this name."""


class PayloadTooLargeError(QueueError):
    """A job's arguments or its result have more bytes than `max_payload` allows."""


class InvalidPayloadError(QueueError, ValueError):
    """A job's arguments or its result can't be encoded, or do not fit the handler."""


class BrokerUnavailableError(QueueError):
    """The broker can't be reached; it may or may not have done what was requested."""

    #: Whether it has certainly not; repeating the call would only extend a bounded wait.
    changed_nothing: bool = False


class BrokerRefusedError(BrokerUnavailableError):
    """The broker can't be used as it is, for example because it is too old; do not try again."""


class JobFailedError(QueueError):
    """The awaited job is dead.

    Args:
        id: The job's id.
        type: The class of its last error.
        message: The message of its last error.
        traceback: The traceback of its last error, as text.
    """

    def __init__(self, id: str, type: str, message: str, traceback: str = "") -> None:
        super().__init__(id, type, message, traceback)
        self.id = id
        self.type = type
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        because = f"{self.type}: {self.message}" if self.message else self.type
        return f"job {self.id} failed: {because}"


class JobCancelledError(QueueError):
    """The awaited job was cancelled.

    Args:
        id: The job's id.
    """

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id

    def __str__(self) -> str:
        return f"job {self.id} was cancelled"


class JobExpiredError(QueueError):
    """The awaited job expired before it could start.

    Args:
        id: The job's id.
    """

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id

    def __str__(self) -> str:
        return f"job {self.id} expired before it could start"


def refusal(error: BaseException | None) -> str | None:
    """Return the system's word for a refused or lost connection, such as "Connection refused".

    The texts of such errors repeat the address. Windows has no word for them.
    """
    if isinstance(error, ConnectionError) and error.errno and os.name == "posix":
        return os.strerror(error.errno)
    return None
