"""Cancellation at the n-th suspension of a coroutine, or of any task of the event loop.

A scenario is run once undisturbed, which counts its suspensions, and then afresh for each of them,
in an event loop of its own and in virtual time. Afterwards nothing may be left, and what observers
were told has to agree with how the tasks and the manager ended.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine, Generator, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import product, starmap
from typing import Any, NamedTuple

import anyio
from trio._core import _run as trio_run

from background import Manager, Observer, Task, TaskAdded, TaskHandle
from background.testing import RecordingObserver, virtual_time
from support.cancellation.stepping import Step, SteppingLoop, Steps, When
from support.invariants import (
    footprint,
    handlers,
    has_asyncio,
    living,
    unheard_ends,
    untrue_fates,
    untrue_report,
)

HANGING = 80_000.0  # virtual seconds, after which a scenario is taken to hang


class How(StrEnum):
    """Who cancels a coroutine."""

    SCOPE = "by a cancel scope"
    NATIVE = "by asyncio"


class Point(NamedTuple):
    """Where to cancel the coroutine that a scenario drives, and where asyncio does so again."""

    number: int
    when: When
    how: How
    again: int = 0


@dataclass
class Outcome:
    """How a coroutine ended that was driven."""

    cancelled: bool = False
    value: Any = None
    error: BaseException | None = None


class Collector(Observer):
    """Gets hold of every handle, also of those that nobody was given."""

    def __init__(self) -> None:
        self.manager: Manager
        self.handles: dict[str, TaskHandle[Any]] = {}

    def on_task_added(self, event: TaskAdded) -> None:
        handle = self.manager.get(event.id)
        assert handle is not None
        self.handles[event.id] = handle


class World:
    """One run of a scenario: what it made, what was seen of it, and where it is cancelled."""

    def __init__(self, at: Point | Step | None = None) -> None:
        self.point = at if isinstance(at, Point) else None
        self.steps = Steps(at if isinstance(at, Step) else None)
        self.recorder = RecordingObserver()
        self.collector = Collector()
        self.problems: list[str] = []
        self.suspensions = 0  # of the coroutine that is driven
        self.injected_at: float | None = None
        self.natively = 0  # how often asyncio has cancelled it
        self.hit = ""  # the name of the task that was cancelled, if only one was
        self.host: Any = None  # the asyncio task of the coroutine that is driven
        self.cancel: dict[How, Callable[[], object]] = {}
        self.ended_at = 0.0

    @property
    def handles(self) -> dict[str, TaskHandle[Any]]:
        return self.collector.handles

    def manager(self, *observers: Observer, **options: Any) -> Manager:
        """Make the manager that is looked at afterwards."""
        watching = [self.recorder, self.collector, *observers]
        self.collector.manager = Manager(observers=watching, **options)
        return self.collector.manager

    def start(self, fn: Callable[..., Any], *args: Any, **options: Any) -> TaskHandle[Any]:
        """Submit a task that can be told from all others by its name, which is its native name."""
        name = f"{getattr(fn, '__name__', fn)} {len(self.handles)}"
        return self.collector.manager.run_task(Task(fn, args=args, name=name, **options))

    async def drive(
        self, coroutine: Coroutine[Any, Any, Any], *errors: type[BaseException]
    ) -> Outcome:
        """Await a coroutine, cancelled where this run is meant to, which may raise `errors`."""
        task = self.host = asyncio.current_task() if has_asyncio() else None
        outcome = Outcome(cancelled=True)
        try:
            with anyio.CancelScope() as scope:
                self.cancel = {How.SCOPE: scope.cancel, How.NATIVE: partial(self._natively, task)}
                outcome = Outcome(value=await Driven(self, coroutine))
        except errors as error:
            outcome = Outcome(error=error)
        except asyncio.CancelledError:
            if not self.natively:
                raise
        self.cancel = {}
        left = [task.uncancel() for _ in range(self.natively)]
        if left and left[-1]:
            self.problems.append("it took more cancellations than it was told to")
        self.ended_at = anyio.current_time()
        return outcome

    def inject(self, how: How) -> None:
        """Cancel what is driven, unless that has been done, or it has ended."""
        if self.injected_at is None and how in self.cancel:
            self.injected_at = anyio.current_time()
            self.cancel[how]()

    def _natively(self, task: asyncio.Task[Any]) -> None:
        self.natively += 1
        task.cancel()


class Driven:
    """Awaits a coroutine step by step, and cancels it at the point where its run is meant to."""

    def __init__(self, world: World, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._world = world
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        step = partial(self._coroutine.send, None)
        while True:
            try:
                awaited = step()
            except StopIteration as end:
                return end.value
            self._suspended(awaited)
            try:
                value = yield awaited
            except BaseException as error:
                step = partial(self._coroutine.throw, error)
            else:
                step = partial(self._coroutine.send, value)
            self._woken()

    def _suspended(self, awaited: Any) -> None:
        world = self._world
        world.suspensions += 1
        if world.point is None:
            return
        number, when, how, again = world.point
        if world.suspensions == again:
            world.cancel[How.NATIVE]()
        elif world.suspensions == number:
            if when is When.SUSPENDED or awaited is None:
                world.inject(how)
            elif how is How.NATIVE:
                # Called before what wakes the task, which comes later in the list of callbacks.
                awaited.add_done_callback(lambda future: world.inject(how))

    def _woken(self) -> None:
        point = self._world.point
        if point is not None and point.number == self._world.suspensions:
            self._world.inject(point.how)


Scenario = Callable[[World], Coroutine[Any, Any, None]]
Act = Callable[[World, Any, str], object]
Compare = Callable[[World, World], Iterable[str]]


async def _live(scenario: Scenario, world: World) -> None:
    before = living(), handlers()
    world.steps.active = True
    if has_asyncio():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: world.problems.append(repr(context)))
    with anyio.fail_after(HANGING):
        await scenario(world)
    await anyio.wait_all_tasks_blocked()
    world.steps.active = False
    if (living(), handlers()) != before:
        world.problems.append("tasks or signal handlers were left")
    manager, handles = world.collector.manager, world.handles.values()
    world.problems += [
        *untrue_fates(world.recorder, handles),
        *untrue_report(manager, world.recorder, handles),
        *[each async for each in unheard_ends(handles)],
    ]


def play(
    scenario: Scenario, backend: str, at: Point | Step | None = None, act: Act | None = None
) -> World:
    """Run a scenario in an event loop of its own, and look at what it leaves."""
    world = World(at)
    if act is not None:
        world.steps.act = partial(act, world)
    trio_run._r.seed(0)  # trio runs tasks in random order
    before = footprint()
    name, options = virtual_time("asyncio" if backend == "asyncio" else "trio")
    if name == "asyncio":
        options = {"loop_factory": partial(SteppingLoop, world.steps)}
    else:
        options["instruments"] = [world.steps]
    try:
        anyio.run(_live, scenario, world, backend=name, backend_options=options)
    except Exception as error:
        world.problems += traceback.format_exception(error)
    world.problems += [repr(error) for error in world.steps.errors]
    after = footprint()
    world.problems += [f"{kind} were left" for kind in before if after[kind] != before[kind]]
    return world


@dataclass
class Sweep:
    """What came of running a scenario once for each point."""

    points: int = 0
    missed: int = 0  # never reached, as threads take turns as they please
    failed: dict[Any, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.points} points tried, {self.missed} missed, {len(self.failed)} failed"


def sweep_driven(scenario: Scenario, backend: str) -> Sweep:
    """Cancel what a scenario drives at each of its suspensions; on asyncio also once more later."""
    undisturbed = play(scenario, backend)
    done = Sweep()
    hows = How if backend == "asyncio" else [How.SCOPE]
    numbers = range(1, undisturbed.suspensions + 1)
    for point in starmap(Point, product(numbers, When, hows)):
        world = _try(done, scenario, backend, point)
        if backend == "asyncio":
            for number in range(point.number + 1, world.suspensions + 1):
                _try(done, scenario, backend, point._replace(again=number))
    if undisturbed.problems:
        done.failed[None] = undisturbed.problems
    return done


def sweep_steps(scenario: Scenario, backend: str, act: Act, compare: Compare) -> Sweep:
    """Act at each suspension of each task of a scenario, and compare with when nothing happens."""
    undisturbed = play(scenario, backend)
    done = Sweep()
    for step in undisturbed.steps.reached:
        _try(done, scenario, backend, step, act, partial(compare, undisturbed))
    return done


def _try(
    done: Sweep,
    scenario: Scenario,
    backend: str,
    at: Point | Step,
    act: Act | None = None,
    compare: Callable[[World], Iterable[str]] = lambda world: (),
) -> World:
    world = play(scenario, backend, at, act)
    done.points += 1
    done.missed += world.injected_at is None and not world.steps.acted
    if problems := [*world.problems, *compare(world)]:
        done.failed[at] = problems
    return world
