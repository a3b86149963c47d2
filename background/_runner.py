"""One run of a one-off, or one iteration of a loop: its attempts, and what they come to."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable, iscoroutine
from threading import get_ident
from typing import Any

import anyio
from anyio.lowlevel import checkpoint_if_cancelled
from tenacity import AsyncRetrying

from . import _clock, _stack
from ._backend import Backend
from ._dispatch import Around
from ._errors import TaskCancelled, TaskExpired
from ._events import TaskRetrying, TaskStarted
from ._handle import TaskHandle
from ._retry import Attempts, judges_success, make_policy
from ._states import TaskKind, TaskStatus
from ._task import is_async

#: The task that the running code belongs to.
current_handle: ContextVar[TaskHandle[Any] | None] = ContextVar("background_task", default=None)

#: The reason of a cancellation that nobody asked the manager for.
FROM_OUTSIDE = "cancelled from outside the manager"


@dataclass(slots=True)
class Outcome:
    """What a run or an iteration came to."""

    status: TaskStatus
    duration: float
    value: Any = None
    error: BaseException | None = None


Settle = Callable[[TaskHandle[Any], Outcome], None]


class Runner:
    """Runs what it is given, under one manager's policy and thread limit."""

    def __init__(self, backend: Backend, policy: AsyncRetrying | None, threads: int) -> None:
        self.loops_stopped = False
        self.limiter = anyio.CapacityLimiter(threads)
        self._backend = backend
        self._policy = policy

    async def run(self, handle: TaskHandle[Any], settle: Settle) -> None:
        """Run once and hand what it came to to `settle`; never raises."""
        started = self._backend.now()
        hooks = handle._hooks
        current_handle.set(handle)
        handle._scope = anyio.CancelScope(deadline=handle._expires)
        handle.status = TaskStatus.RUNNING
        handle.started_at = _clock.wall()
        handle.attempt = 1
        if handle.kind is TaskKind.LOOP:
            handle.iteration += 1
        around: Around | None = None
        if hooks.on_task_started or hooks.around:
            queued_for = max(0.0, started - handle._due)
            event = TaskStarted(**identity(handle), fn=handle.task.fn, queued_for=queued_for)
            if hooks.on_task_started:
                hooks.tell(hooks.on_task_started, event)
            around = Around(hooks.around, event)
        outcome = await self._outcome(handle, handle._scope)
        handle._scope = None
        settle(handle, outcome)
        if around is not None:
            around.leave(outcome.error)

    async def _outcome(self, handle: TaskHandle[Any], scope: anyio.CancelScope) -> Outcome:
        started = self._backend.now()
        value: Any = None
        error: BaseException | None = None
        status = TaskStatus.SUCCEEDED
        try:
            with scope:
                status = TaskStatus.CANCELLED  # unless told otherwise
                value = await self._attempts(handle, scope)
                status = TaskStatus.SUCCEEDED
        except self._backend.cancelled:
            handle._reason = handle._reason or FROM_OUTSIDE
        except BaseException as raised:
            status, error = TaskStatus.FAILED, _stack.without_ours(raised)
        if status is TaskStatus.CANCELLED:
            if scope.cancelled_caught and not handle._cancelled:
                status = TaskStatus.EXPIRED
                error = TaskExpired(handle.name, handle.id, handle.task.lifespan or 0.0)
            else:
                error = TaskCancelled(handle.name, handle.id, handle._reason)
        return Outcome(status, self._backend.now() - started, value, error)

    async def _attempts(self, handle: TaskHandle[Any], scope: anyio.CancelScope) -> Any:
        task = handle.task
        policy = self._policy if task.retry is None else make_policy(task.retry)
        if policy is None:
            return await self._attempt(handle)
        # A first success is judged only by a policy that asks to; nearly none does.
        judged = judges_success(policy)
        clock = self._backend.now
        begin = partial(
            Attempts, policy, task.fn, task.args, task.kwargs, started=clock(), clock=clock
        )
        attempts = begin() if judged else None
        while True:
            if attempts is not None:
                await attempts.before()
            error: Exception | None = None
            try:
                value = await self._attempt(handle)
            except Exception as raised:
                if scope.cancel_called:
                    raise
                error = raised
                attempts = attempts or begin()
                delay = await attempts.failed(error)
            else:
                if attempts is None or not judged:
                    return value
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
        hooks = handle._hooks
        if hooks.on_task_retrying:
            event = TaskRetrying(**identity(handle), error=error, delay=delay)
            hooks.tell(hooks.on_task_retrying, event)
        with anyio.CancelScope() as handle._pause:
            await attempts.pause(delay)
        handle._pause = None
        return not (handle.kind is TaskKind.LOOP and self.loops_stopped)

    async def _attempt(self, handle: TaskHandle[Any]) -> Any:
        timeout = handle.task.timeout
        if timeout is None:
            return await self._call(handle)
        deadline = self._backend.now() + timeout
        message = (
            f"an attempt of task {handle.name!r} took longer than its timeout of {timeout:g} s"
        )
        with anyio.fail_at(deadline, reason=message):
            return await self._call(handle)

    async def _call(self, handle: TaskHandle[Any]) -> Any:
        task = handle.task
        if is_async(task.fn):
            return await task.fn(*task.args, **task.kwargs)

        def call_in_thread() -> tuple[Any, GeneratorExit | None]:
            handle._thread = get_ident()
            try:
                return task.fn(*task.args, **task.kwargs), None
            except GeneratorExit as error:  # thrown into a coroutine, it would end all of them
                return None, error
            finally:
                handle._thread = None

        _clock.on_thread(1)
        try:
            value, error = await anyio.to_thread.run_sync(call_in_thread, limiter=self.limiter)
        finally:
            _clock.on_thread(-1)
        if error is not None:
            raise error
        try:
            # The thread could not be interrupted: a cancellation or deadline since then counts now.
            await checkpoint_if_cancelled()
        except BaseException:
            if iscoroutine(value):
                value.close()
            raise
        return await value if isawaitable(value) else value


def identity(handle: TaskHandle[Any]) -> dict[str, Any]:
    """Return the fields that every event of the task carries."""
    return {
        "id": handle.id,
        "name": handle.task.name,
        "kind": handle.task.kind,
        "meta": handle.task.meta,
        "iteration": handle.iteration,
        "attempt": handle.attempt,
        "time": _clock.wall(),
    }
