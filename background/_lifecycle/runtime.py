"""What there is of a manager between entering its block and leaving it."""

from __future__ import annotations

from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from .._config import Settings
from .._errors import ManagerMisuseError, TaskCancelledError, is_fatal
from .._eventloop.backend import current_backend
from .._eventloop.interruption import persist
from .._eventloop.portal import Portal
from .._eventloop.services import Services
from .._execution.handle import log_failure
from .._execution.runner import Runner
from .._execution.scheduler import Engine
from .._notify.subscriber import Listeners
from .._states import ManagerState, TaskKind
from .._task import Task
from .shutdown import Shutdown
from .signals import SignalHandlers

if TYPE_CHECKING:
    from .._manager import Manager


class Lifecycle:
    """The running parts of one manager, made in its event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._backend = current_backend()
        self._host = self._backend.current_task()
        self._body = anyio.CancelScope()
        self._fatal: list[BaseException] = []
        self._signals: SignalHandlers | None = None
        self.services = Services(self._backend, copy_context())
        self.portal = Portal(self._backend)
        self.listeners = Listeners(
            settings.observers, self._backend, self.services.start, self._on_fatal
        )
        self.runner = Runner(self._backend, settings.policy, settings.threads)
        self.shutdown = Shutdown(
            settings.name,
            self._backend,
            self.services,
            self.listeners,
            grace=settings.grace,
            cancel_timeout=settings.cancel_timeout,
            cancel_body=self._body.cancel,
        )
        self.engine = self.shutdown.engine = Engine(
            self._backend,
            self.portal,
            self.listeners,
            self.runner,
            limit=settings.limit,
            capacity=settings.capacity,
            loop_backoff=settings.loop_backoff,
            on_fatal=self._on_fatal,
        )

    def open(self, manager: Manager) -> None:
        """Start everything. Raises `ManagerMisuseError` where signals can't be handled."""
        if self._settings.signals:
            self._signals = SignalHandlers(self._settings.signals, manager, self._backend.call_soon)
        self._start_timer()
        self.listeners.watch(manager)
        self._body.__enter__()

    def _start_timer(self) -> None:
        # Whoever cancels every task of asyncio's must not keep the others from becoming due.
        on_lost = self._start_timer if self._backend.cancels_natively else None
        self.services.start("background timer", self.engine.timer.run, on_lost)

    def take_signals(self) -> None:
        """Let shutdown signals reach the manager, which is entered now."""
        if self._signals is not None:
            self._signals.install()
            self.services.start("background signals", self._backend.wake_on_signals)

    def _on_fatal(self, error: BaseException) -> None:
        self._fatal.append(error)
        self.shutdown.force("a critical task failed")
        self._body.cancel()

    def takes(self, task: Task[Any]) -> bool:
        """Tell at once whether a task can be taken; `False` asks for a closer look."""
        return (
            self.shutdown.state is ManagerState.RUNNING
            and task.__class__ is Task
            and task.kind is TaskKind.ONE_OFF
        )

    async def leave(self, error: BaseException | None) -> bool:
        """Close, and end everything; return whether the error that left the body ends here."""
        misplaced = self._backend.current_task() is not self._host
        try:
            interrupted = await self._close(error)
            stop = partial(self.services.stop, self._settings.cancel_timeout)
            interrupted = await persist(stop) or interrupted
        finally:
            for failure in self.listeners.give_up():
                log_failure(failure.name, failure.id, failure.error)
            self.portal.close()
            if self._signals is not None:
                self._signals.restore()
        if misplaced:
            raise ManagerMisuseError(
                "a manager must be left in the task that entered it, and this one was not: enter "
                "and leave it in one `async with` statement, not in a generator or a fixture that "
                "another task resumes. Its tasks have been seen to the end"
            ) from error
        return self._exit_body(error, interrupted)

    async def _close(self, error: BaseException | None) -> BaseException | None:
        """Close as the body's end asks for; return what interrupted it."""
        interrupted: BaseException | None = None
        if error is None or isinstance(error, Exception):
            try:
                self.shutdown.begin("the block was left")
                await self._finish_closing()
            except (self._backend.cancelled, KeyboardInterrupt) as interruption:
                interrupted = interruption
            else:
                return None
        self.shutdown.force("the block was cancelled")
        return await persist(self._finish_closing) or interrupted

    async def _finish_closing(self) -> None:
        await self.shutdown.wait()
        if self.engine.outstanding.left():  # tasks that waited for the others themselves
            await self.shutdown.drain()
            await self.listeners.flush(self._settings.cancel_timeout)

    def _exit_body(self, error: BaseException | None, interrupted: BaseException | None) -> bool:
        """Raise what has to leave the block; return whether the body's own error ends here."""
        leaving = error if interrupted is None else interrupted
        if self._body.__exit__(None if leaving is None else type(leaving), leaving, None):
            leaving = error if interrupted else None
        for fatal in self._fatal:
            if is_fatal(fatal):
                raise fatal
        if self._fatal:
            errors = [*self._fatal, leaving] if isinstance(leaving, Exception) else self._fatal
            raise BaseExceptionGroup(
                f"critical tasks of the manager {self._settings.name!r} failed", errors
            )
        if self._signals is not None and (leaving is None or _is_of_shutdown(leaving)):
            report = self.shutdown.report
            if self._signals.finish(stuck=report is not None and bool(report.stuck)):
                return True
        if leaving is not None and leaving is interrupted:
            raise leaving
        return leaving is None


def _is_of_shutdown(error: BaseException) -> bool:
    """Tell whether a body failed only because it waited for tasks that the shutdown cancelled."""
    if isinstance(error, ExceptionGroup):
        return all(map(_is_of_shutdown, error.exceptions))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return isinstance(error, TaskCancelledError) and error.reason == "shutdown"
