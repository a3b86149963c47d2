"""A model of the manager's guarantees, for the state machine test.

The model runs no code of tasks: `advance()` applies all transitions that are due, in order. It
raises `Tie` if two of them are due at the same time, as their order is not defined.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from background import ManagerState, TaskKind, TaskStatus
from support.model.plans import Plan, Setup
from support.model.rows import Phase, Row, plain
from support.model.transitions import EPSILON, Tasks


class Tie(Exception):
    """Two events are due at the same time, in any order."""


@dataclass(eq=False)
class Call:
    """An awaited call of a method of the manager, and its outcome."""

    method: str
    plan: Plan | None = None
    admitted: bool = False
    outcome: str | None = None


class Model(Tasks):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.state = ManagerState.RUNNING
        self.calls: list[Call] = []
        self.requested = False
        self.grace = setup.grace
        self.grace_ends = inf
        self.deadline = inf
        self.gives_up: float | None = None  # on tasks that were cancelled at the deadline
        self.events: list[tuple[object, ...]] = []
        self.ended: list[Row] = []
        self.stuck: list[Row] = []
        self.leaving: str | None = None
        self.left: str | None = None

    # Queries

    @property
    def is_closing(self) -> bool:
        return self.state in (ManagerState.CLOSING, ManagerState.CLOSED)

    def waiting_for_room(self) -> list[Call]:
        return [c for c in self.calls if c.plan and c.outcome is None and not c.admitted]

    def outstanding_with_id_of(self, wanted: Row) -> Row | None:
        same = (row for row in self.outstanding() if row.plan.id == wanted.plan.id is not None)
        return next(same, wanted if wanted.final is None else None)

    def snapshot(self) -> dict[str, Any]:
        """Return the expected state of the manager."""
        rows, one_offs = self.outstanding(), self.outstanding(TaskKind.ONE_OFF)
        loops = [row.plan.number for row in rows if row.is_loop]
        statuses = [row.status for row in one_offs]
        shown = TaskStatus.WAITING, TaskStatus.RUNNING, TaskStatus.RETRYING
        return {
            "state": self.state.value,
            "counts": [len(rows), len(one_offs), len(loops)],
            "tasks": [row.plan.number for row in rows],
            "loops": loops,
            "found": [row.plan.number for row in rows],
            "health": [*map(statuses.count, shown), len(loops), not self.is_closing],
            "handles": {row.plan.number: row.snapshot() for row in self.rows},
            "events": {0: [*self.events]} | {r.plan.number: [*r.events] for r in self.rows},
            "calls": [call.outcome for call in self.calls],
            "left": self.left,
        }

    def _report(self) -> dict[str, list[int]]:
        outcomes: dict[str, list[int]] = {"stuck": [row.plan.number for row in self.stuck]}
        for row in self.ended:
            unstarted = row.status is TaskStatus.CANCELLED and row.started is None
            outcome = "not_started" if unstarted and not row.is_loop else row.status.value
            outcomes.setdefault(outcome, []).append(row.plan.number)
        return {outcome: sorted(numbers) for outcome, numbers in outcomes.items() if numbers}

    # Calls of the user

    def add(self, plan: Plan, *, admitted: bool = False) -> str:
        one_off = plan.kind is TaskKind.ONE_OFF
        if self.is_closing:
            return "ManagerClosedError"
        if not one_off and self.loops_stopped:
            return "LoopsStoppedError"
        if plan.id is not None and plan.id in [row.plan.id for row in self.outstanding()]:
            return "DuplicateTaskError"
        if one_off and not admitted and not self._has_room():
            return "ManagerFullError"
        self.accept(plan)
        return "added"

    def submit(self, plan: Plan) -> None:
        call = Call("submit", plan)
        patient = plan.kind is TaskKind.ONE_OFF and not self.is_closing
        if patient and (self.waiting_for_room() or not self._has_room()):
            call.outcome = None
        else:
            call.outcome = self.add(plan, admitted=patient)
        self.calls.append(call)

    def call(self, method: str) -> None:
        self.begin(method)
        self.calls.append(Call(method))

    def begin(self, method: str) -> None:
        if method == "stop_loops":
            self.stop_loops()
        elif method == "close":
            self._begin_closing()

    def give_up(self, number: int) -> None:
        self.calls[number].outcome = "given up"

    def request_shutdown(self) -> None:
        if self.state is ManagerState.CLOSED:
            return
        if self.requested:
            self._force()
            return
        self.requested = True
        if self.state is ManagerState.RUNNING:
            self.state = ManagerState.STOPPING
            self.stop_loops()
        if self.grace is not None:
            self.grace_ends = self.now + self.grace

    def close(self, timeout: float | Literal["grace"] | None) -> None:
        if timeout is None:
            self.grace, self.grace_ends = None, inf
        elif timeout != "grace":
            self.deadline = min(self.deadline, self.now + timeout)
        self.call("close")

    def leave(self, how: str) -> None:
        self.leaving = self.leaving if self.leaving == "group" else how
        if how == "cancelled":
            self._force()
        else:
            self._begin_closing()

    # Time

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        self._settle()
        while (when := min(self._times())) < until:
            if sum(time < when + EPSILON for time in (*self._times(), until)) > 1:
                raise Tie
            self.now = when
            self._settle()
        self.now = until

    def _times(self) -> list[float]:
        return [*(row.next for row in self.outstanding()), self._next_of_closing(), inf]

    def _next_of_closing(self) -> float:
        if self.state is ManagerState.STOPPING:
            return self.grace_ends
        if not self._is_draining():
            return inf
        if self.gives_up is not None:
            return self.gives_up
        return min(self.deadline, self.grace_ends)

    def _settle(self) -> None:
        while (
            self.run_due()
            or self._admit_next()
            or self._return_to_task()
            or self._continue_closing()
        ):
            pass
        for call in self.calls:
            if call.outcome is None and self._returns(call.method):
                call.outcome = "done"

    def _return_to_task(self) -> bool:
        for row in self.outstanding():
            if row.phase is Phase.AWAITING and self._returns(str(row.plan.awaits), row):
                self.end_call(row)
                return True
        return False

    def _returns(self, method: str, caller: Row | None = None) -> bool:
        rows = [row for row in self.outstanding() if row not in (*self.stuck, caller)]
        return {
            "submit": False,
            "wait": all(row.is_loop for row in rows),
            "stop_loops": not any(row.is_loop for row in rows),
            "shutdown_requested": self.requested or self.state is not ManagerState.RUNNING,
            "close": self.state is ManagerState.CLOSED,
        }[method]

    # Room

    def _has_room(self) -> bool:
        admitted = sum(call.admitted and call.outcome is None for call in self.calls)
        taken = len(self.outstanding(TaskKind.ONE_OFF)) + admitted
        return self.setup.capacity is None or taken < self.setup.capacity

    def _make_room(self) -> None:
        for call in self.waiting_for_room():
            call.admitted = self._has_room() or self.state is ManagerState.CLOSING

    def _admit_next(self) -> bool:
        admitted = [c for c in self.calls if c.plan and c.admitted and c.outcome is None]
        if len(admitted) > 1 and self.state is not ManagerState.CLOSING:
            raise Tie
        for call in admitted:
            assert call.plan is not None
            call.outcome = self.add(call.plan, admitted=True)
            self._make_room()
        return bool(admitted)

    # Closing

    def _begin_closing(self) -> None:
        if self.is_closing:
            return
        self.state = ManagerState.CLOSING
        self.events.append(("closing", plain(self.now), len(self.outstanding())))
        self._make_room()
        self.stop_loops()
        for row in self.outstanding(TaskKind.ONE_OFF):
            if row.final is None and row.phase is Phase.DELAYED:
                self._finish(row, TaskStatus.CANCELLED, reason="shutdown")

    def _force(self) -> None:
        self.deadline = self.now
        self._begin_closing()
        self._cancel_draining()

    def _draining(self) -> list[Row]:
        """Return the tasks that closing waits for: not those that wait for `close()`."""
        rows = [row for row in self.outstanding() if row not in self.stuck]
        return [r for r in rows if (r.phase, r.plan.awaits) != (Phase.AWAITING, "close")]

    def _cancel_draining(self) -> None:
        for row in self._draining():
            self.cancel(row, "shutdown")

    def _continue_closing(self) -> bool:
        if self.state is ManagerState.STOPPING and self.grace_ends <= self.now:
            self._force()
            return True
        left = self._draining()
        if not self._is_draining() or (left and self._next_of_closing() > self.now):
            return False
        if left and self.gives_up is None:
            self._cancel_draining()
            self.gives_up = self.now + self.setup.cancel_timeout
        elif self.state is ManagerState.CLOSING:
            self.stuck, self.gives_up = left, None
            self.state = ManagerState.CLOSED
            self.events.append(("closed", plain(self.now), self._report()))
        else:
            self.left = self.leaving
        return True

    def _is_draining(self) -> bool:
        """Return whether closing waits for tasks, or leaving for tasks that called `close()`."""
        if self.state is ManagerState.CLOSED:
            return self.leaving is not None and self.left is None
        return self.state is ManagerState.CLOSING

    # Effects of ended tasks

    def on_end(self, row: Row) -> None:
        if self.state is ManagerState.CLOSING:
            self.ended.append(row)
        self._make_room()

    def fail(self) -> None:
        self.leaving = "group"
        self._force()
