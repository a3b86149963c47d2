"""The event loop in which a queue is open."""

from __future__ import annotations

from os import getpid

from .._eventloop.running import current_backend
from ._errors import QueueError


class QueueLoop:
    """The event loop in which a queue was opened, and the check that callers run in it.

    Made in that event loop.
    """

    def __init__(self) -> None:
        self._backend = current_backend()
        self._process = getpid()

    def check(self) -> None:
        """Check that the caller runs in this event loop.

        Raises:
            QueueError: The caller runs in another event loop, thread or process.
        """
        if self._backend.is_current():
            return
        if self._process != getpid():
            raise QueueError(
                "the queue was opened by another process, before a fork: open a queue in each "
                "process"
            )
        raise QueueError(
            "the queue is open in another event loop or thread: make one JobQueue for each event "
            "loop"
        )


def not_open() -> QueueError:
    """Return the error of a call outside of the queue's block."""
    return QueueError("the queue is not open: enter it with `async with`")
