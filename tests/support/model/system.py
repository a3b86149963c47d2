"""A real manager, everything that the state machine test does to it, and what is seen of it."""

from __future__ import annotations

from itertools import chain
from math import inf
from typing import Any

import anyio
import anyio.abc
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from background import (
    BackgroundError,
    CloseReport,
    Manager,
    ManagerClosed,
    ManagerClosing,
    Observer,
    Task,
    TaskCancelled,
    TaskCancelledError,
    TaskEvent,
    TaskExpired,
    TaskExpiredError,
    TaskHandle,
    TaskKind,
    TaskStatus,
    every,
)
from background.testing import RecordingObserver
from support.model.plans import Function, Plan, Setup
from support.model.rows import plain

FATES = ("succeeded", "failed", "cancelled", "expired", "not_started", "stuck")
ABOUT = {  # what an event says beside the task's identity
    "added": ("delay",),
    "started": ("queued_for",),
    "retrying": ("error", "delay"),
    "succeeded": ("duration", "final"),
    "failed": ("error", "duration", "final"),
    "cancelled": ("reason", "duration"),
    "expired": ("lifespan", "duration"),
}


ENDS = (TaskCancelled, TaskExpired)  # beside what says that it is final


class Left(Exception):
    """Ends the block."""


def policy(attempts: int | None, backoff: float) -> AsyncRetrying | None:
    if attempts is None:
        return None
    return AsyncRetrying(stop=stop_after_attempt(attempts), wait=wait_fixed(backoff))


class Meddler(Observer):
    """Cancels the task that it is told of, or shuts the manager down, at one of the events."""

    def __init__(self, manager: Manager, event: str, act: str) -> None:
        self._manager = manager
        self._act = act
        setattr(self, f"on_task_{event}", self._meddle)

    def _meddle(self, event: TaskEvent) -> None:
        if self._act == "cancel":
            self._manager.cancel(event.id, reason="meddled")
        else:
            self._manager.request_shutdown()


