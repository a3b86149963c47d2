"""The body of a manager's block."""

from __future__ import annotations

import anyio

from .._eventloop.backend import Backend


class Body:
    """A cancel scope around the body of a block.

    A scope can only be exited in the task that entered it. A block that is left in another task,
    for example that of a fixture, leaves its scope behind; it cancels nothing any more.

    Args:
        backend: The event loop.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._task = backend.current_task()
        self._scope = anyio.CancelScope()
        self._was_left = False

    def enter(self) -> None:
        """Enter the scope."""
        self._scope.__enter__()

    def cancel(self) -> None:
        """Cancel the body, unless it was left."""
        if not self._was_left:
            self._scope.cancel()

    def leave(self, error: BaseException | None) -> bool:
        """Exit the scope; return whether it suppresses the error that leaves the body."""
        self._was_left = True
        if self._backend.current_task() is not self._task:
            return False
        return bool(self._scope.__exit__(None if error is None else type(error), error, None))
