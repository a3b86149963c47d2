"""What can go wrong with durable jobs."""

from __future__ import annotations

from .._errors import BackgroundError


class QueueError(BackgroundError):
    """The root of the errors of durable jobs."""


class DuplicateJobError(QueueError):
    """A job with the same id exists already, or its traces are still kept."""


class UnknownHandlerError(QueueError):
    """There is no handler of this name here."""


class PayloadTooLargeError(QueueError):
    """A job's arguments or its result take more bytes than `max_payload` allows."""


class InvalidPayloadError(QueueError, ValueError):
    """A job's arguments or its result are not what can be sent, or not what was asked for."""


class BrokerUnavailableError(QueueError):
    """The broker can't be reached; what was asked for may or may not have been done."""


class JobFailedError(QueueError):
    """The awaited job has given up.

    `type`, `message` and `traceback` are texts that tell of its last error.
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
    """The awaited job was cancelled."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id

    def __str__(self) -> str:
        return f"job {self.id} was cancelled"


class JobExpiredError(QueueError):
    """The awaited job had not started by the time when it expired."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id

    def __str__(self) -> str:
        return f"job {self.id} expired before it could start"
