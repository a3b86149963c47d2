"""A real manager, driven and observed by the state machine test."""

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

OUTCOMES = ("succeeded", "failed", "cancelled", "expired", "not_started", "stuck")
FIELDS = {  # the fields of an event besides the task's identity
    "added": ("delay",),
    "started": ("queued_for",),
    "retrying": ("error", "delay"),
    "succeeded": ("duration", "final"),
    "failed": ("error", "duration", "final"),
    "cancelled": ("reason", "duration"),
    "expired": ("lifespan", "duration"),
}


ENDS = (TaskCancelled, TaskExpired)  # besides events with `final=True`


class LeaveBlock(Exception):
    """Leaves the block with an error."""


def policy(attempts: int | None, backoff: float) -> AsyncRetrying | None:
    if attempts is None:
        return None
    return AsyncRetrying(stop=stop_after_attempt(attempts), wait=wait_fixed(backoff))


class Reaction(Observer):
    """Cancels the task or shuts the manager down on a certain event."""

    def __init__(self, manager: Manager, event: str, act: str) -> None:
        self._manager = manager
        self._act = act
        setattr(self, f"on_task_{event}", self._react)

    def _react(self, event: TaskEvent) -> None:
        if self._act == "cancel":
            self._manager.cancel(event.id, reason="reaction")
        else:
            self._manager.request_shutdown()


class System:
    """A manager in virtual time. The methods between `host` and `snapshot` are steps."""

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
        self._calls: list[str | None] = []
        self._scopes: list[anyio.CancelScope] = []
        self._events: dict[int, list[Any]] = {0: []}  # by task; 0 for the manager's own
        self._read = 0
        self._group = group
        self._began = anyio.current_time()
        self._block = anyio.CancelScope()
        self._leave = anyio.Event()
        self._how = ""
        self._left: str | None = None

    async def host(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Enter the manager's block and stay in it until `leave()` is called."""
        left = "cancelled"
        try:
            with self._block:
                async with self.manager:
                    task_status.started()
                    await self._leave.wait()
                    if self._how == "error":
                        raise LeaveBlock
                left = "returned"
        except LeaveBlock:
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

    def release(self, number: int, fail: bool) -> None:
        self._functions[number].fails = fail
        self._functions[number].released.set()

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

    def call(self, method: str, *args: Any) -> None:
        """Start a task that awaits a method of the manager."""
        self._calls.append(None)
        self._scopes.append(anyio.CancelScope())
        self._group.start_soon(self._call, len(self._calls) - 1, method, *args)

    def give_up(self, number: int) -> None:
        """Cancel the task that awaits the method."""
        self._scopes[number].cancel()

    async def advance_to(self, time: float) -> None:
        await anyio.sleep_until(self._began + time)

    async def _call(self, number: int, method: str, *args: Any) -> None:
        outcome = "given up"
        with self._scopes[number]:
            outcome = await self._outcome(method, *args)
        self._calls[number] = outcome

    async def _outcome(self, method: str, *args: Any) -> str:
        if method == "submit":
            try:
                self.handles[args[0].number] = await self.manager.submit(self._task(*args))
            except BackgroundError as error:
                return type(error).__name__
            return "added"
        if method == "close":
            self.reports.append(await self.manager.close(timeout=args[0]))
        else:
            await getattr(self.manager, method)()
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
            observers=() if plan.reaction is None else (Reaction(self.manager, *plan.reaction),),
        )

    def snapshot(self) -> dict[str, Any]:
        manager, health = self.manager, self.manager.health()
        self._read_events()
        return {
            "state": manager.state.value,
            "counts": [manager.count(), *map(manager.count, TaskKind)],
            "tasks": [_number(handle) for handle in manager.tasks()],
            "loops": [_number(handle) for handle in manager.tasks(TaskKind.LOOP)],
            "found": [_number(manager.get(handle.id)) for handle in manager.tasks()],
            "health": [health.waiting, health.running, health.retrying, health.loops, health.ok],
            "handles": {number: _attributes(handle) for number, handle in self.handles.items()},
            "events": self._events,
            "calls": self._calls,
            "left": self._left,
        }

    def _read_events(self) -> None:
        names, events = self.recorder.names(), self.recorder.events
        for name, event in zip(names[self._read :], events[self._read :], strict=True):
            match event:
                case ManagerClosing():
                    self._add_event(0, name, event, event.outstanding)
                case ManagerClosed():
                    self._add_event(0, name, event, by_outcome(event.report))
                case _:
                    counts = event.iteration, event.attempt
                    fields = (plain(getattr(event, field)) for field in FIELDS[name])
                    self._add_event(event.meta["number"], name, event, *counts, *fields)
        self._read = len(events)

    def _add_event(self, number: int, name: str, event: Any, *details: object) -> None:
        self._events.setdefault(number, []).append((name, plain(event.time), *details))

    def check(self, where: str) -> None:
        """Check the invariants that hold at any time."""
        one_offs = self.manager.tasks(TaskKind.ONE_OFF)
        busy = [handle for handle in one_offs if handle.status is not TaskStatus.WAITING]
        assert len(busy) <= (self._setup.limit or inf), where
        assert len(one_offs) <= (self._setup.capacity or inf), where

    def check_end(self) -> None:
        """Check the invariants after the block was left and every task has ended."""
        ends = {number: [] for number in self.handles}
        for place, event in enumerate(self.recorder.events):
            if isinstance(event, ManagerClosed):
                closed, report = place, event.report
            elif isinstance(event, ENDS) or getattr(event, "final", False):
                ends[event.meta["number"]].append(place)
        assert all(len(places) == 1 for places in ends.values())
        assert all(returned is report for returned in self.reports)
        numbers = [by_outcome(report).get(name, []) for name in OUTCOMES if name != "stuck"]
        assert all(ends[number] < [closed] for number in chain(*numbers))

    async def result(self, number: int) -> object:
        """Return the result of awaiting a task."""
        try:
            return await self.handles[number]
        except TaskCancelledError as error:
            return "TaskCancelledError", error.reason
        except (TaskExpiredError, TimeoutError, ValueError) as error:
            return plain(error)


def by_outcome(report: CloseReport) -> dict[str, list[int]]:
    """Return the numbers of the tasks in a report by outcome, without empty outcomes."""
    numbers = {name: sorted(map(_number, getattr(report, name))) for name in OUTCOMES}
    return {name: found for name, found in numbers.items() if found}


def _number(handle: TaskHandle[Any] | None) -> int | None:
    return handle and handle.meta["number"]


def _attributes(handle: TaskHandle[Any]) -> tuple[Any, ...]:
    times = (handle.submitted_at, handle.started_at, handle.finished_at)
    attributes = (handle.status.value, handle.attempt, handle.iteration, handle.error, *times)
    return tuple(map(plain, attributes))
