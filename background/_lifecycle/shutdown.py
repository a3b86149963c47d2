"""The way from running to closed: requests, deadlines, and the report."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from types import EllipsisType
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from .._eventloop.backend import Backend
from .._eventloop.services import Services
from .._events import ManagerClosed, ManagerClosing
from .._execution.handle import TaskHandle
from .._execution.registry import Absence
from .._execution.scheduler import Engine
from .._notify.subscriber import Listeners
from .._report import CloseReport
from .._states import ManagerState, TaskKind, TaskStatus
from .._support import clock

_TURNS = 4  # of the event loop, in which a cancelled task ends that has nothing to clean up


class Shutdown:
    """Closes one manager, once, however many ask for it and in whatever order."""

    def __init__(
        self,
        name: str,
        backend: Backend,
        services: Services,
        listeners: Listeners,
        *,
        grace: float | None,
        cancel_timeout: float,
        cancel_body: Callable[[], None],
    ) -> None:
        self.state = ManagerState.RUNNING
        self.shutdown_requested = anyio.Event()
        self.report: CloseReport | None = None
        self.engine: Engine  # set by its maker, as each needs the other
        self._name = name
        self._backend = backend
        self._services = services
        self._listeners = listeners
        self._grace = grace
        self._cancel_timeout = cancel_timeout
        self._cancel_body = cancel_body
        self._owns_process = False
        self._closed = anyio.Event()
        self._ended: list[TaskHandle[Any]] = []
        self._requested = False
        self._began = 0.0
        self._deadline = inf
        self._grace_ends = inf
        self._drain_scope: anyio.CancelScope | None = None

    def request(self, *, owns_process: bool = False) -> None:
        """Take a shutdown signal: the first one asks, the next one cancels.

        `owns_process` tells that nothing else will end the program, whose body is then cancelled
        too if it does not leave by itself.
        """
        self._owns_process |= owns_process
        if self._requested:
            self.force("a second shutdown request")
            return
        self._requested = True
        self.shutdown_requested.set()
        if self.state is ManagerState.RUNNING:
            self.state = ManagerState.STOPPING
            self.engine.stop_loops()
        if self._grace is not None:
            self._grace_ends = self._backend.now() + self._grace
            self._move_deadline()
            self._services.start("background grace", self._force_after_grace)

    async def _force_after_grace(self) -> None:
        await anyio.sleep(max(0.0, self._grace_ends - self._backend.now()))
        if self.state is ManagerState.STOPPING:
            self.force("the grace time ran out")
        elif self._owns_process:
            # Closing has the same deadline; what may be left to end is a body that stays on.
            await self._closed.wait()
            await anyio.sleep(self._cancel_timeout)
            self._cancel_body()

    def close(self, timeout: float | EllipsisType | None) -> None:
        """Start closing, as `Manager.close()` describes."""
        if timeout is None:
            self._grace, self._grace_ends = None, inf
        elif timeout is not ...:
            self._deadline = min(self._deadline, self._backend.now() + timeout)
        self._move_deadline()
        self.begin("close() was called")

    def force(self, reason: str) -> None:
        """Close now: cancel what is left at once."""
        self._deadline = self._backend.now()
        self._move_deadline()
        self.begin(reason)
        self._cancel_left()
        if self._owns_process:
            self._cancel_body()

    def _move_deadline(self) -> None:
        if self._drain_scope is not None:
            self._drain_scope.deadline = min(self._deadline, self._grace_ends)

    def _cancel_left(self) -> None:
        for handle in self.engine.outstanding.left(ignoring=Absence.CLOSING):
            self.engine.cancel_handle(handle, "shutdown")

    def begin(self, reason: str) -> None:
        """Start closing, unless it has started."""
        if self.state not in (ManagerState.RUNNING, ManagerState.STOPPING):
            return
        self.state = ManagerState.CLOSING
        self.engine.on_end = self._ended.append
        self._began = self._backend.now()
        self.shutdown_requested.set()
        outstanding = self.engine.outstanding.count()
        hooks = self._listeners.hooks
        if hooks.on_manager_closing:
            event = ManagerClosing(
                name=self._name, time=clock.wall(), reason=reason, outstanding=outstanding
            )
            hooks.tell(hooks.on_manager_closing, event)
        self.engine.admission.close()
        self.engine.stop_loops()
        self.engine.cancel_delayed("shutdown")
        self._start_closing()

    async def wait(self) -> CloseReport:
        """Wait for the report."""
        await self._closed.wait()
        assert self.report is not None
        return self.report

    async def _close(self, *, shield: bool = False) -> None:
        with anyio.CancelScope(shield=shield):
            await self.drain()
        self._tell_closed()
        await self._listeners.flush(self._cancel_timeout)
        self._end()

    def _close_again(self) -> None:
        # An event loop that shuts down cancels this service too; nobody may wait in vain.
        if self.report is not None:
            self._end()
        else:
            self.force("the event loop is shutting down")
            self._start_closing(shield=True)

    def _start_closing(self, *, shield: bool = False) -> None:
        close = partial(self._close, shield=shield)
        self._services.start("background closing", close, on_lost=self._close_again)

    def _tell_closed(self) -> None:
        self.report = self._make_report()
        hooks = self._listeners.hooks
        if hooks.on_manager_closed:
            event = ManagerClosed(
                name=self._name,
                time=clock.wall(),
                duration=self._backend.now() - self._began,
                report=self.report,
            )
            hooks.tell(hooks.on_manager_closed, event)

    def _end(self) -> None:
        assert self.report is not None
        self.state = ManagerState.CLOSED
        self.engine.on_end = None
        self.engine.outstanding.end_absences(self.report.stuck)
        self._closed.set()

    async def drain(self) -> None:
        """Wait for what is left, cancel it at the deadline, and give it time to clean up."""
        outstanding = self.engine.outstanding
        with anyio.CancelScope(deadline=min(self._deadline, self._grace_ends)) as self._drain_scope:
            await outstanding.idle(ignoring=Absence.CLOSING)
        self._drain_scope = None
        self._cancel_left()
        for _ in range(_TURNS):
            await checkpoint()
        with anyio.move_on_after(self._cancel_timeout):
            await outstanding.idle(ignoring=Absence.CLOSING)

    def _make_report(self) -> CloseReport:
        stuck = self.engine.outstanding.left(ignoring=Absence.CLOSING)
        fates: dict[TaskStatus, list[TaskHandle[Any]]] = {status: [] for status in TaskStatus}
        not_started: list[TaskHandle[Any]] = []
        for handle in self._ended:
            never_ran = handle.kind is TaskKind.ONE_OFF and handle.started_at is None
            fate = (
                not_started
                if never_ran and handle.status is TaskStatus.CANCELLED
                else fates[handle.status]
            )
            fate.append(handle)
        return CloseReport(
            succeeded=tuple(fates[TaskStatus.SUCCEEDED]),
            failed=tuple(fates[TaskStatus.FAILED]),
            cancelled=tuple(fates[TaskStatus.CANCELLED]),
            expired=tuple(fates[TaskStatus.EXPIRED]),
            not_started=tuple(not_started),
            stuck=tuple(stuck),
            stacks={handle.id: tuple(handle.stack()) for handle in stuck},
        )