class World:
    """A manager in virtual time. Each method but `host` and those below `look` is a step."""

    def __init__(self, setup: Setup, group: anyio.abc.TaskGroup) -> None:
        self._setup = setup
        self.recorder = RecordingObserver()
        self.manager = Manager(
            observers=[self.recorder],
            limit=setup.limit,
            capacity=setup.capacity,
            retry=policy(setup.attempts, setup.backoff),
            loop_backoff=wait_fixed(setup.loop_backoff),
            grace=setup.grace,
            cancel_timeout=setup.cancel_timeout,
        )
        self.handles: dict[int, TaskHandle[Any]] = {}
        self.reports: list[CloseReport] = []
        self._functions: dict[int, Function] = {}
        self._asked: list[str | None] = []
        self._scopes: list[anyio.CancelScope] = []
        self._events: dict[int, list[Any]] = {0: []}  # by task, and the manager's own
        self._read = 0
        self._group = group
        self._began = anyio.current_time()
        self._block = anyio.CancelScope()
        self._leave = anyio.Event()
        self._how = ""
        self._left: str | None = None

    async def host(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Enter the manager's block and stay in it until the block is to be left."""
        left = "cancelled"
        try:
            with self._block:
                async with self.manager:
                    task_status.started()
                    await self._leave.wait()
                    if self._how == "error":
                        raise Left
                left = "returned"
        except Left:
            left = "error"
        except ExceptionGroup:
            left = "group"
        self._left = left

    def run_task(self, plan: Plan) -> str:
        try:
            self.handles[plan.number] = self.manager.run_task(self._task(plan))
        except BackgroundError as error:
            return type(error).__name__
        return "added"

    def tell(self, number: int, fail: bool) -> None:
        self._functions[number].fails = fail
        self._functions[number].told.set()

    def cancel(self, number: int, reason: str | None) -> bool:
        return self.handles[number].cancel(reason)

    def cancel_by_id(self, number: int, reason: str | None) -> bool:
        return self.manager.cancel(self.handles[number].id, reason=reason)

    def request_shutdown(self) -> None:
        self.manager.request_shutdown()

    def leave(self, how: str) -> None:
        self._how = how
        if how == "cancelled":
            self._block.cancel()
        self._leave.set()

    def ask(self, what: str, *args: Any) -> None:
        """Await one of the manager's methods, in a task of its own."""
        self._asked.append(None)
        self._scopes.append(anyio.CancelScope())
        self._group.start_soon(self._ask, len(self._asked) - 1, what, *args)

    def give_up(self, number: int) -> None:
        """Cancel the task that awaits it."""
        self._scopes[number].cancel()

    async def advance_to(self, time: float) -> None:
        await anyio.sleep_until(self._began + time)

    async def _ask(self, number: int, what: str, *args: Any) -> None:
        outcome = "given up"
        with self._scopes[number]:
            outcome = await self._outcome(what, *args)
        self._asked[number] = outcome

    async def _outcome(self, what: str, *args: Any) -> str:
        if what == "submit":
            try:
                self.handles[args[0].number] = await self.manager.submit(self._task(*args))
            except BackgroundError as error:
                return type(error).__name__
            return "added"
        if what == "close":
            self.reports.append(await self.manager.close(timeout=args[0]))
        else:
            await getattr(self.manager, what)()
        return "done"

    def _task(self, plan: Plan) -> Task[int]:
        self._functions[plan.number] = function = Function(plan, self.manager)
        return Task(
            function,
            kind=plan.kind,
            schedule=every(plan.interval) if plan.interval else None,
            delay=plan.delay,
            timeout=plan.timeout,
            lifespan=plan.lifespan,
            retry=policy(plan.attempts, plan.backoff),
            id=plan.id,
            name=f"task {plan.number}",
            meta={"number": plan.number},
            critical=plan.critical,
            max_failures=plan.max_failures,
            observers=() if plan.meddling is None else (Meddler(self.manager, *plan.meddling),),
        )

    def look(self) -> dict[str, Any]:
        manager, health = self.manager, self.manager.health()
        self._read_events()
        return {
            "state": manager.state.value,
            "counts": [manager.count(), *map(manager.count, TaskKind)],
            "tasks": [_number(handle) for handle in manager.tasks()],
            "loops": [_number(handle) for handle in manager.tasks(TaskKind.LOOP)],
            "found": [_number(manager.get(handle.id)) for handle in manager.tasks()],
            "health": [health.waiting, health.running, health.retrying, health.loops, health.ok],
            "handles": {number: _seen(handle) for number, handle in self.handles.items()},
            "events": self._events,
            "asked": self._asked,
            "left": self._left,
        }

    def _read_events(self) -> None:
        names, events = self.recorder.names(), self.recorder.events
        for name, event in zip(names[self._read :], events[self._read :], strict=True):
            match event:
                case ManagerClosing():
                    self._note(0, name, event, event.outstanding)
                case ManagerClosed():
                    self._note(0, name, event, fates(event.report))
                case _:
                    counts = event.iteration, event.attempt
                    about = (plain(getattr(event, each)) for each in ABOUT[name])
                    self._note(event.meta["number"], name, event, *counts, *about)
        self._read = len(events)

    def _note(self, number: int, name: str, event: Any, *about: object) -> None:
        self._events.setdefault(number, []).append((name, plain(event.time), *about))

    def check(self, where: str) -> None:
        """Check what holds at any time, whatever the model says."""
        one_offs = self.manager.tasks(TaskKind.ONE_OFF)
        busy = [handle for handle in one_offs if handle.status is not TaskStatus.WAITING]
        assert len(busy) <= (self._setup.limit or inf), where
        assert len(one_offs) <= (self._setup.capacity or inf), where

    def check_at_the_end(self) -> None:
        """Check what holds when the block has been left and every task has ended."""
        ends = {number: [] for number in self.handles}
        for place, event in enumerate(self.recorder.events):
            if isinstance(event, ManagerClosed):
                closed, report = place, event.report
            elif isinstance(event, ENDS) or getattr(event, "final", False):
                ends[event.meta["number"]].append(place)
        assert all(len(places) == 1 for places in ends.values())
        assert all(each is report for each in self.reports)
        numbers = [fates(report).get(name, []) for name in FATES if name != "stuck"]
        assert all(ends[number] < [closed] for number in chain(*numbers))

    async def result(self, number: int) -> object:
        """Return what awaiting a task comes to."""
        try:
            return await self.handles[number]
        except TaskCancelledError as error:
            return "TaskCancelledError", error.reason
        except (TaskExpiredError, TimeoutError, ValueError) as error:
            return plain(error)


def fates(report: CloseReport) -> dict[str, list[int]]:
    """The numbers of the tasks in a report, by fate; without the fates that nobody met."""
    found = {fate: sorted(map(_number, getattr(report, fate))) for fate in FATES}
    return {fate: numbers for fate, numbers in found.items() if numbers}


def _number(handle: TaskHandle[Any] | None) -> int | None:
    return handle and handle.meta["number"]


def _seen(handle: TaskHandle[Any]) -> tuple[Any, ...]:
    times = (handle.submitted_at, handle.started_at, handle.finished_at)
    about = (handle.status.value, handle.attempt, handle.iteration, handle.error, *times)
    return tuple(map(plain, about))
