"""What the state machine test submits, and to what kind of manager, as drawn by hypothesis."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from random import Random
from typing import TypeVar

import anyio
from hypothesis import strategies as st

from background import Manager, TaskKind

D = TypeVar("D", "Plan", "Setup")


class WhenCut(Enum):
    """What a function does in the end when it is cancelled."""

    PASSES = auto()
    RETURNS = auto()
    RAISES = auto()


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How the manager is made; `None` stands for no limit."""

    limit: int | None
    capacity: int | None
    attempts: int
    backoff: float
    loop_backoff: float
    grace: float | None
    cancel_timeout: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A task: what its function does each time that it is called, and its options."""

    kind: TaskKind
    seconds: float | None  # None: until it is told to end
    fails: tuple[bool, ...]  # which calls fail, over and over
    cleanup: float  # seconds that it takes to end once it is cut short
    when_cut: WhenCut
    id: str | None
    delay: float
    lifespan: float | None
    timeout: float | None
    attempts: int | None  # None: the manager's policy
    backoff: float
    interval: float | None = None
    max_failures: int | None = None
    critical: bool = False
    asks: str | None = None  # which of the manager's methods each call awaits in the end
    meddling: tuple[str, str] | None = None  # at which event an observer does what
    number: int = 0

    @property
    def shuts_down(self) -> bool:
        """Whether an observer of its shuts the manager down."""
        return self.meddling is not None and self.meddling[1] == "shut down"

    @property
    def is_alone(self) -> bool:
        """Whether the end of a call touches other tasks."""
        return self.critical or self.asks is not None


class Function:
    """What a task runs."""

    def __init__(self, plan: Plan, manager: Manager) -> None:
        self.plan = plan
        self.manager = manager
        self.calls = 0
        self.told = anyio.Event()
        self.fails = False

    async def __call__(self) -> int:
        plan = self.plan
        fails = plan.fails[self.calls % len(plan.fails)]
        self.calls += 1
        try:
            if plan.seconds is None:
                self.told = anyio.Event()
                await self.told.wait()
                fails = self.fails
            elif plan.seconds:
                await anyio.sleep(plan.seconds)
            if plan.asks is not None:
                await getattr(self.manager, plan.asks)()
        except anyio.get_cancelled_exc_class():
            if plan.cleanup:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(plan.cleanup)
            if plan.when_cut is WhenCut.PASSES:
                raise
            fails = plan.when_cut is WhenCut.RAISES
        if fails:
            raise ValueError
        return plan.number


class Fractions:
    """Turns drawn numbers into seconds of which no two, nor their sums, are alike.

    What is due at the same time has no order, and a model of it would have to allow anything.
    """

    def __init__(self) -> None:
        self._random = Random(0)

    def seconds(self, drawn: int) -> float:
        return drawn and drawn - self._random.random()

    def of(self, drawn: D) -> D:
        """Return a plan or a setup with its whole numbers of seconds made unique."""
        names = {"seconds", "cleanup", "delay", "lifespan", "timeout", "backoff", "interval"}
        names |= {"loop_backoff", "grace", "cancel_timeout"}
        given = {name: value for name, value in vars(drawn).items() if name in names and value}
        exact = {name: self.seconds(value) for name, value in given.items()}
        if "lifespan" in exact:  # counts from the submission, and has to be longer than the delay
            exact["lifespan"] += exact.get("delay", 0)
        return replace(drawn, **exact)


def _up_to(most: int, *, least: int = 0) -> st.SearchStrategy[int]:
    return st.integers(least, most)


def _mostly(most: int, *, least: int) -> st.SearchStrategy[int | None]:
    return st.one_of(_up_to(most, least=least), _up_to(most, least=least), st.none())


def _perhaps(most: int, *, least: int = 1) -> st.SearchStrategy[int | None]:
    return st.none() | _up_to(most, least=least)


SETUPS = st.builds(
    Setup,
    limit=_mostly(2, least=1),
    capacity=_perhaps(4, least=2),
    attempts=_up_to(3, least=1),
    backoff=_up_to(4),
    loop_backoff=_up_to(4, least=2),
    grace=_mostly(12, least=1),
    cancel_timeout=_up_to(6),
)

_TOLD = ("added", "started", "retrying", "succeeded", "failed", "cancelled", "expired")
_cancels = st.tuples(st.sampled_from(_TOLD[:5]), st.just("cancel"))
_shuts_down = st.tuples(st.sampled_from(_TOLD), st.just("shut down"))

_asks = st.sampled_from([None] * 27 + ["wait", "stop_loops", "close"])

_common = {
    "fails": st.lists(st.booleans(), min_size=1, max_size=4).map(tuple),
    "cleanup": st.just(0) | _up_to(8),
    "when_cut": st.sampled_from(WhenCut),
    "id": st.sampled_from([None] * 8 + ["a", "b"]),
    "delay": st.just(0) | _up_to(8),
    "lifespan": _perhaps(20),
    "timeout": st.none() | _perhaps(6),
    "attempts": _perhaps(3),
    "backoff": _up_to(4),
}


def _tame(plan: Plan) -> Plan:
    """Let a task that touches others do so only at a time of its own."""
    if not plan.is_alone:
        return plan
    seconds = 1 if plan.seconds == 0 else plan.seconds
    when_cut = WhenCut.PASSES if plan.critical else plan.when_cut
    return replace(plan, seconds=seconds, when_cut=when_cut)


ONE_OFFS = st.builds(
    Plan,
    kind=st.just(TaskKind.ONE_OFF),
    seconds=_mostly(8, least=0),
    critical=st.sampled_from([False] * 9 + [True]),
    asks=_asks,
    meddling=st.one_of(*[st.none()] * 18, _cancels, _shuts_down),
    **_common,
).map(_tame)

_endless = st.builds(
    Plan,
    kind=st.just(TaskKind.LOOP),
    seconds=_mostly(6, least=2),  # one that takes no time would never let time pass
    max_failures=_perhaps(3),
    asks=_asks,
    meddling=st.one_of(*[st.none()] * 9, _cancels),
    **_common,
).map(_tame)

_scheduled = st.builds(
    Plan,
    kind=st.just(TaskKind.LOOP),
    seconds=_mostly(6, least=0),
    interval=_up_to(7, least=2),
    max_failures=_perhaps(3),
    asks=_asks,
    meddling=st.one_of(*[st.none()] * 4, _cancels),
    **_common,
).map(_tame)

LOOPS = _endless | _scheduled
