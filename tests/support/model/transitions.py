"""State transitions of the tasks in the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import ceil, inf

from background import TaskKind, TaskStatus
from support.model.plans import OnCancel, Plan, Setup
from support.model.rows import Phase, Row, plain

EPSILON = 1e-6  # seconds within which two times are equal
NO_SLOT = {Phase.DELAYED, Phase.QUEUED}


class Tasks(ABC):
    """The tasks of a manager that never closes; `Model` adds the rest."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.now = 0.0
        self.rows: list[Row] = []
        self.queue: list[Row] = []
        self.loops_stopped = False

    def outstanding(self, kind: TaskKind | None = None) -> list[Row]:
        return [r for r in self.rows if r.final is None and kind in (None, r.plan.kind)]

    def accept(self, plan: Plan) -> None:
        expires = inf if plan.lifespan is None else self.now + plan.lifespan
        row = Row(plan, submitted=self.now, due=self.now + plan.delay, expires=expires)
        self.rows.append(row)
        self.emit(row, "added", plan.delay)
        if row.final is None:
            self._schedule(row)

    def release(self, row: Row, *, fail: bool) -> None:
        row.at, row.fails = self.now, fail

    def cancel(self, row: Row, reason: str | None) -> bool:
        if row.final is not None:
            return False
        if row.phase in (Phase.DELAYED, Phase.QUEUED, Phase.STARTING):
            self._finish(row, TaskStatus.CANCELLED, reason=reason)
        elif not row.cancelled:
            row.cancelled, row.reason = True, reason
            row.cancel_pending = row.at > self.now or row.phase is Phase.AWAITING
        return True

    def stop_loops(self) -> None:
        self.loops_stopped = True
        for row in self.outstanding(TaskKind.LOOP):
            if row.status is TaskStatus.WAITING:
                self._finish(row, TaskStatus.CANCELLED, reason="stopped")
            elif row.phase is Phase.BACKOFF:
                row.at = self.now

    def run_due(self) -> bool:
        due = [row for row in self.outstanding() if row.next <= self.now]
        for row in due:
            if row.final is None and row.next <= self.now:
                self._advance_row(row)
        return bool(due)

    def _advance_row(self, row: Row) -> None:
        expired = self.now >= row.expires
        match row.phase:
            case Phase.DELAYED | Phase.QUEUED if expired:
                self._finish(row, TaskStatus.EXPIRED)
            case Phase.DELAYED:
                self._schedule(row)
            case Phase.STARTING:
                self._start(row)
            case Phase.RUNNING if row.at <= self.now and row.plan.awaits:
                row.phase = Phase.AWAITING
                self.begin(row.plan.awaits)
            case Phase.RUNNING if row.at <= self.now:
                self.end_call(row)
            case Phase.RUNNING | Phase.AWAITING:
                row.cancel_pending = False
                row.phase, row.at = Phase.CLEANING, self.now + row.plan.cleanup
            case Phase.CLEANING if row.plan.on_cancel is not OnCancel.PROPAGATES:
                raises = row.plan.on_cancel is OnCancel.RAISES
                self._end_attempt(row, "ValueError" if raises else None)
            case Phase.CLEANING | Phase.BACKOFF if row.cancelled or expired:
                status = TaskStatus.CANCELLED if row.cancelled else TaskStatus.EXPIRED
                self._end_run(row, status)
            case Phase.CLEANING:
                self._end_attempt(row, "TimeoutError")
            case Phase.BACKOFF if row.is_loop and self.loops_stopped:
                self._end_run(row, TaskStatus.FAILED)
            case Phase.BACKOFF:
                row.attempt += 1
                self._call(row)

    # Transitions of one task

    def _schedule(self, row: Row) -> None:
        if row.due > self.now:
            row.phase = Phase.DELAYED
        elif row.is_loop:
            row.phase = Phase.STARTING
        else:
            row.phase = Phase.QUEUED
            self.queue.append(row)
            self._start_queued()

    def _start_queued(self) -> None:
        one_offs = self.outstanding(TaskKind.ONE_OFF)
        free = (self.setup.limit or inf) - sum(row.phase not in NO_SLOT for row in one_offs)
        while self.queue and free > 0:
            self.queue.pop(0).phase = Phase.STARTING
            free -= 1

    def _start(self, row: Row) -> None:
        row.attempt = 1
        row.iteration += row.is_loop
        row.started = self.now
        row.phase, row.at = Phase.RUNNING, inf
        self.emit(row, "started", max(0.0, self.now - row.due))
        self._call(row)

    def _call(self, row: Row) -> None:
        plan = row.plan
        row.phase = Phase.RUNNING
        row.at = inf if plan.seconds is None else self.now + plan.seconds
        row.times_out = inf if plan.timeout is None else self.now + plan.timeout
        row.fails = plan.fails[row.calls % len(plan.fails)]
        row.calls += 1

    def end_call(self, row: Row) -> None:
        self._end_attempt(row, "ValueError" if row.fails else None)

    def _end_attempt(self, row: Row, error: str | None) -> None:
        row.raised = error
        attempts, backoff = self.setup.attempts, self.setup.backoff
        if row.plan.attempts is not None:
            attempts, backoff = row.plan.attempts, row.plan.backoff
        final = row.cancelled or self.now >= row.expires or (row.is_loop and self.loops_stopped)
        if error is None:
            self._end_run(row, TaskStatus.SUCCEEDED)
        elif final or row.attempt >= attempts:
            self._end_run(row, TaskStatus.FAILED)
        else:
            row.phase, row.at = Phase.BACKOFF, self.now + backoff
            self.emit(row, "retrying", error, backoff)

    def _end_run(self, row: Row, status: TaskStatus) -> None:
        assert row.started is not None
        took = self.now - row.started
        failed = status is TaskStatus.FAILED
        if failed:
            row.error = row.raised
        if row.is_loop and (failed or status is TaskStatus.SUCCEEDED):
            row.failures = row.failures + 1 if failed else 0
            if row.failures != row.plan.max_failures:
                row.phase = Phase.DELAYED
                self._emit_outcome(row, status, took, final=False)
                if row.final is None:
                    self._continue(row, failed=failed)
                return
        self._finish(row, status, took)

    def _continue(self, row: Row, *, failed: bool) -> None:
        plan = row.plan
        if row.cancelled:
            self._finish(row, TaskStatus.CANCELLED)
        elif self.now >= row.expires:
            self._finish(row, TaskStatus.EXPIRED)
        elif self.loops_stopped:
            self._finish(row, TaskStatus.CANCELLED, reason="stopped")
        else:
            if plan.interval is None:
                row.due = self.now + (self.setup.loop_backoff if failed else 0)
            else:
                first = row.submitted + plan.delay
                ticks = ceil((max(self.now, row.due + EPSILON) - first) / plan.interval)
                row.due = first + ticks * plan.interval
            self._schedule(row)

    def _finish(
        self,
        row: Row,
        status: TaskStatus,
        took: float | None = None,
        *,
        reason: str | None = None,
    ) -> None:
        row.final, row.finished, row.reason = status, self.now, row.reason or reason
        if row in self.queue:
            self.queue.remove(row)
        self.on_end(row)
        self._emit_outcome(row, status, took, final=True)
        if status is TaskStatus.FAILED and row.plan.critical:
            self.fail()
        self._start_queued()

    def _emit_outcome(
        self, row: Row, status: TaskStatus, took: float | None, *, final: bool
    ) -> None:
        details = {
            TaskStatus.SUCCEEDED: (took, final),
            TaskStatus.FAILED: (row.error, took, final),
            TaskStatus.CANCELLED: (row.reason, took),
            TaskStatus.EXPIRED: (row.plan.lifespan, took),
        }
        self.emit(row, status.value, *details[status])

    def emit(self, row: Row, name: str, *details: object) -> None:
        event = name, self.now, row.iteration, row.attempt, *details
        row.events.append(tuple(map(plain, event)))
        if row.plan.reaction == (name, "cancel"):
            self.cancel(row, "reaction")
        elif row.plan.reaction == (name, "shut down"):
            self.request_shutdown()

    # Effects on the manager

    @abstractmethod
    def on_end(self, row: Row) -> None:
        """Handle the end of a task."""

    @abstractmethod
    def fail(self) -> None:
        """Handle the failure of a critical task."""

    @abstractmethod
    def begin(self, method: str) -> None:
        """Begin the effects of a method that is awaited."""

    @abstractmethod
    def request_shutdown(self) -> None: ...
