"""The interface between a manager and its event loop.

A manager runs its tasks as native tasks of the event loop, because a task group can't exit while a
child ignores its cancellation. docs/design/native-children.md explains this design.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, ParamSpec, TypeVar

import anyio

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Backend(ABC):
    """The operations that a manager needs from its event loop."""

    #: The library's name in sniffio.
    library: str
    #: The exception that cancellation raises in a coroutine.
    cancelled: type[BaseException]
    #: Whether tasks can be cancelled without a cancel scope while the loop runs.
    cancels_natively: bool
    #: Returns the loop's time in seconds.
    now: Callable[[], float]

    def __init__(self) -> None:
        # The backend's own classes, because anyio's look up the backend for each instance.
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
        """Start `fn(subject)` as a native task.

        Args:
            fn: The function, which must not raise.
            subject: Its argument.
            name: The task's name.
            context: The context that the task runs in.
            on_lost: Called with `subject` if the task is cancelled before its first step.

        Returns:
            An object that must be referenced while the task runs.
        """

    @abstractmethod
    def coroutine(self, task: Any) -> object:
        """Return the coroutine of a native task that `spawn` returned."""

    def interruptible(self, fn: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """Return a user's function without the protection from KeyboardInterrupt."""
        return fn

    def call_soon(self, fn: Callable[[], object], context: Context) -> None:
        """Call `fn` in the event loop, from another thread or a signal handler.

        Args:
            fn: The function.
            context: The context that it runs in.

        Raises:
            RuntimeError: The loop has ended.
        """
        self.adopt(context)
        self.post(fn, context)

    def adopt(self, context: Context) -> None:
        """Make anyio detect this backend in a context that runs outside of any task."""
        sniffio: Any = sys.modules.get("sniffio")
        if sniffio is not None:
            context.run(sniffio.current_async_library_cvar.set, self.library)

    @abstractmethod
    def post(self, fn: Callable[[], object], context: Context) -> None:
        """Call `fn` like `call_soon`, in a context that was adopted before."""

    @abstractmethod
    async def wake_on_signals(self) -> None:
        """Wake the loop for each signal, so that its handler runs, until cancelled.

        It must run in the main thread.
        """

    @abstractmethod
    def current_task(self) -> object:
        """Return the running native task, or `None` outside of tasks."""

    @abstractmethod
    def is_current(self) -> bool:
        """Return whether the caller, in any thread, runs in this loop."""

    def ends(self, task: object, error: BaseException) -> bool:
        """Return whether an error ends the task and must be raised again.

        User code may raise the same class of exception, for example by awaiting a cancelled future
        on asyncio.

        Args:
            task: The native task.
            error: The error that was raised in it.
        """
        if isinstance(error, GeneratorExit):  # the coroutine is closed after its loop has ended
            return self.current_task() is not task
        return isinstance(error, self.cancelled) and self.is_cancelling()

    def is_cancelling(self) -> bool:
        """Return whether a cancellation of the running task is pending."""
        return anyio.current_effective_deadline() == float("-inf")
