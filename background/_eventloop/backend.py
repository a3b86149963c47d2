"""Child tasks that a closed manager can leave behind.

A task group can't be left while a child ignores its cancellation, and its children share the fate
of its host. A manager has to return in time whatever its tasks do. Its tasks are therefore children
of the event loop; each enters a cancel scope of its own, within which everything is anyio's again.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, ParamSpec, TypeVar

import anyio
from anyio.lowlevel import current_token

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Backend(ABC):
    """One event loop, as a manager uses it."""

    #: The name that sniffio gives the library.
    library: str
    #: The exception that a cancelled coroutine gets.
    cancelled: type[BaseException]
    #: Whether a task may be cancelled in another way than by a cancel scope while the loop runs.
    cancels_natively: bool
    #: Returns the loop's monotonic time in seconds.
    now: Callable[[], float]

    def __init__(self) -> None:
        # The backend's own classes, because anyio looks them up again for each instance.
        self.scope = type(anyio.CancelScope())
        self.event = type(anyio.Event())

    @abstractmethod
    def spawn(
        self,
        fn: Callable[[T], Coroutine[Any, Any, None]],
        subject: T,
        *,
        name: str,
        context: Context,
        on_lost: Callable[[T], None],
    ) -> object:
        """Start `fn(subject)`, which must not raise, as a task in `context`.

        `on_lost` is called with the subject if the task is cancelled before its first step.

        Returns:
            An object to keep for as long as the task runs.
        """

    def interruptible(self, fn: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """Return a user's function in the form in which a Ctrl-C can reach it."""
        return fn

    def call_soon(self, fn: Callable[[], object], context: Context) -> None:
        """Call `fn` in the event loop, in `context`; for other threads and signal handlers.

        Raises:
            RuntimeError: The loop has ended.
        """
        self.adopt(context)
        self.post(fn, context)

    def adopt(self, context: Context) -> None:
        """Let anyio recognise this backend in a context that runs outside of any task."""
        sniffio: Any = sys.modules.get("sniffio")
        if sniffio is not None:
            context.run(sniffio.current_async_library_cvar.set, self.library)

    @abstractmethod
    def post(self, fn: Callable[[], object], context: Context) -> None:
        """Do what `call_soon` does, in a context that was adopted before."""

    @abstractmethod
    async def wake_on_signals(self) -> None:
        """Wake the loop for each signal, so that its handler runs; a service of the main thread."""

    @abstractmethod
    def current_task(self) -> object:
        """Return the running native task, or `None` outside of any."""

    @abstractmethod
    def is_running(self) -> bool:
        """Return whether the loop still runs; call it in the loop's own thread."""

    def ends(self, task: object, error: BaseException) -> bool:
        """Return whether an error is there to end `task`, and must pass.

        A user's code may raise the same exception by itself, on asyncio by awaiting something that
        was cancelled.
        """
        if isinstance(error, GeneratorExit):  # the coroutine is discarded with its loop
            return self.current_task() is not task
        return isinstance(error, self.cancelled) and self.is_cancelling()

    def is_cancelling(self) -> bool:
        """Return whether the running task has been asked to end."""
        return anyio.current_effective_deadline() == float("-inf")


def current_backend() -> Backend:
    """Return the backend of the running event loop."""
    asyncio: Any = sys.modules.get("asyncio")  # trio's users don't need it
    if asyncio and isinstance(current_token().native_token, asyncio.AbstractEventLoop):
        from ._asyncio import AsyncioBackend

        return AsyncioBackend()
    from ._trio import TrioBackend

    return TrioBackend()
