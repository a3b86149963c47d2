"""Hypothesis strategies for the tasks and managers of the state machine test."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from random import Random
from typing import TypeVar

import anyio
from hypothesis import strategies as st

from background import Manager, TaskKind

D = TypeVar("D", "Plan", "Setup")


class OnCancel(Enum):
    """What a function does when it is cancelled, after its cleanup."""

    PROPAGATES = auto()
    RETURNS = auto()
    RAISES = auto()


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The options of the manager; `None` means no limit."""

    limit: int | None
    capacity: int | None
    attempts: int
    backoff: float
    loop_backoff: float
    grace: float | None
    cancel_timeout: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The options of a task, and the behaviour of its function."""

    kind: TaskKind
    seconds: float | None  # duration of a call; None: until it is released
    fails: tuple[bool, ...]  # which calls fail, repeated in a cycle
    cleanup: float  # seconds of cleanup when a call is cancelled
    on_cancel: OnCancel
    id: str | None
    delay: float
    lifespan: float | None
    timeout: float | None
    attempts: int | None  # None: the manager's retry policy
    backoff: float
    interval: float | None = None
    max_failures: int | None = None
    critical: bool = False
    awaits: str | None = None  # a method of the manager that a call awaits at its end
    reaction: tuple[str, str] | None = None  # an event and the action of an observer on it
    number: int = 0

    @property
    def shuts_down(self) -> bool:
        """Whether an observer of the task shuts the manager down."""
        return self.reaction is not None and self.reaction[1] == "shut down"

    @property
    def affects_others(self) -> bool:
        """Whether the end of a call affects other tasks."""
        return self.critical or self.awaits is not None


class Function:
    """The function of a task."""

    def __init__(self, plan: Plan, manager: Manager) -> None:
        self.plan = plan
        self.manager = manager
        self.calls = 0
        self.released = anyio.Event()
        self.fails = False

    async def __call__(self) -> int:
        plan = self.plan
        fails = plan.fails[self.calls % len(plan.fails)]
        self.calls += 1
        try:
            if plan.seconds is None:
                self.released = anyio.Event()
                await self.released.wait()
                fails = self.fails
            elif plan.seconds:
                await anyio.sleep(plan.seconds)
            if plan.awaits is not None:
                await getattr(self.manager, plan.awaits)()
        except anyio.get_cancelled_exc_class():
            if plan.cleanup:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(plan.cleanup)
            if plan.on_cancel is OnCancel.PROPAGATES:
                raise
            fails = plan.on_cancel is OnCancel.RAISES
        if fails:
            raise ValueError
        return plan.number


class Fractions:
    """Turns drawn whole seconds into unique times, whose sums are unique, too.

    Events that are due at the same time have no defined order, so a model could not predict it.
    """

    def __init__(self) -> None:
        self._random = Random(0)

    def seconds(self, drawn: int) -> float:
        return drawn and drawn - self._random.random()

    def make_unique(self, drawn: D) -> D:
        """Return a plan or a setup with unique times."""
        names = {"seconds", "cleanup", "delay", "lifespan", "timeout", "backoff", "interval"}
        names |= {"loop_backoff", "grace", "cancel_timeout"}
        whole = {name: value for name, value in vars(drawn).items() if name in names and value}
        exact = {name: self.seconds(value) for name, value in whole.items()}
        if "lifespan" in exact:  # starts at the submission, and must be longer than the delay
            exact["lifespan"] += exact.get("delay", 0)
        return replace(drawn, **exact)


def _up_to(maximum: int, *, minimum: int = 0) -> st.SearchStrategy[int]:
    return st.integers(minimum, maximum)


def _mostly(maximum: int, *, minimum: int) -> st.SearchStrategy[int | None]:
    return st.one_of(_up_to(maximum, minimum=minimum), _up_to(maximum, minimum=minimum), st.none())


def _perhaps(maximum: int, *, minimum: int = 1) -> st.SearchStrategy[int | None]:
    return st.none() | _up_to(maximum, minimum=minimum)


SETUPS = st.builds(
    Setup,
    limit=_mostly(2, minimum=1),
    capacity=_perhaps(4, minimum=2),
    attempts=_up_to(3, minimum=1),
    backoff=_up_to(4),
    loop_backoff=_up_to(4, minimum=2),
    grace=_mostly(12, minimum=1),
    cancel_timeout=_up_to(6),
)

_EVENTS = ("added", "started", "retrying", "succeeded", "failed", "cancelled", "expired")
_cancels = st.tuples(st.sampled_from(_EVENTS[:5]), st.just("cancel"))
_shuts_down = st.tuples(st.sampled_from(_EVENTS), st.just("shut down"))

_awaits = st.sampled_from([None] * 27 + ["wait", "stop_loops", "close"])

_common = {
    "fails": st.lists(st.booleans(), min_size=1, max_size=4).map(tuple),
    "cleanup": st.just(0) | _up_to(8),
    "on_cancel": st.sampled_from(OnCancel),
    "id": st.sampled_from([None] * 8 + ["a", "b"]),
    "delay": st.just(0) | _up_to(8),
    "lifespan": _perhaps(20),
    "timeout": st.none() | _perhaps(6),
    "attempts": _perhaps(3),
    "backoff": _up_to(4),
}


def _separate(plan: Plan) -> Plan:
    """Avoid coincidences with other events for a task that affects others."""
    if not plan.affects_others:
        return plan
    seconds = 1 if plan.seconds == 0 else plan.seconds
    on_cancel = OnCancel.PROPAGATES if plan.critical else plan.on_cancel
    return replace(plan, seconds=seconds, on_cancel=on_cancel)


ONE_OFFS = st.builds(
    Plan,
    kind=st.just(TaskKind.ONE_OFF),
    seconds=_mostly(8, minimum=0),
    critical=st.sampled_from([False] * 9 + [True]),
    awaits=_awaits,
    reaction=st.one_of(*[st.none()] * 18, _cancels, _shuts_down),
    **_common,
).map(_separate)

_endless = st.builds(
    Plan,
    kind=st.just(TaskKind.LOOP),
    seconds=_mostly(6, minimum=2),  # iterations without a duration would never let time pass
    max_failures=_perhaps(3),
    awaits=_awaits,
    reaction=st.one_of(*[st.none()] * 9, _cancels),
    **_common,
).map(_separate)

_scheduled = st.builds(
    Plan,
    kind=st.just(TaskKind.LOOP),
    seconds=_mostly(6, minimum=0),
    interval=_up_to(7, minimum=2),
    max_failures=_perhaps(3),
    awaits=_awaits,
    reaction=st.one_of(*[st.none()] * 4, _cancels),
    **_common,
).map(_separate)

LOOPS = _endless | _scheduled
