"""Random steps of a manager, compared with a model of its guarantees after every step.

`STATE_MACHINE_EXAMPLES=20000` sets the number of examples; `--hypothesis-seed=…` repeats an earlier
run.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from inspect import isawaitable
from math import inf
from random import getrandbits
from typing import Any, Literal

import anyio
import pytest
from hypothesis import HealthCheck, reject, seed, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.model.manager import Model, Tie
from support.model.plans import LOOPS, ONE_OFFS, SETUPS, Fractions, Plan, Setup
from support.model.rows import Phase, Row
from support.model.system import System

from background.testing import virtual_time, virtual_wall_clock

EXAMPLES = int(os.environ.get("STATE_MACHINE_EXAMPLES", "200"))
BACKENDS: list[Literal["asyncio", "trio"]] = ["asyncio", "trio"]
MOMENT = 2**-10  # seconds in which everything that is due is done
EPOCH = datetime.fromtimestamp(0, UTC)
PICKS = st.integers(0, 9)
ENDINGS = st.sampled_from(["returned", "error", "cancelled"])
SHUTDOWNS = st.sampled_from(["request", "request", "request", "stop_loops", "close", "close"])
PLANS = st.one_of(ONE_OFFS, ONE_OFFS, LOOPS)
PAUSES = st.integers(0, 5)
REASONS = st.sampled_from([None, "enough"])


class ManagerSteps(RuleBasedStateMachine):
    """Rules that act on a model and record a script, which is then played on real managers."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[tuple[str, tuple[Any, ...], Any, dict[str, Any] | None]] = []
        self.fractions = Fractions()
        self.plans = 0
        self.shutdown_by_observer = False

    @initialize(setup=SETUPS, tasks_before_closing=st.integers(0, 15), ending=ENDINGS)
    def enter(self, setup: Setup, tasks_before_closing: int, ending: str) -> None:
        self.tasks_before_closing = tasks_before_closing
        self.ending = ending
        self.setup = self.fractions.make_unique(setup)
        self.model = Model(self.setup)
        self.settle()

    # Three rules submit tasks, as Hypothesis leaves out some of the rules in each example.

    @precondition(lambda self: self.model.left is None)
    @rule(plans=st.lists(ONE_OFFS, min_size=1, max_size=4), seconds=PAUSES)
    def run_one_offs(self, plans: list[Plan], seconds: int) -> None:
        for plan in plans:
            self.add(plan)
        self.pass_time(seconds)

    @precondition(lambda self: self.model.left is None)
    @rule(plan=LOOPS, seconds=PAUSES)
    def run_loop(self, plan: Plan, seconds: int) -> None:
        self.add(plan)
        self.pass_time(seconds)

    @precondition(lambda self: self.model.left is None)
    @rule(plans=st.lists(PLANS, min_size=1, max_size=3), seconds=PAUSES)
    def submit(self, plans: list[Plan], seconds: int) -> None:
        for plan in plans:
            self.add(plan, patient=True)
        self.pass_time(seconds)

    def add(self, plan: Plan, patient: bool = False) -> None:
        self.plans += 1
        if self.setup.capacity is not None and plan.shuts_down:
            plan = replace(plan, reaction=None)  # it would race with calls that wait for room
        self.shutdown_by_observer |= plan.shuts_down
        self.settle_if(patient or plan.affects_others)
        if any(row.plan.awaits for row in self.model.outstanding()):
            plan = replace(plan, awaits=None)  # the order of two waiters is not guaranteed
        plan = replace(self.fractions.make_unique(plan), number=self.plans)
        if patient:
            self.model.submit(plan)
            self.write("call", "submit", plan)
            self.settle()
        else:
            self.write("run_task", plan, answer=self.model.add(plan))

    @precondition(lambda self: self.unreleased())
    @rule(pick=PICKS, fail=st.booleans())
    def release(self, pick: int, fail: bool) -> None:
        rows = self.unreleased()
        row = rows[pick % len(rows)]
        self.settle_if(row.plan.affects_others)
        if row in self.unreleased():
            self.model.release(row, fail=fail)
            self.write("release", row.plan.number, fail)
            self.settle_if(row.plan.affects_others)

    @precondition(lambda self: self.model.outstanding())
    @rule(pick=PICKS, reason=REASONS, by_id=st.booleans())
    def cancel(self, pick: int, reason: str | None, by_id: bool) -> None:
        self.settle_if(False)
        rows = sorted(self.model.rows, key=lambda row: row.final is not None)
        row = rows[pick % len(rows)]
        number = row.plan.number
        if by_id:
            found = self.model.outstanding_with_id_of(row)
            answer = found is not None and self.model.cancel(found, reason)
            self.write("cancel_by_id", number, reason, answer=answer)
        else:
            self.write("cancel", number, reason, answer=self.model.cancel(row, reason))

    @rule(seconds=PAUSES)
    def pass_time(self, seconds: int) -> None:
        if seconds:
            self.advance(self.fractions.seconds(seconds))

    @precondition(lambda self: len(self.model.calls) < 8 and self.model.left is None)
    @rule(method=st.sampled_from(["wait", "shutdown_requested"]))
    def call(self, method: str) -> None:
        self.settle()
        self.model.call(method)
        self.write("call", method)
        self.settle()

    @precondition(lambda self: self.pending_calls())
    @rule(pick=PICKS)
    def give_up(self, pick: int) -> None:
        self.settle()
        if pending := self.pending_calls():
            number = pending[pick % len(pending)]
            self.model.give_up(number)
            self.write("give_up", number)
            self.settle()

    @precondition(lambda self: self.plans > self.tasks_before_closing and self.model.left is None)
    @rule(
        how=SHUTDOWNS | ENDINGS,
        timeout=st.just("grace") | st.none() | st.integers(0, 12),
    )
    def shut_down(self, how: str, timeout: int | Literal["grace"] | None) -> None:
        if how == "stop_loops":
            self.call(how)
        elif how == "request":
            self.settle_if(False)
            self.model.request_shutdown()
            self.write("request_shutdown")
        elif how == "close":
            self.settle()
            exact = self.fractions.seconds(timeout) if isinstance(timeout, int) else timeout
            self.model.close(exact)
            self.write("call", "close", exact)
            self.settle()
        else:
            self.leave(how)

    def leave(self, how: str) -> None:
        self.settle()
        if self.model.leaving is None or (how == "cancelled" and self.model.left is None):
            self.model.leave(how)
            self.write("leave", how)
            self.settle()

    # The script

    def write(self, step: str, *args: Any, answer: Any = None) -> None:
        later = step in (
            "call",
            "give_up",
            "leave",
        )  # these begin in the next step of the event loop
        self.script.append((step, args, answer, None if later else self.model.snapshot()))

    def advance(self, seconds: float) -> None:
        try:
            self.model.advance(seconds)
        except Tie:
            reject()
        self.write("advance_to", self.model.now)

    def settle(self) -> None:
        self.advance(MOMENT)

    def settle_if(self, needed: bool) -> None:
        """Let everything happen that the next step could race with."""
        if needed or self.shutdown_by_observer or self.model.waiting_for_room():
            self.settle()

    def pending_calls(self) -> list[int]:
        calls = enumerate(self.model.calls)
        return [number for number, call in calls if call.outcome is None and not call.admitted]

    def unreleased(self) -> list[Row]:
        rows = self.model.outstanding()
        return [
            row
            for row in rows
            if row.phase is Phase.RUNNING and row.at == inf and not row.cancel_pending
        ]

    # Playing the script

    def teardown(self) -> None:
        if sys.exception() is None and self.script:
            self.leave(self.ending)
            self.advance(self.fractions.seconds(30))
            self.leave("cancelled")
            self.advance(self.fractions.seconds(30))
            assert not self.model.outstanding()
            for backend in BACKENDS:
                name, options = virtual_time(backend)
                anyio.run(self.play, backend, backend=name, backend_options=options)

    async def play(self, backend: str) -> None:
        failure: AssertionError | None = None
        with virtual_wall_clock(EPOCH):
            async with anyio.create_task_group() as group:
                system = System(self.setup, group)
                await group.start(system.host)
                try:
                    await self.compare(system, backend)
                except AssertionError as error:
                    failure = error
                group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def compare(self, system: System, backend: str) -> None:
        for number, (step, args, answer, expected) in enumerate(self.script):
            answered = getattr(system, step)(*args)
            if isawaitable(answered):
                answered = await answered
            where = f"on {backend}, step {number}: {step}{args}"
            assert answered == answer, where
            system.check(where)
            if expected is not None:
                assert differences(system.snapshot(), expected) == {}, where
        system.check_end()
        for row in self.model.rows:
            assert await system.result(row.plan.number) == row.result()


def differences(actual: dict[Any, Any], expected: dict[Any, Any]) -> dict[Any, Any]:
    """Return the pairs of actual and expected values that differ."""
    both = {key: (actual.get(key), expected.get(key)) for key in actual | expected}
    return {
        key: differences(*pair) if all(isinstance(value, dict) for value in pair) else pair
        for key, pair in both.items()
        if pair[0] != pair[1]
    }


def test_manager_matches_model(request: pytest.FixtureRequest) -> None:
    """A manager behaves as its model in random sequences of steps."""
    option = request.config.getoption("--hypothesis-seed")
    number = getrandbits(64) if option is None else int(option)
    print(f"to repeat this: --hypothesis-seed={number}")
    run_state_machine_as_test(
        seed(number)(ManagerSteps),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            print_blob=True,
            phases=set(HypothesisPhase) - {HypothesisPhase.explain},  # takes minutes
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
