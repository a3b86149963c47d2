"""The manager: what people hold in their hands."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextvars import copy_context
from functools import partial
from types import EllipsisType, TracebackType
from typing import Any, ParamSpec, TypeVar, overload

from anyio.lowlevel import checkpoint
from tenacity.wait import wait_base, wait_random_exponential

from . import _schedule
from ._config import Settings, known_signals
from ._errors import (
    InvalidTaskError,
    LoopsStoppedError,
    ManagerClosedError,
    ManagerMisuseError,
    ManagerNotRunningError,
)
from ._eventloop.protection import uninterrupted
from ._execution import emit
from ._execution.handle import TaskHandle
from ._execution.registry import Absence
from ._execution.runner import current_handle
from ._lifecycle.runtime import Lifecycle
from ._observer import Observer
from ._report import CloseReport, Health
from ._retry import Retry, make_policy
from ._states import ManagerState, TaskKind, TaskStatus
from ._support import validation
from ._task import Task, describe_loop, describe_one_off

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_DEFAULT_BACKOFF = wait_random_exponential(multiplier=0.1, min=0.1, max=30)


class Manager:
    """Owns background tasks: runs them, retries them, and sees each to its end.

    An async context manager; leaving the block is `close()`. Tasks can be submitted from any
    thread; what is awaited is awaited in the event loop that entered the manager.

        async with Manager(observers=[LoggingObserver()]) as manager:
            manager.run(send_email, "a@b.c")
            manager.every(60, refresh)

    - `name`: for telemetry and messages (default `"background"`).
    - `observers`: told of every task.
    - `retry`: the policy of tasks that have none: a `tenacity.AsyncRetrying`, a number of attempts,
      or `None` (default) for a single attempt.
    - `limit`: most one-off tasks under way at once, backoff included; others wait, oldest first.
    - `capacity`: most one-off tasks outstanding; above it `run()` raises `ManagerFullError`.
    - `loop_backoff`: a tenacity wait strategy for the pause after a failed iteration of a loop that
      has no schedule; default: exponential from 0.1 s to 30 s, with jitter. `None`: no pause.
    - `threads`: most sync functions in threads at once (default 40).
    - `signals`: shut down on these; in the main thread only.
    - `grace`: seconds from a shutdown request until what still runs is cancelled (default 25;
      `None`: as long as it takes).
    - `cancel_timeout`: seconds that cancelled tasks get to clean up before they are reported as
      stuck, and that observers get to catch up (default 5).

    Raises `ValueError` for an argument that can't work, naming it.
    """

    def __init__(
        self,
        *,
        name: str = "background",
        observers: Iterable[Observer] = (),
        retry: Retry = None,
        limit: int | None = None,
        capacity: int | None = None,
        loop_backoff: wait_base | None = _DEFAULT_BACKOFF,
        threads: int = 40,
        signals: Collection[signal.Signals] = (),
        grace: float | None = 25.0,
        cancel_timeout: float = 5.0,
    ) -> None:
        self._settings = Settings(
            name=name,
            observers=validation.collected("observers", observers),
            policy=make_policy(retry),
            limit=limit,
            capacity=capacity,
            loop_backoff=loop_backoff,
            threads=threads,
            signals=known_signals(signals),
            grace=grace,
            cancel_timeout=cancel_timeout,
        )
        self._life: Lifecycle | None = None
        self._closed_unused: CloseReport | None = None

    @property
    def name(self) -> str:
        """What the manager was called."""
        return self._settings.name

    def __repr__(self) -> str:
        return f"<Manager {self.name!r} {self.state}>"

    @property
    def state(self) -> ManagerState:
        """Where the manager is in its life."""
        if self._life is not None:
            return self._life.shutdown.state
        return ManagerState.NEW if self._closed_unused is None else ManagerState.CLOSED

    @uninterrupted
    async def __aenter__(self) -> Manager:
        if self._closed_unused is not None:
            raise ManagerClosedError(f"manager {self.name!r} was closed before it was entered")
        if self._life is not None:
            raise ManagerMisuseError(
                f"manager {self.name!r} has been entered before; make a new one each time"
            )
        life = Lifecycle(self._settings)
        life.open(self)
        self._life = life
        life.take_signals()
        return self

    @uninterrupted
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        return await self._entered().leave(exc)

    # Submitting tasks

    @overload
    def run(
        self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[T]: ...
    @overload
    def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[T]: ...
    def run(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """Run a function once, now. Raises as `run_task`."""
        return self.run_task(describe_one_off(fn, args, kwargs))

    @overload
    def after(
        self, delay: float, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[T]: ...
    @overload
    def after(
        self, delay: float, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[T]: ...
    def after(
        self, delay: float, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> TaskHandle[Any]:
        """Run a function once, when `delay` seconds have passed. Raises as `run_task`."""
        return self.run_task(describe_one_off(fn, args, kwargs, delay))

    def loop(
        self, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[None]:
        """Run a function again and again until the loops stop. Raises as `run_task`."""
        return self.run_task(describe_loop(fn, args, kwargs))

    def every(
        self, interval: float, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[None]:
        """Run a function every `interval` seconds, the first time at once. Raises as `run_task`."""
        validation.seconds(
            "interval", interval, at_least=_schedule.SHORTEST, error=InvalidTaskError
        )
        return self.run_task(describe_loop(fn, args, kwargs, schedule=_schedule.every(interval)))

    def cron(
        self, expression: str, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[None]:
        """Run a function whenever a cron expression says so, in UTC. Raises as `run_task`.

        For another time zone: `run_task(Task(fn, kind=TaskKind.LOOP, schedule=cron(…, tz=…)))`.
        """
        return self.run_task(describe_loop(fn, args, kwargs, schedule=_schedule.cron(expression)))

    @uninterrupted
    def run_task(self, task: Task[T]) -> TaskHandle[T]:
        """Submit a task and return its handle at once; may be called from any thread.

        Raises `InvalidTaskError` for what can't work, `ManagerFullError` above the capacity, `DuplicateTaskError`
        for an id in use, `LoopsStoppedError` for a loop once they were stopped, `ManagerClosedError` once
        closing has begun, and `ManagerNotRunningError` before the manager is entered.
        """
        life = self._life
        if life is None or not life.takes(task):
            life = self._accepting(task)
        if life.portal.is_inside:
            context = copy_context() if task.context is None else task.context.copy()
            return life.engine.add(task, context)
        return life.portal.call(partial(self._add, life, task))

    @uninterrupted
    async def submit(self, task: Task[T]) -> TaskHandle[T]:
        """As `run_task`, but wait for room instead of raising `ManagerFullError`, oldest waiter first.

        Cancelled, it has submitted nothing.
        """
        life = self._here("submit")
        self._accepting(task)
        await checkpoint()
        if task.kind is TaskKind.LOOP:
            return self._add(life, task)
        admission = life.engine.admission
        await admission.reserve()
        admission.release()  # for the task, as nobody else has a turn in between
        try:
            return self._add(life, task, reserved=True)
        finally:
            admission.changed()

    def _add(self, life: Lifecycle, task: Task[T], *, reserved: bool = False) -> TaskHandle[T]:
        self._accepting(task)
        context = copy_context() if task.context is None else task.context.copy()
        return life.engine.add(task, context, reserved=reserved)

    def _accepting(self, task: Task[Any]) -> Lifecycle:
        if not isinstance(task, Task):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTaskError(f"task must be a Task, not {task!r}; a function is for run()")
        life = self._entered()
        if life.shutdown.state in (ManagerState.CLOSING, ManagerState.CLOSED):
            raise ManagerClosedError(
                f"manager {self.name!r} is {self.state} and takes no more tasks"
            )
        if task.kind is TaskKind.LOOP and life.runner.loops_stopped:
            raise LoopsStoppedError(
                f"the loops of manager {self.name!r} have stopped and it takes no more of them"
            )
        return life

    # Waiting and shutting down

    @uninterrupted
    async def wait(self) -> None:
        """Wait until no one-off is outstanding; those that are submitted meanwhile prolong it.

        Called inside a task, it does not wait for that task.
        """
        outstanding = self._here("wait").engine.outstanding
        await checkpoint()
        await outstanding.idle_beside(current_handle.get(), TaskKind.ONE_OFF)

    @uninterrupted
    async def stop_loops(self) -> None:
        """Let each loop finish its current iteration and start no other; wait until all have ended.

        Called inside a loop, it does not wait for that loop.
        """
        engine = self._here("stop_loops").engine
        engine.stop_loops()
        await checkpoint()
        await engine.outstanding.idle_beside(current_handle.get(), TaskKind.LOOP)

    @uninterrupted
    async def close(self, *, timeout: float | EllipsisType | None = ...) -> CloseReport:
        """Take no more tasks, wait for one-offs, stop loops, and report what became of them.

        After `timeout` seconds what is left is cancelled; it gets the manager's `cancel_timeout`
        to clean up, and is reported as stuck if it still runs then. By default there is no such
        deadline, or `grace` seconds after a shutdown request; `None` waits as long as it takes even
        then. Delayed tasks that are not due are cancelled.

        Can be called any number of times, concurrently, and inside a task, for which it does not
        wait; every call returns the same report. Cancelling it does not stop the closing.
        """
        if timeout is not None and timeout is not ...:
            validation.seconds("timeout", timeout, at_least=0)
        if self._life is None:
            report = self._closed_unused = self._closed_unused or CloseReport()
            await checkpoint()
            return report
        life = self._here("close")
        # First, or else an observer that hears of the closing could have the caller cancelled.
        with life.engine.outstanding.absent(current_handle.get(), Absence.CLOSING):
            life.shutdown.close(timeout)
            await checkpoint()
            return await life.shutdown.wait()

    async def shutdown_requested(self) -> None:
        """Wait for a shutdown signal, `request_shutdown()` or `close()`."""
        requested = self._here("shutdown_requested").shutdown.shutdown_requested
        await checkpoint()
        await requested.wait()

    @uninterrupted
    def request_shutdown(self) -> None:
        """Do what a shutdown signal does; may be called from any thread.

        Loops stop, `shutdown_requested()` returns, and `grace` begins to count; one-offs are still
        accepted. As with a signal, asking a second time cancels what is left at once.
        """
        life = self._entered()
        if self.state is not ManagerState.CLOSED:
            life.portal.call(life.shutdown.request)

    # Looking and cancelling

    @uninterrupted
    def cancel(self, id: str, *, reason: str | None = None) -> bool:
        """Cancel an outstanding task; `False` if there is none with this id."""
        handle = self.get(id)
        return handle is not None and handle.cancel(reason)

    def get(self, id: str) -> TaskHandle[Any] | None:
        """Return the handle of the outstanding task with this id, or `None`."""
        return None if self._life is None else self._life.engine.outstanding.handles.get(id)

    def tasks(self, kind: TaskKind | None = None) -> list[TaskHandle[Any]]:
        """Return the handles of the outstanding tasks, or of those of one kind, oldest first."""
        if self._life is None:
            return []
        handles = self._life.engine.outstanding.handles.copy().values()
        return [handle for handle in handles if kind is None or handle.kind is kind]

    def count(self, kind: TaskKind | None = None) -> int:
        """Return how many tasks are outstanding."""
        return 0 if self._life is None else self._life.engine.outstanding.count(kind)

    def health(self) -> Health:
        """Return how the manager stands; looks at every outstanding task."""
        life = self._life
        one_offs = [handle.status for handle in self.tasks(TaskKind.ONE_OFF)]
        return Health(
            name=self.name,
            state=self.state,
            ok=self.state in (ManagerState.RUNNING, ManagerState.STOPPING),
            waiting=one_offs.count(TaskStatus.WAITING),
            running=one_offs.count(TaskStatus.RUNNING),
            retrying=one_offs.count(TaskStatus.RETRYING),
            loops=self.count(TaskKind.LOOP),
            threads=0 if life is None else life.runner.limiter.borrowed_tokens,
            hook_errors=0 if life is None else life.listeners.complaints.errors,
            events_dropped=0 if life is None else life.listeners.complaints.missed,
        )

    @uninterrupted
    def report_stall(self, id: str, *, elapsed: float) -> None:
        """Tell the observers of a running task that its attempt takes long; for `watch()` services.

        `elapsed` is in seconds. Does nothing if there is no such task.
        """
        handle = self.get(id)
        if handle is not None:
            emit.stalled(handle, elapsed)

    def _on_signal(self, *, owns_process: bool) -> None:
        self._entered().shutdown.request(owns_process=owns_process)

    def _entered(self) -> Lifecycle:
        if self._life is None:
            if self._closed_unused is not None:
                raise ManagerClosedError(f"manager {self.name!r} was closed before it was entered")
            raise ManagerNotRunningError(
                f"manager {self.name!r} is not running yet: enter it with `async with`"
            )
        return self._life

    def _here(self, method: str) -> Lifecycle:
        life = self._entered()
        life.portal.require_here(method)
        return life
