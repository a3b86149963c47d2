"""The caller's end of a task that was submitted."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Generator, Mapping
from contextvars import Context
from math import inf
from traceback import FrameSummary
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from .._errors import TaskCancelledError, TaskExpiredError
from .._eventloop.protection import uninterrupted
from .._states import TaskKind, TaskStatus
from .._support import stacks
from .._support.log import log
from .._task import Task

if TYPE_CHECKING:
    from .._events import JobRef
    from .._notify.dispatcher import Hooks
    from .._schedule import Ticks
    from .outcome import Durable

T = TypeVar("T")

FINAL = frozenset(
    {TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.EXPIRED}
)

#: The name of the function that calls a task's own in a thread.
THREAD_ENTRY = "call_in_thread"


def log_failure(name: str, id: str, error: BaseException | None) -> None:
    """Log a failure that nobody else is told of."""
    log(logging.ERROR, "task %r (%r) failed", name, id, error=error)


class Owner(Protocol):
    """What a handle asks of the manager that made it."""

    event: type[anyio.Event]

    def cancel_handle(self, handle: TaskHandle[Any], reason: str | None) -> bool: ...

    def require_here(self, method: str) -> None: ...


class TaskHandle(Generic[T]):
    """A submitted task: what it is, how it stands, and its result. Awaiting it is `result()`.

    - `id`, `name`, `kind`, `meta`, `task`: what was submitted.
    - `job`: the durable job of which it is an attempt, or `None`.
    - `status`: see `TaskStatus`.
    - `attempt`: of this run or iteration, counted from 1; 0 before the first.
    - `iteration`: of a loop, counted from 1; 0 before the first and for a one-off.
    - `submitted_at`; `started_at` and `finished_at`, `None` until then: seconds since the epoch. A
      loop's `started_at` is that of its latest iteration.
    - `error`: what the task failed with, for a loop its latest failed iteration; else `None`.

    Wait for it in the manager's event loop; `cancel()` and the attributes work from any thread.
    """

    # What the outside may read is set by the runner and the engine alone.
    __slots__ = (
        "__weakref__",
        "_cancelled",
        "_context",
        "_coroutine",
        "_done",
        "_due",
        "_durable",
        "_expires",
        "_failures",
        "_hooks",
        "_native",
        "_owner",
        "_pause",
        "_reason",
        "_result",
        "_scope",
        "_thread",
        "_ticks",
        "_traceback",
        "_unheard",
        "_waiters",
        "attempt",
        "error",
        "finished_at",
        "id",
        "iteration",
        "job",
        "started_at",
        "status",
        "submitted_at",
        "task",
    )

    def __init__(
        self,
        task: Task[T],
        id: str,
        owner: Owner,
        hooks: Hooks,
        context: Context,
        now: float,
        wall: float,
    ) -> None:
        self.task = task
        self.id = id
        self.status = TaskStatus.WAITING
        self.attempt = 0
        self.iteration = 0
        self.submitted_at = wall
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.error: BaseException | None = None
        self.job: JobRef | None = None
        self._durable: Durable | None = None
        self._owner = owner
        self._hooks = hooks
        self._context = context
        self._due = now + task.delay
        self._expires = inf if task.lifespan is None else now + task.lifespan
        self._ticks: Ticks | None = None
        self._failures = 0
        self._cancelled = False
        self._reason: str | None = None
        self._result: T | None = None
        self._traceback: TracebackType | None = None
        self._done: anyio.Event | None = None
        self._waiters = 0
        self._unheard = False  # it failed, and nobody was told but those who wait
        # Only while a run or an iteration is under way:
        self._native: object = None
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._scope: anyio.CancelScope | None = None
        self._pause: anyio.CancelScope | None = None
        self._thread: int | None = None

    @property
    def name(self) -> str:
        assert self.task.name is not None
        return self.task.name

    @property
    def kind(self) -> TaskKind:
        return self.task.kind

    @property
    def meta(self) -> Mapping[str, Any]:
        return self.task.meta

    @uninterrupted
    async def wait(self) -> TaskStatus:
        """Wait until the task has ended and return how; never raises for the task's fate."""
        if self.status in FINAL:
            await checkpoint()
            return self.status
        self._owner.require_here("wait")
        if self._done is None:
            self._done = self._owner.event()
        self._waiters += 1
        try:
            await self._done.wait()
        except BaseException:
            if self._waiters == 1 and self._unheard:
                self._log_failure()
            raise
        finally:
            self._waiters -= 1
        self._unheard = False
        return self.status

    def _log_failure(self) -> None:
        """Log the failure of a task that nobody else is told of."""
        self._unheard = False
        log_failure(self.name, self.id, self.error)

    async def result(self) -> T:
        """Wait for the task and return what its function returned.

        Raises the task's own error if it failed, `TaskCancelledError` if it was cancelled (also when a
        loop was stopped) and `TaskExpiredError` if its lifespan ended first. Any number of waiters may
        wait; cancelling one of them does not touch the task.
        """
        status = await self.wait()
        if status is TaskStatus.CANCELLED:
            raise TaskCancelledError(self.name, self.id, self._reason)
        if status is TaskStatus.EXPIRED:
            assert self.task.lifespan is not None
            raise TaskExpiredError(self.name, self.id, self.task.lifespan)
        if status is TaskStatus.FAILED:
            assert self.error is not None
            # Raising adds to the traceback in place: each waiter starts from the task's own.
            raise BaseException.with_traceback(self.error, self._traceback)
        return self._result  # type: ignore[return-value]

    def __await__(self) -> Generator[Any, Any, T]:
        return self.result().__await__()

    @uninterrupted
    def cancel(self, reason: str | None = None) -> bool:
        """Cancel the task; return whether it was still outstanding.

        A task that has not started ends at once. A coroutine is cancelled at the `await` where it
        stands. A worker thread can't be interrupted: the task ends when the thread's function does.
        """
        return self._owner.cancel_handle(self, reason)

    def stack(self) -> list[FrameSummary]:
        """Return where the task's function stands now, outermost frame first.

        For a sync function these are its thread's frames. Empty unless an attempt is under way.
        """
        if self.status is not TaskStatus.RUNNING:
            return []
        if self._thread is not None:
            return stacks.of_thread(self._thread, THREAD_ENTRY)
        return stacks.of_coroutine(self._coroutine)

    def __repr__(self) -> str:
        return f"<TaskHandle {self.name!r} {self.id} {self.status}>"
