"""The manager."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterable
from types import TracebackType
from typing import Any, Literal, TypeVar, Unpack

from anyio.lowlevel import checkpoint
from tenacity.wait import wait_base, wait_random_exponential

from ._config import ManagerConfig, signals_of
from ._errors import ManagerClosedError, ManagerMisuseError, ManagerNotRunningError
from ._eventloop.interruption import ki_protected
from ._execution import emit
from ._execution.handle import TaskHandle, state_of
from ._execution.registry import WaitExemption
from ._execution.state import current_task
from ._lifecycle.host import WorkerHost
from ._lifecycle.runtime import ManagerRuntime
from ._observer import Observer, collected
from ._report import CloseReport, Health
from ._retry import Retry
from ._schedule import Schedule
from ._states import ManagerState, TaskKind, TaskStatus
from ._submission import NO_DELAY, Submission, Submitter, describe_one_off, with_arguments
from ._support import validation
from ._task import Task, TaskOptions

T = TypeVar("T")

_DEFAULT_BACKOFF = wait_random_exponential(multiplier=0.1, min=0.1, max=30)


@ki_protected
class Manager(Submitter):
    """Owns background tasks: it runs them, retries them, and waits for their end.

    An async context manager; leaving the block, in any task of the event loop, is `close()`. Tasks
    may be submitted from any thread. Coroutine methods must be awaited in the event loop that
    entered the manager.

    Args:
        name: A name for telemetry and messages.
        observers: Observers of all tasks; one or several.
        retry: The policy of tasks that have none: a `tenacity.AsyncRetrying`, a number of attempts,
            or `None` for a single attempt. A number is one for jobs without a policy, too, with the
            waits of jobs.
        limit: The most one-off tasks that run at once, backoff included; others wait, oldest first.
        capacity: The most one-off tasks that are outstanding; above it `run()` raises
            `ManagerFullError`.
        loop_backoff: A tenacity wait strategy for the pause after a failed iteration of a loop
            without a schedule; by default exponential from 0.1 s to 30 s, with jitter. `None` for
            no pause.
        threads: The most sync functions that run in threads at once.
        signals: `True` to shut down on SIGINT and SIGTERM (on Windows SIGBREAK, too), or the
            signals to shut down on. Signals can only be handled in the main thread: elsewhere
            `True` changes nothing, and other signals are an error.
        grace: Seconds from a shutdown request until tasks that still run are cancelled. `None` for
            no bound.
        leave_timeout: Seconds that leaving the block waits for one-off tasks before it cancels
            them, and that leaving a queue waits for its jobs. `None` to wait for as long as they
            take, or until `grace` ends after a shutdown request.
        cancel_timeout: Seconds that cancelled tasks get to clean up before they are reported as
            stuck, and that observers get to catch up.

    Raises:
        ValueError: An argument is not valid; the message names it.

    Example:
        ```python
        async with Manager(observers=[LoggingObserver()]) as manager:
            manager.run(send_email, "a@b.c")
            manager.every(60, refresh)
        ```
    """

    def __init__(
        self,
        *,
        name: str = "background",
        observers: Observer | Iterable[Observer] = (),
        retry: Retry = None,
        limit: int | None = None,
        capacity: int | None = None,
        loop_backoff: wait_base | None = _DEFAULT_BACKOFF,
        threads: int = 40,
        signals: bool | Collection[signal.Signals] = False,
        grace: float | None = 25.0,
        leave_timeout: float | None = None,
        cancel_timeout: float = 5.0,
    ) -> None:
        self._config = ManagerConfig(
            name=name,
            observers=collected(observers),
            retry=retry,
            limit=limit,
            capacity=capacity,
            loop_backoff=loop_backoff,
            threads=threads,
            signals=signals_of(signals),
            signals_optional=signals is True,
            grace=grace,
            leave_timeout=leave_timeout,
            cancel_timeout=cancel_timeout,
        )
        self._runtime: ManagerRuntime | None = None
        self._closed_unused: CloseReport | None = None

    @property
    def name(self) -> str:
        """The manager's name."""
        return self._config.name

    @property
    def state(self) -> ManagerState:
        """The manager's state."""
        if self._runtime is not None:
            return self._runtime.shutdown.state
        return ManagerState.NEW if self._closed_unused is None else ManagerState.CLOSED

    def __repr__(self) -> str:
        return f"<Manager {self.name!r} {self.state}>"

    async def open(self) -> None:
        """Do what entering the block does, for start and stop hooks, fixtures and notebooks.

        `close()` ends it, in any task of the event loop. There is no block that a critical failure
        or a signal could cancel, so they only close the manager.

        Raises:
            ManagerClosedError: The manager was closed before.
            ManagerMisuseError: The manager was opened or entered before, or signals can't be
                handled here.

        Example:
            ```python
            manager = Manager(signals=True)
            app = Starlette(on_startup=[manager.open], on_shutdown=[manager.close])
            ```
        """
        await checkpoint()
        self._open(has_block=False)

    async def __aenter__(self) -> Manager:
        self._open(has_block=True)
        return self

    def _open(self, *, has_block: bool) -> None:
        if self._closed_unused is not None:
            raise ManagerClosedError(f"manager {self.name!r} was closed before it was entered")
        if self._runtime is not None:
            raise ManagerMisuseError(
                f"manager {self.name!r} has been entered before; make a new one each time"
            )
        runtime = ManagerRuntime(self._config, has_block=has_block)
        runtime.open(self)
        self._runtime = runtime
        runtime.handle_signals()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        return await self._entered().leave(exc)

    # Submitting tasks

    def options(self, **options: Unpack[TaskOptions]) -> Submission:
        """Return the methods that submit functions, with options for the tasks.

        Args:
            **options: The options of `Task`.

        Returns:
            An object with `run`, `after`, `loop`, `every`, `cron` and `schedule`.

        Raises:
            TypeError: There is no such option.

        Example:
            ```python
            manager.options(retry=3, timeout=5).run(fetch, "/b")
            ```
        """
        return Submission(self._submit, options)

    def run_task(self, task: Task[T]) -> TaskHandle[T]:
        """Submit a task, from any thread.

        Args:
            task: The task.

        Returns:
            The task's handle.

        Raises:
            InvalidTaskError: The task can't be run as described.
            ManagerFullError: There is no room within the manager's capacity.
            DuplicateTaskError: An outstanding task has the same id.
            LoopsStoppedError: The task is a loop, and the loops were stopped.
            ManagerClosedError: The manager is closing, and does not wait for the caller's task.
            ManagerMisuseError: The manager was entered before this process was forked.
            ManagerNotRunningError: The manager was not entered.
        """
        return self._submit(with_arguments(task) if isinstance(task, Task) else task)  # pyright: ignore[reportUnnecessaryIsInstance]

    def _submit(self, task: Task[T]) -> TaskHandle[T]:
        runtime = self._runtime
        return (self._entered() if runtime is None else runtime).submit(task)

    def _one_off(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        delay: float = NO_DELAY,
    ) -> Task[Any]:
        return describe_one_off(fn, args, kwargs, delay)

    def _loop(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        schedule: Schedule | None = None,
    ) -> Task[Any]:
        return with_arguments(
            Task(fn, args=args, kwargs=kwargs, kind=TaskKind.LOOP, schedule=schedule)
        )

    async def submit(self, task: Task[T]) -> TaskHandle[T]:
        """Submit a task once there is room within the capacity; the longest waiter is first.

        If it is cancelled, the task was not submitted.

        Args:
            task: The task.

        Returns:
            The task's handle.

        Raises:
            InvalidTaskError: The task can't be run as described.
            DuplicateTaskError: An outstanding task has the same id.
            LoopsStoppedError: The task is a loop, and the loops were stopped.
            ManagerClosedError: The manager is closing, and does not wait for the caller's task.
            ManagerMisuseError: The caller runs in another event loop, thread or process.
            ManagerNotRunningError: The manager was not entered.
        """
        runtime = self._runtime_in_loop("submit")
        runtime.require_accepts(task)
        with_arguments(task)
        await checkpoint()
        return await runtime.submit_when_room(task)

    # Waiting and shutting down

    async def wait(self) -> None:
        """Wait until no one-off is outstanding, including those that are submitted meanwhile.

        In a task it does not wait for that task.

        Raises:
            ManagerNotRunningError: The manager was not entered.
            ManagerMisuseError: The caller runs in another event loop, thread or process.
        """
        registry = self._runtime_in_loop("wait").scheduler.registry
        await checkpoint()
        await registry.idle_except(current_task.get(), TaskKind.ONE_OFF)

    async def stop_loops(self) -> None:
        """Stop all loops after their current iterations, and wait until they have ended.

        In a loop it does not wait for that loop.

        Raises:
            ManagerNotRunningError: The manager was not entered.
            ManagerMisuseError: The caller runs in another event loop, thread or process.
        """
        scheduler = self._runtime_in_loop("stop_loops").scheduler
        scheduler.stop_loops()
        await checkpoint()
        await scheduler.registry.idle_except(current_task.get(), TaskKind.LOOP)

    async def close(self, *, timeout: float | Literal["grace"] | None = "grace") -> CloseReport:
        """Accept no more tasks, wait for one-offs, stop loops, and report the outcome.

        Until the deadline the tasks that it waits for may submit one-offs, which it waits for, too.
        Delayed tasks that are not due are cancelled. At the deadline the other tasks are cancelled;
        those that still run `cancel_timeout` seconds later are reported as stuck.

        It may be called any number of times, concurrently, and in a task, for which it does not
        wait; every call returns the same report. Cancelling it does not stop the closing.

        After `open()` it also ends what that began. Outside of the manager's tasks it then raises
        what would leave a block, instead of returning the report.

        Args:
            timeout: Seconds until the deadline. With `"grace"` there is a deadline only after a
                shutdown request, `grace` seconds later; with `None` there is none even then.

        Returns:
            The outcome of the tasks that were outstanding when closing began, or submitted since.

        Raises:
            ValueError: `timeout` is not valid.
            ManagerMisuseError: The caller runs in another event loop, thread or process.
            ExceptionGroup: Critical tasks of a manager that was opened with `open()` failed.
        """
        if timeout is not None and timeout != "grace":
            _check_timeout(timeout)
        if self._runtime is None:
            report = self._closed_unused = self._closed_unused or CloseReport()
            await checkpoint()
            return report
        runtime = self._runtime_in_loop("close")
        # First, because an observer of the closing may cancel the caller.
        registry = runtime.scheduler.registry
        with registry.exempt(current_task.get(), WaitExemption.CLOSING) as inside:
            runtime.shutdown.close(timeout)
            await checkpoint()
            report = await runtime.shutdown.wait()
        if not inside:
            await runtime.ended()
        return report

    async def shutdown_requested(self) -> None:
        """Wait for a shutdown signal, `request_shutdown()` or `close()`.

        Raises:
            ManagerNotRunningError: The manager was not entered.
            ManagerMisuseError: The caller runs in another event loop, thread or process.
        """
        requested = self._runtime_in_loop("shutdown_requested").shutdown.requested
        await checkpoint()
        await requested.wait()

    def request_shutdown(self) -> None:
        """Request a shutdown, as a signal does, from any thread.

        Loops stop, `shutdown_requested()` returns, and `grace` begins to count. One-offs are still
        accepted. A second request cancels all tasks at once.

        Raises:
            ManagerNotRunningError: The manager was not entered.
        """
        runtime = self._entered()
        if self.state is not ManagerState.CLOSED:
            runtime.portal.call(runtime.shutdown.request)

    # Inspecting and cancelling tasks

    def cancel(self, id: str, *, reason: str | None = None) -> bool:
        """Cancel a task, from any thread.

        Args:
            id: The task's id.
            reason: For observers and waiters.

        Returns:
            Whether such a task was outstanding.
        """
        handle = self.get(id)
        return handle is not None and handle.cancel(reason)

    def get(self, id: str) -> TaskHandle[Any] | None:
        """Return the handle of an outstanding task, or `None`."""
        return None if self._runtime is None else self._runtime.scheduler.registry.handles.get(id)

    def tasks(self, kind: TaskKind | None = None) -> list[TaskHandle[Any]]:
        """Return the handles of the outstanding tasks, of one kind if given, oldest first.

        Raises:
            ValueError: `kind` is not a `TaskKind`.
        """
        validation.optional(_check_kind, "kind", kind)
        if self._runtime is None:
            return []
        handles = self._runtime.scheduler.registry.handles.copy().values()
        return [handle for handle in handles if kind is None or handle.kind is kind]

    def count(self, kind: TaskKind | None = None) -> int:
        """Return the number of outstanding tasks, of one kind if given.

        Raises:
            ValueError: `kind` is not a `TaskKind`.
        """
        validation.optional(_check_kind, "kind", kind)
        return 0 if self._runtime is None else self._runtime.scheduler.registry.count(kind)

    def health(self) -> Health:
        """Return the manager's condition; the cost grows with the number of outstanding tasks."""
        runtime = self._runtime
        is_inherited = runtime is not None and runtime.portal.is_inherited
        one_offs = [handle.status for handle in self.tasks(TaskKind.ONE_OFF)]
        return Health(
            name=self.name,
            state=self.state,
            ok=self.state in (ManagerState.RUNNING, ManagerState.STOPPING) and not is_inherited,
            waiting=one_offs.count(TaskStatus.WAITING),
            running=one_offs.count(TaskStatus.RUNNING),
            retrying=one_offs.count(TaskStatus.RETRYING),
            loops=self.count(TaskKind.LOOP),
            threads=0 if runtime is None else runtime.scheduler.threads_in_use,
            hook_errors=0 if runtime is None else runtime.dispatcher.hook_errors.raised_count,
            events_dropped=0 if runtime is None else runtime.dispatcher.hook_errors.dropped_count,
        )

    def report_stall(self, id: str, *, elapsed: float) -> None:
        """Report to a task's observers that its attempt takes longer than expected.

        For the `watch()` services of observers. Does nothing if there is no such task.

        Args:
            id: The task's id.
            elapsed: Seconds since the attempt began.
        """
        handle = self.get(id)
        if handle is not None:
            emit.stalled(state_of(handle), elapsed, handle.stack())

    def _entered(self) -> ManagerRuntime:
        if self._runtime is None:
            if self._closed_unused is not None:
                raise ManagerClosedError(f"manager {self.name!r} was closed before it was entered")
            raise ManagerNotRunningError(
                f"manager {self.name!r} is not running yet: enter it with `async with`, or await "
                "open()"
            )
        return self._runtime

    def _runtime_in_loop(self, method: str) -> ManagerRuntime:
        runtime = self._entered()
        runtime.portal.require_loop(method)
        return runtime


def _check_kind(argument: str, kind: object) -> None:
    validation.instances(argument, (kind,), TaskKind)


def _check_timeout(timeout: object) -> None:
    if isinstance(timeout, str):
        raise ValueError(f'timeout must be seconds, "grace" or None, not {timeout!r}')
    validation.seconds("timeout", timeout, at_least=0)


def host_of(manager: Manager, method: str) -> WorkerHost:
    """Return the interface of a running manager for workers.

    Args:
        manager: The manager.
        method: The name of the calling method, for messages.

    Raises:
        ManagerNotRunningError: The manager was not entered.
        ManagerMisuseError: The caller runs in another event loop, thread or process.
    """
    return WorkerHost(manager._runtime_in_loop(method))  # pyright: ignore[reportPrivateUsage]
