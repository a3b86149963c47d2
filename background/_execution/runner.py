"""One run of a one-off, or one iteration of a loop: its attempts, and what they come to."""

from __future__ import annotations

from contextvars import ContextVar
from inspect import isawaitable, iscoroutine
from math import inf
from threading import get_ident
from typing import Any

import anyio
from anyio.lowlevel import checkpoint_if_cancelled
from tenacity import AsyncRetrying

from .._errors import TaskCancelledError, TaskExpiredError
from .._eventloop.backend import Backend
from .._notify.dispatcher import Around
from .._retry import Attempts, judges_success, make_policy
from .._states import TaskKind, TaskStatus
from .._support import clock, stacks
from .._support.callables import is_async
from . import emit
from .handle import TaskHandle
from .outcome import Durable, Outcome, Settle

#: The task that the running code belongs to.
current_handle: ContextVar[TaskHandle[Any] | None] = ContextVar("background_task", default=None)

#: The reason of a cancellation that nobody asked the manager for.
FROM_OUTSIDE = "cancelled from outside the manager"


class Runner:
    """Runs what it is given, under one manager's policy and thread limit."""

    def __init__(self, backend: Backend, policy: AsyncRetrying | None, threads: int) -> None:
        self.loops_stopped = False
        self.settle: Settle  # set by the engine
        self.limiter = anyio.CapacityLimiter(threads)
        self._backend = backend
        self._interruptible = backend.interruptible
        self._policy = policy
        self._judges = policy is not None and judges_success(policy)

    async def run(self, handle: TaskHandle[Any]) -> None:
        """Run once and hand what it came to to `settle`; never raises."""
        if handle.status is not TaskStatus.WAITING:  # it ended before its first step
            return
        task = handle.task
        policy, judges = self._policy, self._judges
        if task.retry is not None:
            policy = make_policy(task.retry)
            judges = policy is not None and judges_success(policy)
        durable = handle._durable
        if durable is not None:
            policy = None  # it has its own, which decides when to settle
        handle._scope = scope = self._backend.scope()
        around = self._begin(handle, scope)
        value: Any = None
        error: BaseException | None = None
        failure: Exception | None = None
        status = TaskStatus.CANCELLED  # unless told otherwise
        began = self._backend.now()
        try:
            with scope:
                if durable is not None:
                    await durable.begin()
                if policy is not None and judges:
                    value = await self._attempts(handle, policy, began)
                else:
                    # Nearly every task ends here, having needed no more than this.
                    try:
                        if task.timeout is None and is_async(task.fn):
                            value = await self._interruptible(task.fn)(*task.args, **task.kwargs)
                        else:
                            value = await self._attempt(handle)
                    except Exception as raised:
                        if policy is None or scope.cancel_called:
                            raise
                        failure = raised
                    if policy is not None and failure is not None:
                        value = await self._attempts(handle, policy, began, failure)
                status = TaskStatus.SUCCEEDED
        except self._backend.cancelled:
            handle._reason = handle._reason or FROM_OUTSIDE
        except BaseException as raised:
            status, error = TaskStatus.FAILED, stacks.without_ours(raised)
        duration = self._backend.now() - began
        if status is TaskStatus.CANCELLED:
            if scope.cancelled_caught and not handle._cancelled:
                status = TaskStatus.EXPIRED
                error = TaskExpiredError(handle.name, handle.id, task.lifespan or 0.0)
            else:
                error = TaskCancelledError(handle.name, handle.id, handle._reason)
        outcome = Outcome(status, duration, value, error)
        if durable is not None:
            outcome = await self._conclude(handle, durable, outcome)
        handle._scope = None
        self.settle(handle, outcome)
        if around is not None:
            around.leave(outcome.error)

    async def _conclude(
        self, handle: TaskHandle[Any], durable: Durable, outcome: Outcome
    ) -> Outcome:
        """Have a durable job settled; the run's scope has been left, so nobody cancels that."""
        try:
            return await durable.conclude(handle, outcome)
        except self._backend.cancelled:  # but the event loop, when it ends
            handle._reason = FROM_OUTSIDE
            error = TaskCancelledError(handle.name, handle.id, FROM_OUTSIDE)
            return Outcome(TaskStatus.CANCELLED, outcome.duration, None, error)

    def _begin(self, handle: TaskHandle[Any], scope: anyio.CancelScope) -> Around | None:
        current_handle.set(handle)
        if handle._expires < inf:
            scope.deadline = handle._expires
        handle.status = TaskStatus.RUNNING
        handle.started_at = clock.wall()
        handle.attempt = 1 if handle.job is None else handle.job.attempt
        if handle.task.kind is TaskKind.LOOP:
            handle.iteration += 1
        hooks = handle._hooks
        if not hooks.on_task_started and not hooks.around:
            return None
        late = self._backend.now() - handle._due
        event = emit.started(handle, late if late > 0.0 else 0.0)
        return Around(hooks.around, event) if hooks.around else None

    async def _attempts(
        self,
        handle: TaskHandle[Any],
        policy: AsyncRetrying,
        began: float,
        failure: Exception | None = None,
    ) -> Any:
        """Go on until the policy is content or gives up; `failure` is that of a first attempt."""
        task, scope, now = handle.task, handle._scope, self._backend.now
        assert scope is not None
        attempts = Attempts(policy, task.fn, task.args, task.kwargs, started=began, clock=now)
        while True:
            error: Exception | None = None
            if failure is None:
                await attempts.before()
            try:
                if failure is not None:
                    raise failure
                value = await self._attempt(handle)
            except Exception as raised:
                if scope.cancel_called:
                    raise
                error, failure = raised, None
                delay = await attempts.failed(error)
            else:
                delay = await attempts.returned(value)
            if delay is None or not await self._back_off(handle, attempts, error, delay):
                return await attempts.conclude()
            attempts.again()
            handle.attempt += 1
            handle.status = TaskStatus.RUNNING

    async def _back_off(
        self, handle: TaskHandle[Any], attempts: Attempts, error: Exception | None, delay: float
    ) -> bool:
        """Wait for the next attempt; `False` if the loops stopped meanwhile."""
        if handle.kind is TaskKind.LOOP and self.loops_stopped:
            return False
        handle.status = TaskStatus.RETRYING
        emit.retrying(handle, error, delay)
        with anyio.CancelScope() as handle._pause:
            await attempts.pause(delay)
        handle._pause = None
        return not (handle.kind is TaskKind.LOOP and self.loops_stopped)

    async def _attempt(self, handle: TaskHandle[Any]) -> Any:
        timeout = handle.task.timeout
        if timeout is None:
            return await self._call(handle)
        # Not `fail_at()`: contextlib gives the error attributes, which some refuse.
        with anyio.CancelScope(deadline=self._backend.now() + timeout):
            return await self._call(handle)
        raise TimeoutError(
            f"an attempt of task {handle.name!r} took longer than its timeout of {timeout:g} s"
        )

    async def _call(self, handle: TaskHandle[Any]) -> Any:
        task = handle.task
        if is_async(task.fn):
            return await self._interruptible(task.fn)(*task.args, **task.kwargs)

        answers: list[Any] = []
        abandoned = False

        def call_in_thread() -> BaseException | None:
            handle._thread = get_ident()
            try:
                answers.append(task.fn(*task.args, **task.kwargs))
            # Not left to what carries it over, which gives it attributes or takes it for its own.
            except BaseException as error:
                return error
            finally:
                handle._thread = None
            if abandoned:
                _close(answers)
            return None

        clock.on_thread(1)
        try:
            error = await anyio.to_thread.run_sync(call_in_thread, limiter=self.limiter)
        except BaseException:  # asyncio can take a task away from its thread, whose end nobody sees
            abandoned = True
            _close(answers)
            raise
        finally:
            clock.on_thread(-1)
        if error is not None:
            try:
                raise error
            finally:
                del error
        try:
            # The thread could not be interrupted: a cancellation or deadline since then counts now.
            await checkpoint_if_cancelled()
        except BaseException:
            _close(answers)
            raise
        (value,) = answers
        return await value if isawaitable(value) else value


def _close(answers: list[Any]) -> None:
    """Let nothing warn of a coroutine that was never awaited."""
    for answer in answers:
        if iscoroutine(answer):
            answer.close()
