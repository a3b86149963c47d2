"""The start and the end of tasks.

All functions are synchronous. They run in the event loop, except for `Scheduler.cancel`.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from itertools import count
from math import inf, isfinite
from traceback import FrameSummary
from typing import Any

from tenacity.wait import wait_base

from .._config import ManagerConfig
from .._errors import DuplicateTaskError, InvalidTaskError, ManagerClosedError, is_fatal
from .._eventloop.backend import Backend
from .._eventloop.portal import Portal
from .._events import JobRef
from .._notify.dispatcher import Dispatcher
from .._retry import make_policy, pause_after_failures
from .._schedule import Schedule, Ticks
from .._states import FINAL, TaskKind, TaskStatus
from .._support import clock, stacks
from .._task import Task
from . import emit
from .capacity import Capacity
from .handle import TaskHandle
from .outcome import FROM_OUTSIDE, Outcome, RunInterceptor
from .registry import TaskRegistry
from .runner import Runner
from .state import TaskState
from .timer import Timer


class Scheduler:
    """Accepts tasks, starts a task when it is due and there is room, and handles its end.

    Args:
        config: The manager's settings.
        backend: The event loop.
        portal: Calls functions in the event loop from other threads.
        dispatcher: Delivers events to observers.
        on_fatal: Called with an error that must close the manager.
    """

    def __init__(
        self,
        config: ManagerConfig,
        backend: Backend,
        portal: Portal,
        dispatcher: Dispatcher,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.registry = TaskRegistry()
        self.capacity = None if config.capacity is None else Capacity(config.capacity)
        self.timer: Timer[TaskState] = Timer(backend.now, self._on_due, _is_waiting)
        self.event = backend.event
        self.on_loops_stopped: set[Callable[[], None]] = set()
        self.on_end: Callable[[TaskHandle[Any]], None] | None = None
        self._backend = backend
        self._now = backend.now
        self._portal = portal
        self._dispatcher = dispatcher
        self._runner = Runner(backend, make_policy(config.retry), config.threads, self._on_finished)
        # Bound once: a method bound for each task would be one more object to collect.
        self._spawn = partial(backend.spawn, self._runner.run, on_lost=self._on_lost)
        self._limit = inf if config.limit is None else config.limit
        self._loop_backoff: wait_base | None = config.loop_backoff
        self._on_fatal = on_fatal
        self._numbers = count(1)
        self._prefix = os.urandom(4).hex()
        self._delayed_end: str | None = None  # why delayed one-offs are cancelled, if they are
        self._running = 0  # one-offs that were started
        # One-offs that are due, above the limit:
        self._queue: OrderedDict[TaskState, None] = OrderedDict()

    @property
    def loops_stopped(self) -> bool:
        """Whether the loops were stopped."""
        return self._runner.loops_stopped

    @property
    def threads_in_use(self) -> int:
        """The number of sync functions that run in threads."""
        return self._runner.limiter.borrowed_tokens

    def add(
        self,
        task: Task[Any],
        *,
        context: Context | None = None,
        room_holder: object = None,
        job: JobRef | None = None,
        interceptor: RunInterceptor | None = None,
    ) -> TaskHandle[Any]:
        """Accept a task, report it, and start it as soon as possible.

        Args:
            task: The task.
            context: The context variables of the task, instead of its own or a copy of the current
                ones.
            room_holder: The holder of room within the capacity that was taken for the task before.
            job: The job of which the task is an attempt.
            interceptor: Intercepts the run of such a task.

        Raises:
            DuplicateTaskError: An outstanding task has the same id.
            ManagerFullError: There is no room for it.
            InvalidTaskError: Its schedule has no tick.
        """
        if context is None:
            context = copy_context() if task.context is None else task.context.copy()
        id = self._id_for(task)
        now, wall = self._now(), clock.wall()
        hooks = self._dispatcher.hooks
        state = TaskState(task, id, hooks, context, now, wall, job, interceptor)
        if task.schedule is not None:
            state.ticks, state.due = _first_tick(task.schedule, task.delay, now, wall)
        if self.capacity is not None and task.kind is TaskKind.ONE_OFF:
            if interceptor is not None:
                self.capacity.job_added()
            else:
                self.capacity.take(state, room_holder)
        if task.observers:
            state.hooks = self._dispatcher.add_task_observers(task.observers)
        handle: TaskHandle[Any] = TaskHandle(state, self)
        self.registry.add(handle, state)
        if state.hooks.on_task_added:
            emit.added(state)
        if state.status is TaskStatus.WAITING:  # otherwise an observer cancelled it
            self._start_when_due(state, now)
        return handle

    def _id_for(self, task: Task[Any]) -> str:
        handles = self.registry.handles
        if task.id is None:
            while (id := f"{self._prefix}-{next(self._numbers)}") in handles:
                pass
            return id
        if task.id in handles:
            raise DuplicateTaskError(
                f"a task with the id {task.id!r} is outstanding; its handle is "
                f"manager.get({task.id!r})"
            )
        return task.id

    def _start_when_due(self, state: TaskState, now: float) -> None:
        if state.due > now:
            if self._delayed_end is not None and state.task.kind is TaskKind.ONE_OFF:
                self._finish(state, TaskStatus.CANCELLED, reason=self._delayed_end)
                return
            patience = inf if state.ticks is None else state.ticks.patience
            self.timer.put(min(state.due, state.expires, now + patience), state)
        elif state.task.kind is TaskKind.LOOP:
            self._start(state, state.context.copy())
        elif self._running < self._limit and not self._queue:
            self._running += 1
            self._start(state, state.context)
        else:
            self._queue[state] = None
            if state.expires < inf:
                self.timer.put(state.expires, state)

    def _on_due(self, state: TaskState) -> None:
        now = self._now()
        if not _is_waiting(state):
            return
        if now >= state.expires:
            self._finish(state, TaskStatus.EXPIRED)
            return
        try:
            if state.ticks is not None:
                state.due = state.ticks.confirm(state.due, now, clock.wall())
        except Exception as error:  # it would end the timer, which all tasks share
            self._fail_loop(state, error, 0.0)
        else:
            self._start_when_due(state, now)

    def _start_queued(self) -> None:
        while self._queue and self._running < self._limit:
            state, _ = self._queue.popitem(last=False)
            self._running += 1
            self._start(state, state.context)
            if state.expires < inf:
                self.timer.abandon()

    def _start(self, state: TaskState, context: Context) -> None:
        state.native = self._spawn(state, name=state.name, context=context)

    def _on_lost(self, state: TaskState) -> None:
        if _is_waiting(state):
            self._finish(state, TaskStatus.CANCELLED, reason=FROM_OUTSIDE)

    def _on_finished(self, state: TaskState, outcome: Outcome) -> None:
        failed = outcome.status is TaskStatus.FAILED
        if outcome.error is not None and failed:
            state.fail(outcome.error)
        if state.task.kind is TaskKind.LOOP and (failed or outcome.status is TaskStatus.SUCCEEDED):
            state.failures = state.failures + 1 if failed else 0
            if state.failures != state.task.max_failures:
                self._continue_loop(state, outcome)
                return
        self._finish(state, outcome.status, outcome)

    def _continue_loop(self, state: TaskState, outcome: Outcome) -> None:
        """Schedule the next iteration of a loop, or end the loop if the loops were stopped."""
        state.end_run()
        state.status = TaskStatus.WAITING
        emit.iterated(state, outcome)
        if outcome.error is not None and is_fatal(outcome.error):
            self._on_fatal(outcome.error)
        if not _is_waiting(state):  # an observer ended it
            return
        now = self._now()
        if state.cancel_requested:
            self._finish(state, TaskStatus.CANCELLED)
        elif now >= state.expires:
            self._finish(state, TaskStatus.EXPIRED)
        elif self.loops_stopped:
            self._finish(state, TaskStatus.CANCELLED, reason="stopped")
        else:
            try:
                state.due = self._next_due(state, outcome, now)
            except BaseException as error:
                self._fail_loop(state, error, outcome.duration)
            else:
                self._start_when_due(state, now)

    def _next_due(self, state: TaskState, outcome: Outcome, now: float) -> float:
        if state.ticks is not None:
            return state.ticks.next(now, clock.wall(), outcome.duration)
        if outcome.error is None or self._loop_backoff is None:
            return now
        pause = pause_after_failures(self._loop_backoff, state.failures, outcome.error)
        if not isfinite(pause):
            raise ValueError(f"loop_backoff must return a finite number of seconds, not {pause!r}")
        return now + pause

    def _fail_loop(self, state: TaskState, error: BaseException, duration: float) -> None:
        """End a loop whose schedule or backoff raised."""
        state.fail(error)
        outcome = Outcome(TaskStatus.FAILED, duration, error=error)
        self._finish(state, TaskStatus.FAILED, outcome)

    def _finish(
        self,
        state: TaskState,
        status: TaskStatus,
        outcome: Outcome | None = None,
        *,
        reason: str | None = None,
    ) -> None:
        """End a task; without an outcome, no run or iteration was in progress."""
        task, interceptor = state.task, state.interceptor
        if state.native is None:
            self._queue.pop(state, None)
            self.timer.abandon()
        elif task.kind is TaskKind.ONE_OFF:
            self._running -= 1
        state.end(status, clock.wall(), reason)
        handle = self.registry.remove(state)
        if self.capacity is not None:  # first, or a hook could overtake the waiters
            if interceptor is not None:
                self.capacity.job_ended()
            elif task.kind is TaskKind.ONE_OFF:
                self.capacity.release(state)
        if outcome is not None:
            state.result = outcome.value
        elif interceptor is not None:
            interceptor.on_never_started(state.cancel_reason)
        if self.on_end is not None:
            self.on_end(handle)  # first, or a closing that a hook begins would count the task
        emit.ended(state, outcome)
        if task.observers:
            self._dispatcher.remove_task_observers(task.observers)
        if state.ended is not None:
            state.ended.set()
        error = state.error if status is TaskStatus.FAILED else None
        if error is not None and (task.critical or is_fatal(error)):
            self._on_fatal(error)
        if self._queue:
            self._start_queued()
        self.registry.changed()

    def cancel(self, state: TaskState, reason: str | None) -> bool:
        """Cancel a task, from any thread; return whether it was outstanding."""
        if state.status in FINAL:
            return False
        try:
            return self._portal.call(partial(self._cancel, state, reason))
        except ManagerClosedError:
            if not state.cancel_requested:  # otherwise it is stuck
                raise
            return True

    def _cancel(self, state: TaskState, reason: str | None) -> bool:
        if state.status in FINAL:
            return False
        if state.scope is None:
            self._finish(state, TaskStatus.CANCELLED, reason=reason)
        elif not state.cancel_requested:
            state.cancel_requested = True
            state.cancel_reason = reason
            if state.interceptor is not None:
                state.interceptor.on_cancel_requested(reason)
            state.scope.cancel()
        return True

    def stack(self, state: TaskState) -> list[FrameSummary]:
        """Return where the function of a running task stands, outermost frame first."""
        native, thread = state.native, state.thread
        if state.status is not TaskStatus.RUNNING or native is None:
            return []
        if thread is not None:
            return stacks.of_thread(thread)
        return stacks.of_coroutine(self._backend.coroutine(native))

    def require_loop(self, method: str) -> None:
        """Check that the caller runs in the event loop."""
        self._portal.require_loop(method)

    def stop_loops(self) -> None:
        """Stop all loops before their next iteration, and end their pauses between retries."""
        self._runner.loops_stopped = True
        while self.on_loops_stopped:
            self.on_loops_stopped.pop()()
        for state in self.registry.states():
            if state.task.kind is TaskKind.LOOP:
                if _is_waiting(state):
                    self._finish(state, TaskStatus.CANCELLED, reason="stopped")
                elif state.pause is not None:
                    state.pause.cancel()

    def cancel_delayed(self, reason: str) -> None:
        """Cancel the one-offs that are not due yet, and those that will be added."""
        self._delayed_end = reason
        now = self._now()
        for state in self.registry.states():
            if state.task.kind is TaskKind.ONE_OFF and _is_waiting(state) and state.due > now:
                self._finish(state, TaskStatus.CANCELLED, reason=reason)


def _first_tick(schedule: Schedule, delay: float, now: float, wall: float) -> tuple[Ticks, float]:
    try:
        ticks = schedule.ticks(now + delay, wall + delay)
        return ticks, ticks.next(now + delay, wall + delay)
    except (ArithmeticError, OSError, StopIteration, ValueError) as error:
        raise InvalidTaskError(
            f"schedule {schedule!r} has no tick after a delay of {delay:g} s"
        ) from error


def _is_waiting(state: TaskState) -> bool:
    return state.status is TaskStatus.WAITING
