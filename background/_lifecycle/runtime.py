"""The running parts of a manager, from entering its block to leaving it."""

from __future__ import annotations

import logging
from contextvars import copy_context
from functools import partial
from signal import Signals
from typing import Any

import anyio

from .._config import ManagerConfig
from .._errors import (
    InvalidTaskError,
    LoopsStoppedError,
    ManagerClosedError,
    ManagerMisuseError,
    TaskCancelledError,
    is_fatal,
)
from .._eventloop.interruption import run_shielded
from .._eventloop.portal import Portal
from .._eventloop.running import current_backend
from .._eventloop.services import Services
from .._execution.handle import TaskHandle
from .._execution.scheduler import Scheduler
from .._execution.state import current_task
from .._notify.dispatcher import Dispatcher
from .._states import ManagerState, TaskKind
from .._support.log import log
from .._support.redacted import kind_of
from .._task import Task
from .body import Body
from .shutdown import Shutdown
from .signals import SignalHandlers, in_main_thread


class ManagerRuntime:
    """The parts of one manager, made in its event loop.

    Args:
        config: The manager's settings.
        has_block: Whether the manager is entered with `async with`, and not with `open()`.

    Raises:
        ManagerMisuseError: Signals can't be handled here.
    """

    def __init__(self, config: ManagerConfig, *, has_block: bool) -> None:
        self.config = config
        self.backend = current_backend()
        self.services = Services(self.backend, copy_context())
        self.portal = Portal(self.backend)
        self.dispatcher = Dispatcher(config.observers, self.backend, self.services, self._on_fatal)
        self.scheduler = Scheduler(
            config, self.backend, self.portal, self.dispatcher, self._on_fatal
        )
        self._body = Body(self.backend) if has_block else None
        self._ended = anyio.Event()  # of a manager without a block
        self.shutdown = Shutdown(
            config, self.backend, self.services, self.dispatcher, self.scheduler, self._cancel_body
        )
        self._fatal: list[BaseException] = []
        self._signals = self._signal_handlers()

    def _signal_handlers(self) -> SignalHandlers | None:
        signals, name = self.config.signals, self.config.name
        if signals and self.config.signals_optional and not in_main_thread():
            text = "manager '%s' handles no signals, as this is not the main thread"
            log(logging.INFO, text, name)
            return None
        if not signals:
            return None
        return SignalHandlers(
            signals, self.shutdown.request, self.backend.call_soon, self._log_signal
        )

    def _log_signal(self, number: Signals) -> None:
        text = "manager '%s' received %s: %s"
        log(logging.INFO, text, self.config.name, number.name, self.shutdown.next_step)

    def open(self, manager: object) -> None:
        """Start everything but the handling of signals; `manager` is passed to observers."""
        self._start_timer()
        self.dispatcher.start_watching(manager)
        if self._body is None:
            self._start_ending()
        else:
            self._body.enter()

    def _start_timer(self) -> None:
        # A program that cancels all tasks of asyncio must not stop the timer of later tasks.
        on_lost = self._start_timer if self.backend.cancels_natively else None
        self.services.start("background timer", self.scheduler.timer.run, on_lost)

    def _start_ending(self) -> None:
        on_lost = self._start_ending if self.backend.cancels_natively else None
        self.services.start("background ending", self._end_after_closing, on_lost)

    def handle_signals(self) -> None:
        """Install the signal handlers of a manager that was entered."""
        if self._signals is not None:
            self._signals.install()
            self.services.start("background signals", self.backend.wake_on_signals)

    def _on_fatal(self, error: BaseException) -> None:
        self._fatal.append(error)
        fatal = (
            f"{type(error).__name__} was raised" if is_fatal(error) else "a critical task failed"
        )
        self.shutdown.force(fatal)
        self._cancel_body()

    def _cancel_body(self) -> None:
        if self._body is not None:
            self._body.cancel()

    def require_accepts(self, task: Task[Any]) -> None:
        """Check that a task can be accepted now.

        Raises:
            InvalidTaskError: `task` is not a `Task`.
            ManagerClosedError: The manager is closing, and does not wait for the caller's task.
            LoopsStoppedError: The task is a loop, and the loops were stopped.
        """
        shutdown = self.shutdown
        state = shutdown.state
        is_one_off = task.__class__ is Task and task.kind is TaskKind.ONE_OFF
        if is_one_off and state is ManagerState.RUNNING:
            return
        if not isinstance(task, Task):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTaskError(
                f"task must be a Task, not {kind_of(task)}; use run() for a function"
            )
        name = self.config.name
        if state in (ManagerState.CLOSING, ManagerState.CLOSED):
            if task.kind is TaskKind.ONE_OFF and shutdown.accepts_from(current_task.get()):
                return
            raise ManagerClosedError(f"manager {name!r} is {state} and accepts no more tasks")
        if task.kind is TaskKind.LOOP and self.scheduler.loops_stopped:
            raise LoopsStoppedError(
                f"the loops of manager {name!r} were stopped, and it accepts no more of them"
            )

    def submit(self, task: Task[Any]) -> TaskHandle[Any]:
        """Accept a task, from any thread.

        Raises:
            ManagerClosedError: The manager is closing, and does not wait for the caller's task.
            LoopsStoppedError: The task is a loop, and the loops were stopped.
            ManagerFullError: There is no room within the capacity.
            DuplicateTaskError: An outstanding task has the same id.
            ManagerMisuseError: This process was forked from the manager's.
        """
        self.require_accepts(task)
        if self.portal.in_loop_task:
            return self.scheduler.add(task)
        return self.portal.call(partial(self._add, task))

    async def submit_when_room(self, task: Task[Any]) -> TaskHandle[Any]:
        """Accept a task once there is room within the capacity."""
        capacity = self.scheduler.capacity
        if capacity is None or task.kind is TaskKind.LOOP:
            return self._add(task)
        room_holder = object()
        self.require_accepts(task)
        while not await capacity.wait_for_room(room_holder):
            self.require_accepts(task)
        try:
            return self._add(task, room_holder)
        except BaseException:
            capacity.give_up(room_holder)
            raise

    def _add(self, task: Task[Any], room_holder: object = None) -> TaskHandle[Any]:
        self.require_accepts(task)
        return self.scheduler.add(task, room_holder=room_holder)

    async def leave(self, error: BaseException | None) -> bool:
        """Close the manager, and end its services, because its block is left.

        Args:
            error: The error that left the body.

        Returns:
            Whether the error is suppressed.

        Raises:
            ManagerMisuseError: The caller runs in another event loop, there is no block, or this
                process was forked inside the block.
        """
        if self.portal.is_inherited and error is not None:
            return False  # the tasks are the parent's
        self.portal.require_same_process()
        name = self.config.name
        if not self.portal.in_loop:
            raise ManagerMisuseError(
                f"manager {name!r} must be left in the event loop that entered it, and this is "
                "another one, or another thread"
            ) from error
        if self._body is None:
            raise ManagerMisuseError(
                f"manager {name!r} has no block: close() ends what open() began"
            )
        interrupted: BaseException | None = None
        try:
            interrupted = await self._close(error)
        finally:
            interrupted = await self._end() or interrupted
        leaving = error if interrupted is None else interrupted
        if self._body.leave(leaving):
            leaving = error if interrupted else None
        self._raise_failures(leaving)
        if (leaving is None or _is_from_shutdown(leaving)) and self._raise_signal():
            return True
        if leaving is not None and leaving is interrupted:
            raise leaving
        return leaving is None

    async def _close(self, error: BaseException | None) -> BaseException | None:
        """Close after the end of the body; return the last interruption, or `None`."""
        interrupted: BaseException | None = None
        if error is None or isinstance(error, Exception):
            try:
                self.shutdown.leave()
                await self._finish_closing()
            except (self.backend.cancelled, KeyboardInterrupt) as interruption:
                interrupted = interruption
            else:
                return None
        self.shutdown.force("the block was cancelled")
        return await run_shielded(self._finish_closing) or interrupted

    async def _finish_closing(self) -> None:
        await self.shutdown.wait()
        if self.scheduler.registry.left():  # tasks that were exempt, because they waited
            await self.shutdown.drain()
            await self.dispatcher.flush(self.config.cancel_timeout)

    async def _end(self) -> BaseException | None:
        """End the services, and the use of the event loop; return the last interruption."""
        try:
            return await run_shielded(partial(self.services.stop, self.config.cancel_timeout))
        finally:
            self.dispatcher.close()
            self.portal.close()
            if self._signals is not None:
                self._signals.restore()

    async def _end_after_closing(self) -> None:
        """End a manager without a block once it has closed, for any reason."""
        await self.shutdown.wait()
        await run_shielded(self._finish_closing)
        await self._end()
        self._ended.set()
        self._raise_signal()

    async def ended(self) -> None:
        """Wait for the end of a manager without a block, and raise what would leave a block."""
        if self._body is None:
            await self._ended.wait()
            self._raise_failures(None)

    def _raise_failures(self, leaving: BaseException | None) -> None:
        """Raise the failures that end the manager, together with the error of the body."""
        for fatal in self._fatal:
            if is_fatal(fatal):
                raise fatal
        if self._fatal:
            errors = [*self._fatal, leaving] if isinstance(leaving, Exception) else self._fatal
            raise BaseExceptionGroup(
                f"critical tasks of the manager {self.config.name!r} failed", errors
            )

    def _raise_signal(self) -> bool:
        """Raise the signal that must end the process; return whether there was one."""
        if self._signals is None:
            return False
        report = self.shutdown.report
        return self._signals.finish(stuck=report is not None and bool(report.stuck))


def _is_from_shutdown(error: BaseException) -> bool:
    """Return whether a body failed only because it awaited tasks that the shutdown cancelled."""
    # Without recursion, because groups may be nested deeply.
    left = [error]
    while left:
        part = left.pop()
        if isinstance(part, ExceptionGroup):
            left.extend(part.exceptions)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        elif not (isinstance(part, TaskCancelledError) and part.reason == "shutdown"):
            return False
    return True
