"""The shutdown of a manager: requests, deadlines, and the report."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, Literal

import anyio
from anyio.lowlevel import checkpoint

from .._config import ManagerConfig
from .._eventloop.backend import Backend
from .._eventloop.services import Services
from .._execution.handle import TaskHandle, state_of
from .._execution.registry import WaitExemption
from .._execution.scheduler import Scheduler
from .._execution.state import TaskState
from .._notify.dispatcher import Dispatcher
from .._report import CloseReport, ManagerClosed, ManagerClosing
from .._states import ManagerState, TaskKind, TaskStatus
from .._support import clock
from .progress import wait_and_log

_TURNS = 4  # turns of the event loop until a cancelled task without clean-up has ended


class Shutdown:
    """Closes a manager once, however many requests there are.

    Args:
        config: The manager's settings.
        backend: The event loop.
        services: Runs the closing.
        dispatcher: Delivers events to observers.
        scheduler: Starts and cancels the tasks.
        cancel_body: Cancels the body of the manager's block.
    """

    def __init__(
        self,
        config: ManagerConfig,
        backend: Backend,
        services: Services,
        dispatcher: Dispatcher,
        scheduler: Scheduler,
        cancel_body: Callable[[], None],
    ) -> None:
        self.state = ManagerState.RUNNING
        self.requested = anyio.Event()
        self.report: CloseReport | None = None
        self._name = config.name
        self._grace = config.grace
        self._leave_timeout = config.leave_timeout
        self._cancel_timeout = config.cancel_timeout
        self._backend = backend
        self._services = services
        self._dispatcher = dispatcher
        self._scheduler = scheduler
        self._registry = scheduler.registry
        self._cancel_body = cancel_body
        self._is_requested = False
        self._ends_process = False
        self._closed = anyio.Event()
        self._is_cancelling = False
        self._ended: list[TaskHandle[Any]] = []
        self._began = 0.0
        self._deadline = inf
        self._grace_ends = inf
        self._drain_scope: anyio.CancelScope | None = None

    def request(self, *, ends_process: bool = False, counts: bool = True) -> None:
        """Handle a shutdown request: the first one stops loops, the second one cancels tasks.

        Args:
            ends_process: Whether the request must end the process. A body that stays in the block
                is then cancelled, too.
            counts: Whether this is a request, and not only the rest of an earlier one.
        """
        self._ends_process |= ends_process
        if not counts:
            return
        if self._is_requested:
            self.force("a second shutdown request")
            return
        self._is_requested = True
        self.requested.set()
        if self.state is ManagerState.RUNNING:
            self.state = ManagerState.STOPPING
            self._scheduler.stop_loops()
        if self._grace is not None:
            self._grace_ends = self._backend.now() + self._grace
            self._move_deadline()
            self._services.start("background grace", self._force_after_grace)

    @property
    def next_step(self) -> str:
        """What the next request does, for the log."""
        if self._is_requested:
            return "its tasks are cancelled"
        grace = "" if self._grace is None else f", and its tasks have {self._grace:g} s to end"
        return f"its loops stop{grace}"

    async def _force_after_grace(self) -> None:
        await anyio.sleep(max(0.0, self._grace_ends - self._backend.now()))
        if self.state is ManagerState.STOPPING:
            self.force("the grace time ran out")
        elif self._ends_process:
            # Closing has the same deadline; only a body that stays in the block may be left.
            await self._closed.wait()
            await anyio.sleep(self._cancel_timeout)
            self._cancel_body()

    def close(self, timeout: float | Literal["grace"] | None) -> None:
        """Begin to close, as `Manager.close()` describes."""
        if timeout is None:
            self._grace, self._grace_ends = None, inf
            self._move_deadline()
        elif timeout != "grace":
            self._move_deadline(timeout)
        self.begin("close() was called")

    def leave(self) -> None:
        """Begin to close, because the block was left."""
        if self._leave_timeout is not None:
            self._move_deadline(self._leave_timeout)
        self.begin("the block was left")

    def force(self, reason: str) -> None:
        """Close now, and cancel the remaining tasks."""
        self._move_deadline(0)
        self.begin(reason)
        self._cancel_left()
        if self._ends_process:
            self._cancel_body()

    def _move_deadline(self, seconds: float = inf) -> None:
        self._deadline = min(self._deadline, self._backend.now() + seconds)
        if self._drain_scope is not None:
            self._drain_scope.deadline = min(self._deadline, self._grace_ends)

    def accepts_from(self, caller: TaskState | None) -> bool:
        """Return whether a closing manager accepts one-offs of a task, because it waits for it.

        Args:
            caller: The task; `None` outside of tasks.
        """
        return (
            caller is not None
            and self.state is ManagerState.CLOSING
            and not self._is_cancelling
            and self._registry.waits_for(caller, accept=WaitExemption.CLOSING)
        )

    def _refuse_waiters(self) -> None:
        if self._scheduler.capacity is not None:
            self._scheduler.capacity.refuse_waiters(self.accepts_from)

    def _cancel_left(self) -> None:
        self._is_cancelling = True
        self._refuse_waiters()
        for handle in self._left():
            self._scheduler.cancel(state_of(handle), "shutdown")

    def _left(self) -> list[TaskHandle[Any]]:
        return self._registry.left(accept=WaitExemption.CLOSING)

    def begin(self, reason: str) -> None:
        """Begin to close, unless closing has begun."""
        if self.state not in (ManagerState.RUNNING, ManagerState.STOPPING):
            return
        self.state = ManagerState.CLOSING
        self._scheduler.on_end = self._ended.append
        self._began = self._backend.now()
        self.requested.set()
        outstanding = self._registry.count()
        hooks = self._dispatcher.hooks
        if hooks.on_manager_closing:
            event = ManagerClosing(
                name=self._name, time=clock.wall(), reason=reason, outstanding=outstanding
            )
            hooks.deliver(hooks.on_manager_closing, event)
        self._refuse_waiters()
        self._scheduler.stop_loops()
        self._scheduler.cancel_delayed("shutdown")
        self._start_closing()

    async def wait(self) -> CloseReport:
        """Wait for the report."""
        await self._closed.wait()
        assert self.report is not None
        return self.report

    def _start_closing(self, *, shield: bool = False) -> None:
        close = partial(self._close, shield=shield)
        self._services.start("background closing", close, on_lost=self._close_again)

    async def _close(self, *, shield: bool = False) -> None:
        with anyio.CancelScope(shield=shield):
            await self.drain()
        self._report_closed()
        await self._dispatcher.flush(self._cancel_timeout)
        self._end()

    def _close_again(self) -> None:
        """Continue after the event loop cancelled the service, because there are waiters."""
        if self.report is not None:
            self._end()
        else:
            self.force("the event loop is shutting down")
            self._start_closing(shield=True)

    def _report_closed(self) -> None:
        self.report = self._make_report()
        hooks = self._dispatcher.hooks
        if hooks.on_manager_closed:
            event = ManagerClosed(
                name=self._name,
                time=clock.wall(),
                duration=self._backend.now() - self._began,
                report=self.report,
            )
            hooks.deliver(hooks.on_manager_closed, event)

    def _end(self) -> None:
        assert self.report is not None
        self.state = ManagerState.CLOSED
        self._scheduler.on_end = None
        self._registry.end_exemptions(self.report.stuck)
        self._closed.set()

    async def drain(self) -> None:
        """Wait for the remaining tasks; cancel them at the deadline, and wait for their end."""
        with anyio.CancelScope(deadline=min(self._deadline, self._grace_ends)) as self._drain_scope:
            await self._wait_for_tasks()
        self._drain_scope = None
        self._cancel_left()
        for _ in range(_TURNS):
            await checkpoint()
        with anyio.move_on_after(self._cancel_timeout):
            await self._wait_for_tasks()

    async def _wait_for_tasks(self) -> None:
        idle = partial(self._registry.idle, accept=WaitExemption.CLOSING)
        await wait_and_log(idle, f"manager {self._name!r}", self._left)

    def _make_report(self) -> CloseReport:
        by_status: dict[TaskStatus, list[TaskHandle[Any]]] = {status: [] for status in TaskStatus}
        not_started: list[TaskHandle[Any]] = []
        for handle in self._ended:
            never_ran = handle.kind is TaskKind.ONE_OFF and handle.started_at is None
            if never_ran and handle.status is TaskStatus.CANCELLED:
                not_started.append(handle)
            else:
                by_status[handle.status].append(handle)
        stuck = self._left()
        return CloseReport(
            succeeded=tuple(by_status[TaskStatus.SUCCEEDED]),
            failed=tuple(by_status[TaskStatus.FAILED]),
            cancelled=tuple(by_status[TaskStatus.CANCELLED]),
            expired=tuple(by_status[TaskStatus.EXPIRED]),
            not_started=tuple(not_started),
            stuck=tuple(stuck),
            stacks={handle.id: tuple(handle.stack()) for handle in stuck},
        )
