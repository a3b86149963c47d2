"""The interface of a manager for the workers of durable jobs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context
from functools import partial
from typing import Any

from .._config import ManagerConfig
from .._errors import LoopsStoppedError
from .._eventloop.backend import Backend
from .._events import JobRef
from .._execution.handle import TaskHandle
from .._execution.outcome import RunInterceptor
from .._execution.state import current_task
from .._notify.dispatcher import Dispatcher
from .._states import ManagerState
from .._task import Task
from .progress import wait_and_log
from .runtime import ManagerRuntime


def current_interceptor() -> RunInterceptor | None:
    """Return the interceptor of the job's attempt that the running code belongs to."""
    state = current_task.get()
    return None if state is None else state.interceptor


class WorkerHost:
    """The operations of a running manager that workers of durable jobs use.

    Args:
        runtime: The manager's parts.
    """

    def __init__(self, runtime: ManagerRuntime) -> None:
        self.config: ManagerConfig = runtime.config
        self.backend: Backend = runtime.backend
        self.dispatcher: Dispatcher = runtime.dispatcher
        self._runtime = runtime

    def require_running(self) -> None:
        """Check that the manager accepts workers.

        Raises:
            LoopsStoppedError: The manager shuts down, or its loops were stopped.
        """
        runtime = self._runtime
        is_running = runtime.shutdown.state is ManagerState.RUNNING
        if not is_running or runtime.scheduler.loops_stopped:
            name = self.config.name
            raise LoopsStoppedError(f"manager {name!r} shuts down and accepts no more workers")

    def run_attempt(
        self, task: Task[Any], context: Context, job: JobRef, interceptor: RunInterceptor
    ) -> TaskHandle[Any]:
        """Run a task that is an attempt of a job.

        Raises:
            DuplicateTaskError: An outstanding task has the same id.
        """
        return self._runtime.scheduler.add(task, context=context, job=job, interceptor=interceptor)

    def start_service(self, name: str, fn: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `fn` as a service until it returns; start it again if the event loop cancels it."""
        again = partial(self.start_service, name, fn)
        self._runtime.services.start(f"background {name}", fn, again)

    async def wait_and_log(
        self, wait: Callable[[], Awaitable[None]], left: Callable[[], Sequence[TaskHandle[Any]]]
    ) -> None:
        """Wait for tasks of a worker, and log at intervals which are left, as a closing does."""
        await wait_and_log(wait, f"a worker in manager {self.config.name!r}", left)

    def on_stopping(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Register a callback for when the loops stop; return a function that removes it."""
        callbacks = self._runtime.scheduler.on_loops_stopped
        callbacks.add(callback)
        return partial(callbacks.discard, callback)

    @property
    def is_closed(self) -> bool:
        """Whether the manager has closed."""
        return self._runtime.shutdown.state is ManagerState.CLOSED

    async def closed(self) -> None:
        """Wait until the manager has closed."""
        await self._runtime.shutdown.wait()
