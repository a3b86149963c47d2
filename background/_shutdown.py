"""The way from running to closed: requests, deadlines, and the report."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from types import EllipsisType
from typing import Any

import anyio

from . import _clock
from ._backend import Backend
from ._engine import Engine
from ._events import ManagerClosedEvent, ManagerClosingEvent
from ._handle import TaskHandle
from ._listeners import Listeners
from ._report import CloseReport
from ._services import Services
from ._states import ManagerState, TaskKind, TaskStatus


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
        self.engine: Engine  # set by the manager, as each needs the other
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
        self._deadline = inf
        self._grace_ends = inf
        self._patience: anyio.CancelScope | None = None

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
            self._set_patience()
            self._services.start("background grace", self._force_after_grace)

    async def _force_after_grace(self) -> None:
        assert self._grace is not None
        await anyio.sleep(self._grace)
        if self.state is ManagerState.STOPPING:  # else closing has the same deadline
            self.force("the grace time ran out")

    def close(self, timeout: float | EllipsisType | None) -> None:
        """Start closing, as `Manager.close()` describes."""
        if timeout is None:
            self._grace, self._grace_ends = None, inf
        elif timeout is not ...:
            self._deadline = min(self._deadline, self._backend.now() + timeout)
        self._set_patience()
        self.begin("close() was called")

    def force(self, reason: str) -> None:
        """Close now: cancel what is left at once."""
        self._deadline = self._backend.now()
        self._set_patience()
        self.begin(reason)
        self._cancel_left()
        if self._owns_process:
            self._cancel_body()

    def _set_patience(self) -> None:
        if self._patience is not None:
            self._patience.deadline = min(self._deadline, self._grace_ends)

    def _cancel_left(self) -> None:
        for handle in self.engine.outstanding.left():
            self.engine.cancel_handle(handle, "shutdown")

    def begin(self, reason: str) -> None:
        """Start closing, unless it has started."""
        if self.state not in (ManagerState.RUNNING, ManagerState.STOPPING):
            return
        self.state = ManagerState.CLOSING
        self.shutdown_requested.set()
        outstanding = self.engine.outstanding.count()
        hooks = self._listeners.hooks
        if hooks.on_manager_closing:
            event = ManagerClosingEvent(
                name=self._name, time=_clock.wall(), reason=reason, outstanding=outstanding
            )
            hooks.tell(hooks.on_manager_closing, event)
        self.engine.admission.close()
        self.engine.stop_loops()
        self.engine.cancel_delayed("shutdown")
        self._services.start("background closing", self._close, on_lost=self._lost)

    def ended(self, handle: TaskHandle[Any]) -> None:
        """Take note of a task's end, for the report."""
        if self.state is ManagerState.CLOSING:
            self._ended.append(handle)

    async def wait(self) -> CloseReport:
        """Wait for the report."""
        await self._closed.wait()
        assert self.report is not None
        return self.report

    async def _close(self) -> None:
        began = self._backend.now()
        try:
            await self.drain()
            self.report = self._make_report()
            self._tell_closed(self.report, self._backend.now() - began)
            await self._listeners.flush(self._cancel_timeout)
        finally:
            # An event loop that shuts down cancels this service too; nobody may wait in vain.
            self._closed_with(self.report or self._make_report())

    def _closed_with(self, report: CloseReport) -> None:
        self.report = report
        self.state = ManagerState.CLOSED
        self.engine.outstanding.end_exemptions(report.stuck)
        self._closed.set()

    def _lost(self) -> None:
        self._closed_with(self._make_report())

    def _tell_closed(self, report: CloseReport, duration: float) -> None:
        hooks = self._listeners.hooks
        if hooks.on_manager_closed:
            event = ManagerClosedEvent(
                name=self._name, time=_clock.wall(), duration=duration, report=report
            )
            hooks.tell(hooks.on_manager_closed, event)

    async def drain(self) -> None:
        """Wait for what is left, cancel it at the deadline, and give it time to clean up."""
        outstanding = self.engine.outstanding
        with anyio.CancelScope(deadline=min(self._deadline, self._grace_ends)) as self._patience:
            await outstanding.idle()
        self._patience = None
        self._cancel_left()
        with anyio.move_on_after(self._cancel_timeout):
            await outstanding.idle()

    def _make_report(self) -> CloseReport:
        stuck = self.engine.outstanding.left()
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
