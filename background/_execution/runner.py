"""One run of a one-off, or one iteration of a loop: its attempts and its outcome."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isawaitable
from math import inf
from typing import Any

import anyio
from tenacity import AsyncRetrying

from .._errors import TaskCancelledError, TaskExpiredError
from .._eventloop.backend import Backend
from .._notify.subscriber import RunContexts
from .._retry import Attempts, make_policy, needs_every_attempt
from .._states import TaskKind, TaskStatus
from .._support import clock, stacks
from .._support.callables import is_async
from . import emit
from .outcome import FROM_OUTSIDE, Outcome, RunInterceptor
from .state import TaskState, current_task
from .thread_call import ThreadCall


class Runner:
    """Runs tasks under one manager's policy and thread limit.

    Args:
        backend: The event loop.
        policy: The retry policy of tasks that have none.
        threads: The most sync functions in threads at once.
        on_finished: Called with the state and the outcome of each run.
    """

    def __init__(
        self,
        backend: Backend,
        policy: AsyncRetrying | None,
        threads: int,
        on_finished: Callable[[TaskState, Outcome], None],
    ) -> None:
        self.loops_stopped = False
        self.limiter = anyio.CapacityLimiter(threads)
        self._backend = backend
        self._interruptible = backend.interruptible
        self._policy = policy
        self._judges = policy is not None and needs_every_attempt(policy)
        self._on_finished = on_finished

    async def run(self, state: TaskState) -> None:
        """Run once and pass the outcome to `on_finished`; never raises."""
        if state.status is not TaskStatus.WAITING:  # the task ended before its first step
            return
        task = state.task
        interceptor = state.interceptor
        policy, judges = self._policy, self._judges
        if interceptor is not None:
            policy = None  # a job's policy decides about the next attempt when it is settled
        elif task.retry is not None:
            policy = make_policy(task.retry)
            judges = policy is not None and needs_every_attempt(policy)
        state.scope = scope = self._backend.scope()
        contexts = self._begin(state, scope)
        value: Any = None
        error: BaseException | None = None
        failure: Exception | None = None
        status = TaskStatus.CANCELLED
        began = self._backend.now()
        try:
            with scope if contexts is None else contexts:
                if interceptor is not None:
                    await interceptor.before_run()
                if policy is not None and judges:
                    value = await self._attempts(state, scope, policy, began)
                else:
                    # The fast path of nearly all tasks.
                    try:
                        if task.timeout is None and is_async(task.fn):
                            value = await self._interruptible(task.fn)(*task.args, **task.kwargs)
                        else:
                            value = await self._attempt(state)
                    except Exception as raised:
                        if policy is None or scope.cancel_called:
                            raise
                        failure = raised
                    if policy is not None and failure is not None:
                        value = await self._attempts(state, scope, policy, began, failure)
                status = TaskStatus.SUCCEEDED
        except self._backend.cancelled:
            state.cancel_reason = state.cancel_reason or FROM_OUTSIDE
        except BaseException as raised:
            status, error = TaskStatus.FAILED, stacks.without_ours(raised)
        duration = self._backend.now() - began
        if status is TaskStatus.CANCELLED:
            if scope.cancelled_caught and not state.cancel_requested:
                status = TaskStatus.EXPIRED
                error = TaskExpiredError(state.name, state.id, task.lifespan or 0.0)
            else:
                error = _cancelled(state)
        outcome = Outcome(status, duration, value, error)
        if interceptor is not None:
            outcome = await self._settle(state, interceptor, outcome)
        state.scope = None
        self._on_finished(state, outcome)
        if contexts is not None:
            is_cancelled = outcome.status is TaskStatus.CANCELLED
            contexts.leave(contexts.raised if is_cancelled else outcome.error)

    async def _settle(
        self, state: TaskState, interceptor: RunInterceptor, outcome: Outcome
    ) -> Outcome:
        """Settle a durable job, outside of the run's cancel scope."""
        outcome.cancel_reason = state.cancel_reason
        try:
            outcome = await interceptor.after_run(outcome)
        except self._backend.cancelled:  # by the event loop, at its end
            outcome = Outcome(TaskStatus.CANCELLED, outcome.duration, cancel_reason=FROM_OUTSIDE)
        if outcome.status is TaskStatus.CANCELLED:
            state.cancel_reason = outcome.cancel_reason
            outcome.error = _cancelled(state)
        return outcome

    def _begin(self, state: TaskState, scope: anyio.CancelScope) -> RunContexts | None:
        current_task.set(state)
        if state.expires < inf:
            scope.deadline = state.expires
        state.status = TaskStatus.RUNNING
        state.started_at = clock.wall()
        state.attempt = 1 if state.job is None else state.job.attempt
        if state.task.kind is TaskKind.LOOP:
            state.iteration += 1
        hooks = state.hooks
        if not hooks.on_task_started and not hooks.around:
            return None
        late = self._backend.now() - state.due
        event = emit.started(state, late if late > 0.0 else 0.0)
        return RunContexts(hooks.around, event, scope) if hooks.around else None

    async def _attempts(
        self,
        state: TaskState,
        scope: anyio.CancelScope,
        policy: AsyncRetrying,
        began: float,
        failure: Exception | None = None,
    ) -> Any:
        """Make attempts until the policy accepts one or gives up; the first may have failed."""
        task, now = state.task, self._backend.now
        attempts = Attempts(policy, task.fn, task.args, task.kwargs, started=began, clock=now)
        while True:
            error: Exception | None = None
            if failure is None:
                await attempts.before()
            try:
                if failure is not None:
                    raise failure
                value = await self._attempt(state)
            except Exception as raised:
                if scope.cancel_called:
                    raise
                error, failure = raised, None
                delay = await attempts.failed(error)
            else:
                delay = await attempts.returned(value)
            if delay is None or not await self._back_off(state, attempts, error, delay):
                return await attempts.conclude()
            attempts.again()
            state.attempt += 1
            state.status = TaskStatus.RUNNING

    async def _back_off(
        self, state: TaskState, attempts: Attempts, error: Exception | None, delay: float
    ) -> bool:
        """Wait for the next attempt; return `False` if the loops were stopped."""
        is_loop = state.task.kind is TaskKind.LOOP
        if is_loop and self.loops_stopped:
            return False
        state.status = TaskStatus.RETRYING
        emit.retrying(state, error, delay)
        with anyio.CancelScope() as state.pause:
            await attempts.pause(delay)
        state.pause = None
        return not (is_loop and self.loops_stopped)

    async def _attempt(self, state: TaskState) -> Any:
        task = state.task
        if task.timeout is None:
            return await self._call(state)
        place: str | None = None
        # Without `fail_at()`: contextlib sets attributes of errors, which some classes refuse.
        with anyio.CancelScope(deadline=self._backend.now() + task.timeout) as scope:
            try:
                return await self._call(state)
            except BaseException as error:  # on trio also a group of cancellations
                if scope.cancel_called and is_async(task.fn):
                    place = stacks.place_of_cancellation(error)
                raise
        waited = "" if place is None else f"; it waited at {place}"
        raise TimeoutError(
            f"an attempt of task {task.name!r} took longer than its timeout of {task.timeout:g} s"
            f"{waited}"
        )

    async def _call(self, state: TaskState) -> Any:
        task = state.task
        if is_async(task.fn):
            return await self._interruptible(task.fn)(*task.args, **task.kwargs)
        result = await ThreadCall(state).result(self.limiter)
        return await result if isawaitable(result) else result


def _cancelled(state: TaskState) -> TaskCancelledError:
    return TaskCancelledError(state.name, state.id, state.cancel_reason)
