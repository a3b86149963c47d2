"""The little that anyio does not offer: child tasks that a closed manager can leave behind.

A task group can't be left while a child ignores its cancellation, and shares its host's fate. A
manager has to return in time whatever its tasks do, so they are children of the event loop itself;
each enters a cancel scope of its own, and everything inside is anyio's again.
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
    """One event loop, as the manager sees it."""

    #: What sniffio calls the library.
    library: str
    #: The exception that a cancelled coroutine sees.
    cancelled: type[BaseException]
    #: Whether others than cancel scopes may cancel a task while the loop goes on.
    cancels_natively: bool
    #: Returns the loop's monotonic time in seconds.
    now: Callable[[], float]

    def __init__(self) -> None:
        # What anyio makes of these here, without its finding that out each time.
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

        Returns what has to be kept for as long as the task runs. `on_lost` is called with the
        subject if the task was cancelled before it had its first step.
        """

    def interruptible(self, fn: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """Return a function of people's own as it has to be called for a Ctrl-C to reach it."""
        return fn

    def call_soon(self, fn: Callable[[], object], context: Context) -> None:
        """Call `fn` in the event loop, in `context`; for other threads and signal handlers.

        Raises `RuntimeError` if the loop has ended.
        """
        self.adopt(context)
        self._call_soon(fn, context)

    def adopt(self, context: Context) -> None:
        """Let anyio find this backend where a context runs outside of any task."""
        sniffio: Any = sys.modules.get("sniffio")
        if sniffio is not None:
            context.run(sniffio.current_async_library_cvar.set, self.library)

    @abstractmethod
    def _call_soon(self, fn: Callable[[], object], context: Context) -> None: ...

    @abstractmethod
    async def wake_on_signals(self) -> None:
        """Let no signal go unnoticed while the loop waits; a service, for the main thread."""

    @abstractmethod
    def current_task(self) -> object:
        """Return the native task that is running, `None` outside of any."""

    @abstractmethod
    def is_running(self) -> bool:
        """Tell whether the loop still runs; asked in its own thread."""

    def ends(self, task: object, error: BaseException) -> bool:
        """Tell whether the error is there to end the task that sees it, and has to pass.

        Code of others may raise the same of its own accord: on asyncio by awaiting something that
        was cancelled.
        """
        if isinstance(error, GeneratorExit):  # a coroutine that is thrown away with its loop
            return self.current_task() is not task
        return isinstance(error, self.cancelled) and self.is_cancelling()

    def is_cancelling(self) -> bool:
        """Tell whether somebody wants the running task cancelled."""
        return anyio.current_effective_deadline() == float("-inf")


def current_backend() -> Backend:
    """Return the backend of the running event loop."""
    asyncio: Any = sys.modules.get("asyncio")  # not imported for those who run trio
    if asyncio and isinstance(current_token().native_token, asyncio.AbstractEventLoop):
        from ._asyncio import AsyncioBackend

        return AsyncioBackend()
    from ._trio import TrioBackend

    return TrioBackend()
