"""What a manager promises, as plain bookkeeping, for the state machine test to compare it with.

Nothing runs here: `advance()` does what falls due, in order. What has no order because it is due at
the same time raises `Tie`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from background import ManagerState, TaskKind, TaskStatus
from support.model.plans import Plan, Setup
from support.model.rows import Phase, Row, plain
from support.model.transitions import HAIR, Tasks


class Tie(Exception):
    """Two things are due at once, and either may come first."""


@dataclass(eq=False)
class Asked:
    """An awaited call of the manager, and how it ended."""

    what: str
    plan: Plan | None = None
    admitted: bool = False
    outcome: str | None = None


class Model(Tasks):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.state = ManagerState.RUNNING
        self.asked: list[Asked] = []
        self.requested = False
        self.grace = setup.grace
        self.grace_ends = inf
        self.deadline = inf
        self.gives_up: float | None = None  # on those cancelled at the deadline
        self.events: list[tuple[object, ...]] = []
        self.ended: list[Row] = []
        self.stuck: list[Row] = []
        self.leaving: str | None = None
        self.left: str | None = None

    # Looking

    @property
    def is_closing(self) -> bool:
        return self.state in (ManagerState.CLOSING, ManagerState.CLOSED)

    def waiting_for_room(self) -> list[Asked]:
        return [a for a in self.asked if a.plan and a.outcome is None and not a.admitted]

    def outstanding_with_id_of(self, other: Row) -> Row | None:
        same = (row for row in self.outstanding() if row.plan.id == other.plan.id is not None)
        return next(same, other if other.final is None else None)

    def look(self) -> dict[str, Any]:
        """Return what a manager should show now."""
        left, one_offs = self.outstanding(), self.outstanding(TaskKind.ONE_OFF)
        loops = [row.plan.number for row in left if row.is_loop]
        statuses = [row.status for row in one_offs]
        shown = TaskStatus.WAITING, TaskStatus.RUNNING, TaskStatus.RETRYING
        return {
            "state": self.state.value,
            "counts": [len(left), len(one_offs), len(loops)],
            "tasks": [row.plan.number for row in left],
            "loops": loops,
            "found": [row.plan.number for row in left],
            "health": [*map(statuses.count, shown), len(loops), not self.is_closing],
            "handles": {row.plan.number: row.look() for row in self.rows},
            "events": {0: [*self.events]} | {r.plan.number: [*r.events] for r in self.rows},
            "asked": [asked.outcome for asked in self.asked],
            "left": self.left,
        }

    def _report(self) -> dict[str, list[int]]:
        fates: dict[str, list[int]] = {"stuck": [row.plan.number for row in self.stuck]}
        for row in self.ended:
            unstarted = row.status is TaskStatus.CANCELLED and row.started is None
            fate = "not_started" if unstarted and not row.is_loop else row.status.value
            fates.setdefault(fate, []).append(row.plan.number)
        return {fate: sorted(numbers) for fate, numbers in fates.items() if numbers}

    # What the users do

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
        self.take(plan)
        return "added"

    def submit(self, plan: Plan) -> None:
        asked = Asked("submit", plan)
        patient = plan.kind is TaskKind.ONE_OFF and not self.is_closing
        if patient and (self.waiting_for_room() or not self._has_room()):
            asked.outcome = None
        else:
            asked.outcome = self.add(plan, admitted=patient)
        self.asked.append(asked)

    def ask(self, what: str) -> None:
        self.begin(what)
        self.asked.append(Asked(what))

    def begin(self, what: str) -> None:
        if what == "stop_loops":
            self.stop_loops()
        elif what == "close":
            self._begin_closing()

    def give_up(self, number: int) -> None:
        self.asked[number].outcome = "given up"

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
        self.ask("close")

    def leave(self, how: str) -> None:
        self.leaving = self.leaving if self.leaving == "group" else how
        if how == "cancelled":
            self._force()
        else:
            self._begin_closing()

    # What time does

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        self._settle()
        while (when := min(self._times())) < until:
            if sum(time < when + HAIR for time in (*self._times(), until)) > 1:
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
            self.run_what_is_due()
            or self._admit_next()
            or self._answer_task()
            or self._go_on_closing()
        ):
            pass
        for asked in self.asked:
            if asked.outcome is None and self._is_answered(asked.what):
                asked.outcome = "done"

    def _answer_task(self) -> bool:
        for row in self.outstanding():
            if row.phase is Phase.ASKING and self._is_answered(str(row.plan.asks), row):
                self.call_is_over(row)
                return True
        return False

    def _is_answered(self, what: str, inside: Row | None = None) -> bool:
        left = [row for row in self.outstanding() if row not in (*self.stuck, inside)]
        return {
            "submit": False,
            "wait": all(row.is_loop for row in left),
            "stop_loops": not any(row.is_loop for row in left),
            "shutdown_requested": self.requested or self.state is not ManagerState.RUNNING,
            "close": self.state is ManagerState.CLOSED,
        }[what]

    # Room

    def _has_room(self) -> bool:
        admitted = sum(asked.admitted and asked.outcome is None for asked in self.asked)
        taken = len(self.outstanding(TaskKind.ONE_OFF)) + admitted
        return self.setup.capacity is None or taken < self.setup.capacity

    def _make_room(self) -> None:
        for asked in self.waiting_for_room():
            asked.admitted = self._has_room() or self.state is ManagerState.CLOSING

    def _admit_next(self) -> bool:
        admitted = [a for a in self.asked if a.plan and a.admitted and a.outcome is None]
        if len(admitted) > 1 and self.state is not ManagerState.CLOSING:
            raise Tie
        for asked in admitted:
            assert asked.plan is not None
            asked.outcome = self.add(asked.plan, admitted=True)
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
        self._cancel_left()

    def _to_wait_for(self) -> list[Row]:
        """Return what closing waits for: not for a task that waits for it."""
        left = [row for row in self.outstanding() if row not in self.stuck]
        return [r for r in left if (r.phase, r.plan.asks) != (Phase.ASKING, "close")]

    def _cancel_left(self) -> None:
        for row in self._to_wait_for():
            self.cancel(row, "shutdown")

    def _go_on_closing(self) -> bool:
        if self.state is ManagerState.STOPPING and self.grace_ends <= self.now:
            self._force()
            return True
        left = self._to_wait_for()
        if not self._is_draining() or (left and self._next_of_closing() > self.now):
            return False
        if left and self.gives_up is None:
            self._cancel_left()
            self.gives_up = self.now + self.setup.cancel_timeout
        elif self.state is ManagerState.CLOSING:
            self.stuck, self.gives_up = left, None
            self.state = ManagerState.CLOSED
            self.events.append(("closed", plain(self.now), self._report()))
        else:
            self.left = self.leaving
        return True

    def _is_draining(self) -> bool:
        """Tell whether closing waits for tasks, or leaving does for those that have closed."""
        if self.state is ManagerState.CLOSED:
            return self.leaving is not None and self.left is None
        return self.state is ManagerState.CLOSING

    # What a task's end means

    def take_note(self, row: Row) -> None:
        if self.state is ManagerState.CLOSING:
            self.ended.append(row)
        self._make_room()

    def fail(self) -> None:
        self.leaving = "group"
        self._force()
