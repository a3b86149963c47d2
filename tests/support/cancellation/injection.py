"""Cancellation at the n-th suspension of a coroutine, or of any task of the event loop.

A scenario runs once undisturbed, to count its suspensions, and then once for each of them, in a
separate event loop in virtual time. After each run, no resource may have leaked, and the recorded
events have to agree with how the tasks and the manager ended.
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
    count_tasks,
    has_asyncio,
    process_resources,
    report_violations,
    signal_handlers,
    task_violations,
    unnotified_waiters,
)

HANGING = 80_000.0  # virtual seconds until a scenario counts as hanging


class How(StrEnum):
    """How a coroutine is cancelled."""

    SCOPE = "by a cancel scope"
    NATIVE = "by asyncio"


class Point(NamedTuple):
    """A suspension of the driven coroutine to cancel it at, and one to cancel it natively again."""

    number: int
    when: When
    how: How
    again: int = 0


@dataclass
class Outcome:
    """How a driven coroutine ended."""

    cancelled: bool = False
    value: Any = None
    error: BaseException | None = None


class Collector(Observer):
    """Collects the handle of every task."""

    def __init__(self) -> None:
        self.manager: Manager
        self.handles: dict[str, TaskHandle[Any]] = {}

    def on_task_added(self, event: TaskAdded) -> None:
        handle = self.manager.get(event.id)
        assert handle is not None
        self.handles[event.id] = handle


class InjectedRun:
    """One run of a scenario: its manager and tasks, its events, and the point to cancel it at."""

    def __init__(self, at: Point | Step | None = None) -> None:
        self.point = at if isinstance(at, Point) else None
        self.steps = Steps(at if isinstance(at, Step) else None)
        self.recorder = RecordingObserver()
        self.collector = Collector()
        self.problems: list[str] = []
        self.suspensions = 0  # of the driven coroutine
        self.injected_at: float | None = None
        self.natively = 0  # number of native cancellations so far
        self.hit = ""  # name of the cancelled task, if a single one was cancelled
        self.host: Any = None  # the asyncio task of the driven coroutine
        self.cancel: dict[How, Callable[[], object]] = {}
        self.ended_at = 0.0

    @property
    def handles(self) -> dict[str, TaskHandle[Any]]:
        return self.collector.handles

    def manager(self, *observers: Observer, **options: Any) -> Manager:
        """Make the manager that is checked after the run."""
        all_observers = [self.recorder, self.collector, *observers]
        self.collector.manager = Manager(observers=all_observers, **options)
        return self.collector.manager

    def start(self, fn: Callable[..., Any], *args: Any, **options: Any) -> TaskHandle[Any]:
        """Submit a task with a unique name, which is also its native name."""
        name = f"{getattr(fn, '__name__', fn)} {len(self.handles)}"
        return self.collector.manager.run_task(Task(fn, args=args, name=name, **options))

    async def drive(
        self, coroutine: Coroutine[Any, Any, Any], *errors: type[BaseException]
    ) -> Outcome:
        """Await a coroutine, which may raise `errors`, and cancel it at the point of this run."""
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
        remaining = [task.uncancel() for _ in range(self.natively)]
        if remaining and remaining[-1]:
            self.problems.append("the task received more cancellations than were injected")
        self.ended_at = anyio.current_time()
        return outcome

    def inject(self, how: How) -> None:
        """Cancel the driven coroutine, unless it was cancelled before or has ended."""
        if self.injected_at is None and how in self.cancel:
            self.injected_at = anyio.current_time()
            self.cancel[how]()

    def _natively(self, task: asyncio.Task[Any]) -> None:
        self.natively += 1
        task.cancel()


class Driven:
    """Awaits a coroutine step by step, and cancels it at the point of its run."""

    def __init__(self, run: InjectedRun, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._run = run
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
        run = self._run
        run.suspensions += 1
        if run.point is None:
            return
        number, when, how, again = run.point
        if run.suspensions == again:
            run.cancel[How.NATIVE]()
        elif run.suspensions == number:
            if when is When.SUSPENDED or awaited is None:
                run.inject(how)
            elif how is How.NATIVE:
                # Runs before the callback that wakes the task, which is added later.
                awaited.add_done_callback(lambda future: run.inject(how))

    def _woken(self) -> None:
        point = self._run.point
        if point is not None and point.number == self._run.suspensions:
            self._run.inject(point.how)


Scenario = Callable[[InjectedRun], Coroutine[Any, Any, None]]
Act = Callable[[InjectedRun, Any, str], object]
Compare = Callable[[InjectedRun, InjectedRun], Iterable[str]]


async def _run_and_check(scenario: Scenario, run: InjectedRun) -> None:
    before = count_tasks(), signal_handlers()
    run.steps.active = True
    if has_asyncio():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: run.problems.append(repr(context)))
    with anyio.fail_after(HANGING):
        await scenario(run)
    await anyio.wait_all_tasks_blocked()
    run.steps.active = False
    if (count_tasks(), signal_handlers()) != before:
        run.problems.append("tasks or signal handlers leaked")
    manager, handles = run.collector.manager, run.handles.values()
    run.problems += [
        *task_violations(run.recorder, handles),
        *report_violations(manager, run.recorder, handles),
        *[problem async for problem in unnotified_waiters(handles)],
    ]


def play(
    scenario: Scenario, backend: str, at: Point | Step | None = None, act: Act | None = None
) -> InjectedRun:
    """Run a scenario in a separate event loop, and check what it leaves behind."""
    run = InjectedRun(at)
    if act is not None:
        run.steps.act = partial(act, run)
    trio_run._r.seed(0)  # trio runs tasks in random order
    before = process_resources()
    name, options = virtual_time("asyncio" if backend == "asyncio" else "trio")
    if name == "asyncio":
        options = {"loop_factory": partial(SteppingLoop, run.steps)}
    else:
        options["instruments"] = [run.steps]
    try:
        anyio.run(_run_and_check, scenario, run, backend=name, backend_options=options)
    except Exception as error:
        run.problems += traceback.format_exception(error)
    run.problems += [repr(error) for error in run.steps.errors]
    after = process_resources()
    run.problems += [f"{kind} leaked" for kind in before if after[kind] != before[kind]]
    return run


@dataclass
class Sweep:
    """Results of running a scenario once for each point."""

    points: int = 0
    missed: int = 0  # never reached: the order of threads differs from run to run
    failed: dict[Any, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.points} points tried, {self.missed} missed, {len(self.failed)} failed"


def sweep_driven(scenario: Scenario, backend: str) -> Sweep:
    """Cancel the driven coroutine at each of its suspensions; on asyncio also a second time."""
    undisturbed = play(scenario, backend)
    result = Sweep()
    hows = How if backend == "asyncio" else [How.SCOPE]
    numbers = range(1, undisturbed.suspensions + 1)
    for point in starmap(Point, product(numbers, When, hows)):
        run = _try(result, scenario, backend, point)
        if backend == "asyncio":
            for number in range(point.number + 1, run.suspensions + 1):
                _try(result, scenario, backend, point._replace(again=number))
    if undisturbed.problems:
        result.failed[None] = undisturbed.problems
    return result


def sweep_steps(scenario: Scenario, backend: str, act: Act, compare: Compare) -> Sweep:
    """Act at each suspension of each task of a scenario, and compare with the undisturbed run."""
    undisturbed = play(scenario, backend)
    result = Sweep()
    for step in undisturbed.steps.reached:
        _try(result, scenario, backend, step, act, partial(compare, undisturbed))
    return result


def _try(
    result: Sweep,
    scenario: Scenario,
    backend: str,
    at: Point | Step,
    act: Act | None = None,
    compare: Callable[[InjectedRun], Iterable[str]] = lambda run: (),
) -> InjectedRun:
    run = play(scenario, backend, at, act)
    result.points += 1
    result.missed += run.injected_at is None and not run.steps.acted
    if problems := [*run.problems, *compare(run)]:
        result.failed[at] = problems
    return run
