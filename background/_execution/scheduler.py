"""Which task may start, and when; and what happens at the end of each.

All of it is synchronous and happens in the event loop.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from itertools import count
from math import inf
from typing import Any

from tenacity.wait import wait_base

from .._errors import DuplicateTaskError, InvalidTaskError, is_fatal
from .._eventloop.backend import Backend
from .._eventloop.portal import Portal
from .._events import JobRef
from .._notify.subscriber import Listeners
from .._retry import pause_after_failures
from .._schedule import Schedule, Ticks
from .._states import TaskKind, TaskStatus
from .._support import clock
from .._task import Task
from . import emit
from .capacity import Admission
from .handle import FINAL, TaskHandle
from .outcome import Durable, Outcome
from .registry import Outstanding
from .runner import FROM_OUTSIDE, Runner
from .timer import Timer

_NO_CONTEXT = Context()


class Engine:
    """Takes tasks, starts each when it is due and there is room, and sees to its end."""

    def __init__(
        self,
        backend: Backend,
        portal: Portal,
        listeners: Listeners,
        runner: Runner,
        *,
        limit: int | None,
        capacity: int | None,
        loop_backoff: wait_base | None,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.outstanding = Outstanding()
        self.admission = Admission(self.outstanding, capacity)
        self.timer: Timer[TaskHandle[Any]] = Timer(backend.now, self._on_due, _is_waiting)
        self.event = backend.event
        self.on_loops_stopped: set[Callable[[], None]] = set()
        self.on_end: Callable[[TaskHandle[Any]], None] | None = None
        self._backend = backend
        self.now = backend.now
        self._portal = portal
        self._listeners = listeners
        self._runner = runner
        self._runner.settle = self._settle
        self._on_lost = self._lost
        self._limit = inf if limit is None else limit
        self._loop_backoff = loop_backoff
        self._on_fatal = on_fatal
        self._numbers = count(1)
        self._prefix = os.urandom(4).hex()
        self._running = 0  # one-offs that have a coroutine
        # One-offs that are due, above the limit:
        self._queue: OrderedDict[TaskHandle[Any], None] = OrderedDict()

    def add(
        self,
        task: Task[Any],
        context: Context,
        *,
        reserved: bool = False,
        job: JobRef | None = None,
        durable: Durable | None = None,
    ) -> TaskHandle[Any]:
        """Take a task, tell its observers, and let it start as soon as it may.

        `job` and `durable` come with a task that is an attempt of a durable job.

        Raises `DuplicateTaskError`, and `ManagerFullError` unless room for it is `reserved`.
        """
        if task.id is None:
            id = self._new_id()
        elif task.id in self.outstanding.handles:
            raise DuplicateTaskError(
                f"a task with the id {task.id!r} is outstanding; its handle is "
                f"manager.get({task.id!r})"
            )
        else:
            id = task.id
        if self.admission.bounded and task.kind is TaskKind.ONE_OFF and not reserved:
            self.admission.require()
        now, wall = self.now(), clock.wall()
        hooks = self._listeners.hooks
        handle: TaskHandle[Any] = TaskHandle(task, id, self, hooks, context, now, wall)
        if job is not None:
            handle.job, handle._durable = job, durable
        if task.schedule is not None:
            handle._ticks, handle._due = _first_tick(task.schedule, task.delay, now, wall)
        if task.observers:
            handle._hooks = self._listeners.hooks_for(task.observers)
        self.outstanding.add(handle)
        if handle._hooks.on_task_added:
            emit.added(handle)
        if handle.status is TaskStatus.WAITING:  # else an observer cancelled it
            self._start_when_due(handle, now)
        return handle

    def _new_id(self) -> str:
        while (id := f"{self._prefix}-{next(self._numbers)}") in self.outstanding.handles:
            pass
        return id

    def _start_when_due(self, handle: TaskHandle[Any], now: float) -> None:
        if handle._due > now:
            patience = inf if handle._ticks is None else handle._ticks.patience
            self.timer.put(min(handle._due, handle._expires, now + patience), handle)
        elif handle.task.kind is TaskKind.LOOP:
            self._start(handle, handle._context.copy())
        elif self._running < self._limit and not self._queue:
            self._running += 1
            self._start(handle, handle._context)
        else:
            self._queue[handle] = None
            if handle._expires < inf:
                self.timer.put(handle._expires, handle)

    def _on_due(self, handle: TaskHandle[Any]) -> None:
        now = self.now()
        if not _is_waiting(handle):
            return
        if now >= handle._expires:
            self._finish(handle, TaskStatus.EXPIRED)
        else:
            try:
                if handle._ticks is not None:
                    handle._due = handle._ticks.confirm(handle._due, now, clock.wall())
            except Exception as error:  # which would end the timer, and with it everybody's waiting
                self._end_loop(handle, error, 0.0)
            else:
                self._start_when_due(handle, now)

    def _start_queued(self) -> None:
        while self._queue and self._running < self._limit:
            handle, _ = self._queue.popitem(last=False)
            self._running += 1
            self._start(handle, handle._context)
            if handle._expires < inf:
                self.timer.abandon()

    def _start(self, handle: TaskHandle[Any], context: Context) -> None:
        handle._native = self._backend.spawn(
            self._run,
            handle,
            name=handle.task.name or "",
            context=context,
            on_lost=self._on_lost,
        )

    def _run(self, handle: TaskHandle[Any]) -> Coroutine[Any, Any, None]:
        handle._coroutine = coroutine = self._runner.run(handle)
        return coroutine

    def _lost(self, handle: TaskHandle[Any]) -> None:
        if _is_waiting(handle):
            self._finish(handle, TaskStatus.CANCELLED, reason=FROM_OUTSIDE)

    def _settle(self, handle: TaskHandle[Any], outcome: Outcome) -> None:
        failed = outcome.status is TaskStatus.FAILED
        if outcome.error is not None and failed:
            _remember(handle, outcome.error)
        if handle.task.kind is TaskKind.LOOP and (failed or outcome.status is TaskStatus.SUCCEEDED):
            handle._failures = handle._failures + 1 if failed else 0
            if handle._failures != handle.task.max_failures:
                self._go_on(handle, outcome)
                return
        self._finish(handle, outcome.status, outcome)

    def _go_on(self, handle: TaskHandle[Any], outcome: Outcome) -> None:
        """Let a loop wait for its next iteration, or end it if the loops have stopped."""
        handle._coroutine = handle._native = handle._pause = None
        handle.status = TaskStatus.WAITING
        emit.done(handle, outcome, final=False)
        if outcome.error is not None and is_fatal(outcome.error):
            self._on_fatal(outcome.error)
        if not _is_waiting(handle):  # an observer ended it
            return
        now = self.now()
        if handle._cancelled:
            self._finish(handle, TaskStatus.CANCELLED)
        elif now >= handle._expires:
            self._finish(handle, TaskStatus.EXPIRED)
        elif self._runner.loops_stopped:
            self._finish(handle, TaskStatus.CANCELLED, reason="stopped")
        else:
            try:
                handle._due = self._next_due(handle, outcome, now)
            except BaseException as error:
                self._end_loop(handle, error, outcome.duration)
            else:
                self._start_when_due(handle, now)

    def _end_loop(self, handle: TaskHandle[Any], error: BaseException, duration: float) -> None:
        """End a loop as failed of which nobody can tell when it should go on."""
        _remember(handle, error)
        failure = Outcome(TaskStatus.FAILED, duration, None, error)
        self._finish(handle, TaskStatus.FAILED, failure)

    def _next_due(self, handle: TaskHandle[Any], outcome: Outcome, now: float) -> float:
        if handle._ticks is not None:
            return handle._ticks.next(now, clock.wall(), outcome.duration)
        if outcome.error is None or self._loop_backoff is None:
            return now
        return now + pause_after_failures(self._loop_backoff, handle._failures, outcome.error)

    def _finish(
        self,
        handle: TaskHandle[Any],
        status: TaskStatus,
        outcome: Outcome | None = None,
        *,
        reason: str | None = None,
    ) -> None:
        task = handle.task
        handle.status = status
        handle.finished_at = clock.wall()
        handle._reason = handle._reason or reason
        self.outstanding.remove(handle)
        if self.admission.waiting:
            self.admission.changed()  # first, or else a hook could overtake those who wait
        if handle._coroutine is None:
            self._queue.pop(handle, None)
            self.timer.abandon()
        elif task.kind is TaskKind.ONE_OFF:
            self._running -= 1
        handle._coroutine = handle._native = handle._pause = None
        # Each knows the handle: a cycle for each task, and for each job another.
        durable, handle._durable = handle._durable, None
        handle._context = _NO_CONTEXT
        if outcome is not None:
            handle._result = outcome.value
        elif durable is not None:
            durable.drop(handle)
        if self.on_end is not None:
            self.on_end(handle)  # first, or else closing that a hook begins would count it
        emit.ended(handle, outcome)
        if task.observers:
            self._listeners.release(task.observers)
        if handle._done is not None:
            handle._done.set()
        error = handle.error if status is TaskStatus.FAILED else None
        if error is not None and (task.critical or is_fatal(error)):
            self._on_fatal(error)
        if self._queue:
            self._start_queued()
        self.outstanding.changed()

    def cancel_handle(self, handle: TaskHandle[Any], reason: str | None) -> bool:
        """Cancel a task, from any thread; `False` if it has ended already."""
        if handle.status in FINAL:
            return False
        return self._portal.call(partial(self._cancel, handle, reason))

    def _cancel(self, handle: TaskHandle[Any], reason: str | None) -> bool:
        if handle.status in FINAL:
            return False
        if handle._scope is None:
            self._finish(handle, TaskStatus.CANCELLED, reason=reason)
        elif not handle._cancelled:
            handle._cancelled = True
            handle._reason = reason
            handle._scope.cancel()
        return True

    def require_here(self, method: str) -> None:
        """Raise `ManagerMisuseError` in any other thread than the event loop's."""
        self._portal.require_here(method)

    def stop_loops(self) -> None:
        """Let no loop start another iteration, and cut the pauses of their retries short."""
        self._runner.loops_stopped = True
        while self.on_loops_stopped:
            self.on_loops_stopped.pop()()
        for handle in list(self.outstanding.handles.values()):
            if handle.kind is TaskKind.LOOP:
                if _is_waiting(handle):
                    self._finish(handle, TaskStatus.CANCELLED, reason="stopped")
                elif handle._pause is not None:
                    handle._pause.cancel()

    def cancel_delayed(self, reason: str) -> None:
        """Cancel the one-offs that are not due yet."""
        now = self.now()
        for handle in list(self.outstanding.handles.values()):
            if handle.kind is TaskKind.ONE_OFF and _is_waiting(handle) and handle._due > now:
                self._finish(handle, TaskStatus.CANCELLED, reason=reason)


def _first_tick(schedule: Schedule, delay: float, now: float, wall: float) -> tuple[Ticks, float]:
    try:
        ticks = schedule.ticks(now + delay, wall + delay)
        return ticks, ticks.next(now + delay, wall + delay)
    except (ArithmeticError, OSError, StopIteration, ValueError) as error:
        raise InvalidTaskError(
            f"schedule {schedule!r} has no tick after a delay of {delay:g} s"
        ) from error


def _remember(handle: TaskHandle[Any], error: BaseException) -> None:
    handle.error = error
    handle._traceback = error.__traceback__


def _is_waiting(handle: TaskHandle[Any]) -> bool:
    return handle.status is TaskStatus.WAITING
