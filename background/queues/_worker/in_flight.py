"""The attempts in flight of one worker."""

from __future__ import annotations

from collections.abc import Iterator

import anyio

from .attempt import JobAttempt


class InFlight:
    """A set of attempts, and a wait for its changes.

    Args:
        event: The event loop's class of events.
    """

    def __init__(self, event: type[anyio.Event]) -> None:
        self._attempts: set[JobAttempt] = set()
        self._event = event
        self._changed = event()
        self._is_awaited = False

    def __len__(self) -> int:
        return len(self._attempts)

    def __iter__(self) -> Iterator[JobAttempt]:
        return iter(list(self._attempts))

    def __contains__(self, attempt: object) -> bool:
        return attempt in self._attempts

    def add(self, attempt: JobAttempt) -> None:
        """Add a new attempt."""
        self._attempts.add(attempt)

    def remove(self, attempt: JobAttempt) -> None:
        """Remove an attempt that was settled."""
        self._attempts.discard(attempt)
        self.notify()

    def notify(self) -> None:
        """Wake the waiters."""
        if self._is_awaited:
            self._is_awaited = False
            changed, self._changed = self._changed, self._event()
            changed.set()

    def next_change(self) -> anyio.Event:
        """Return the event of the next removal of an attempt, or the next call of `notify`."""
        self._is_awaited = True
        return self._changed

    async def wait_for_change(self) -> None:
        """Wait until an attempt was removed, or until `notify` is called."""
        await self.next_change().wait()
