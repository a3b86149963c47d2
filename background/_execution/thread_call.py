"""A call of a sync function in a worker thread."""

from __future__ import annotations

from inspect import iscoroutine
from threading import get_ident
from typing import Any

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from .._support import clock
from .state import TaskState


class ThreadCall:
    """Calls the function of a run in a thread, and passes its result or error to the event loop.

    The error does not pass through anyio, which would set attributes of it, or mistake it for one
    of its own errors.

    Args:
        state: The task.
    """

    def __init__(self, state: TaskState) -> None:
        self._state = state
        self._results: list[Any] = []
        self._is_abandoned = False

    async def result(self, limiter: anyio.CapacityLimiter) -> Any:
        """Return the function's result, or raise its error, once it has returned."""
        clock.on_thread(1)
        try:
            error = await anyio.to_thread.run_sync(self, limiter=limiter)
        except BaseException:  # asyncio can cancel the task while its thread runs
            self._is_abandoned = True
            self._discard()
            raise
        finally:
            clock.on_thread(-1)
        if error is not None:
            try:
                raise error
            finally:
                del error
        try:
            # The thread could not be interrupted, so a cancellation since its start counts now.
            await checkpoint_if_cancelled()
        except BaseException:
            self._discard()
            raise
        (result,) = self._results
        return result

    def __call__(self) -> BaseException | None:
        """Call the function in this thread, and return its error."""
        task = self._state.task
        self._state.thread = get_ident()
        try:
            self._results.append(task.fn(*task.args, **task.kwargs))
        except BaseException as error:
            return error
        finally:
            self._state.thread = None
        if self._is_abandoned:
            self._discard()
        return None

    def _discard(self) -> None:
        """Close a coroutine that will never be awaited, so that Python does not warn about it."""
        for result in self._results:
            if iscoroutine(result):
                result.close()
