"""Random lives of a manager, compared with a model of what it promises after every step.

`STATE_MACHINE_EXAMPLES=20000` has more of them than the default; `--hypothesis-seed=…` repeats
those of an earlier run.
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
from support.model.system import World

from background.testing import virtual_time, virtual_wall_clock

EXAMPLES = int(os.environ.get("STATE_MACHINE_EXAMPLES", "200"))
BACKENDS: list[Literal["asyncio", "trio"]] = ["asyncio", "trio"]
MOMENT = 2**-10  # seconds, in which all that is due at once gets done
EPOCH = datetime.fromtimestamp(0, UTC)
PICKS = st.integers(0, 9)
ENDINGS = st.sampled_from(["returned", "error", "cancelled"])
SHUTDOWNS = st.sampled_from(["request", "request", "request", "stop_loops", "close", "close"])
PLANS = st.one_of(ONE_OFFS, ONE_OFFS, LOOPS)
PAUSES = st.integers(0, 5)
REASONS = st.sampled_from([None, "enough"])


class Life(RuleBasedStateMachine):
    """What the rules do to a model is written down, and in the end done to real managers."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[tuple[str, tuple[Any, ...], Any, dict[str, Any] | None]] = []
        self.fractions = Fractions()
        self.plans = 0
        self.meddled = False

    @initialize(setup=SETUPS, youth=st.integers(0, 15), ending=ENDINGS)
    def enter(self, setup: Setup, youth: int, ending: str) -> None:
        self.youth = youth  # how many tasks there are to be before anybody thinks of closing
        self.ending = ending
        self.setup = self.fractions.of(setup)
        self.model = Model(self.setup)
        self.settle()

    # Hypothesis leaves out some of the rules in each life: hence three that bring tasks.

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
            plan = replace(plan, meddling=None)  # it would race with those who wait for room
        self.meddled |= plan.shuts_down
        self.settle_if(patient or plan.is_alone)
        if any(row.plan.asks for row in self.model.outstanding()):
            plan = replace(plan, asks=None)  # who of two goes on first is not promised
        plan = replace(self.fractions.of(plan), number=self.plans)
        if patient:
            self.model.submit(plan)
            self.write("ask", "submit", plan)
            self.settle()
        else:
            self.write("run_task", plan, answer=self.model.add(plan))

    @precondition(lambda self: self.waiting_to_be_told())
    @rule(pick=PICKS, fail=st.booleans())
    def tell(self, pick: int, fail: bool) -> None:
        rows = self.waiting_to_be_told()
        row = rows[pick % len(rows)]
        self.settle_if(row.plan.is_alone)
        if row in self.waiting_to_be_told():
            self.model.tell(row, fail=fail)
            self.write("tell", row.plan.number, fail)
            self.settle_if(row.plan.is_alone)

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

    @precondition(lambda self: len(self.model.asked) < 8 and self.model.left is None)
    @rule(what=st.sampled_from(["wait", "shutdown_requested"]))
    def ask(self, what: str) -> None:
        self.settle()
        self.model.ask(what)
        self.write("ask", what)
        self.settle()

    @precondition(lambda self: self.unanswered())
    @rule(pick=PICKS)
    def give_up(self, pick: int) -> None:
        self.settle()
        if unanswered := self.unanswered():
            number = unanswered[pick % len(unanswered)]
            self.model.give_up(number)
            self.write("give_up", number)
            self.settle()

    @precondition(lambda self: self.plans > self.youth and self.model.left is None)
    @rule(
        how=SHUTDOWNS | ENDINGS,
        timeout=st.just("grace") | st.none() | st.integers(0, 12),
    )
    def shut_down(self, how: str, timeout: int | Literal["grace"] | None) -> None:
        if how == "stop_loops":
            self.ask(how)
        elif how == "request":
            self.settle_if(False)
            self.model.request_shutdown()
            self.write("request_shutdown")
        elif how == "close":
            self.settle()
            exact = self.fractions.seconds(timeout) if isinstance(timeout, int) else timeout
            self.model.close(exact)
            self.write("ask", "close", exact)
            self.settle()
        else:
            self.leave(how)

    def leave(self, how: str) -> None:
        self.settle()
        if self.model.leaving is None or (how == "cancelled" and self.model.left is None):
            self.model.leave(how)
            self.write("leave", how)
            self.settle()

    # How it is written down

    def write(self, step: str, *args: Any, answer: Any = None) -> None:
        later = step in ("ask", "give_up", "leave")  # it begins as soon as others have their turn
        self.script.append((step, args, answer, None if later else self.model.look()))

    def advance(self, seconds: float) -> None:
        try:
            self.model.advance(seconds)
        except Tie:
            reject()
        self.write("advance_to", self.model.now)

    def settle(self) -> None:
        self.advance(MOMENT)

    def settle_if(self, needed: bool) -> None:
        """Let pass what the next step could race with."""
        if needed or self.meddled or self.model.waiting_for_room():
            self.settle()

    def unanswered(self) -> list[int]:
        asked = enumerate(self.model.asked)
        return [number for number, each in asked if each.outcome is None and not each.admitted]

    def waiting_to_be_told(self) -> list[Row]:
        rows = self.model.outstanding()
        return [row for row in rows if row.phase is Phase.RUNNING and row.at == inf and not row.cut]

    # How it is played

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
                world = World(self.setup, group)
                await group.start(world.host)
                try:
                    await self.compare(world, backend)
                except AssertionError as error:
                    failure = error
                group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def compare(self, world: World, backend: str) -> None:
        for number, (step, args, answer, expected) in enumerate(self.script):
            answered = getattr(world, step)(*args)
            if isawaitable(answered):
                answered = await answered
            where = f"on {backend}, step {number}: {step}{args}"
            assert answered == answer, where
            world.check(where)
            if expected is not None:
                assert different(world.look(), expected) == {}, where
        world.check_at_the_end()
        for row in self.model.rows:
            assert await world.result(row.plan.number) == row.result()


def different(seen: dict[Any, Any], expected: dict[Any, Any]) -> dict[Any, Any]:
    """Return what was seen and expected, where they differ."""
    both = {key: (seen.get(key), expected.get(key)) for key in seen | expected}
    return {
        key: different(*pair) if all(isinstance(each, dict) for each in pair) else pair
        for key, pair in both.items()
        if pair[0] != pair[1]
    }


def test_a_manager_keeps_to_its_model(request: pytest.FixtureRequest) -> None:
    given = request.config.getoption("--hypothesis-seed")
    number = getrandbits(64) if given is None else int(given)
    print(f"to repeat this: --hypothesis-seed={number}")
    run_state_machine_as_test(
        seed(number)(Life),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            print_blob=True,
            phases=set(HypothesisPhase) - {HypothesisPhase.explain},  # which takes minutes
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
