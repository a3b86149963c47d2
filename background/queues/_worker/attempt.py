"""One attempt of a job, from its claim to its settlement."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any

from tenacity import AsyncRetrying, RetryError

from ..._errors import DuplicateTaskError
from ..._events import JobRef
from ..._execution.handle import TaskHandle
from ..._execution.outcome import FROM_OUTSIDE, Outcome
from ..._lifecycle.host import WorkerHost, current_interceptor
from ..._retry import Attempts
from ..._states import TaskStatus
from ..._support import clock, stacks
from ..._support.log import log
from ..._task import Task
from .._backoff import BrokerBackoff
from .._client import Client, result_key
from .._codec import json_data
from .._errors import QueueError
from .._verdicts import Verdict, unwrapped
from ..abc import Claim, Settlement
from .decision import CANCELLED, LOST, cancelled, conclude, decide

_ENDED = "the attempt has ended"


@dataclass(slots=True)
class WorkerContext:
    """The resources that all attempts of a worker share.

    Args:
        host: The manager that runs the attempts.
        client: The broker and the store of results.
        settle: Settles a job; returns whether its lease was held, or `None` if that is unknown.
        settle_soon: Settles a job without waiting for the answer.
        remove: Removes an attempt from the attempts in flight.
    """

    host: WorkerHost
    client: Client
    settle: Callable[[JobAttempt, Settlement], Awaitable[bool | None]]
    settle_soon: Callable[[JobAttempt, Settlement], None]
    remove: Callable[[JobAttempt], None]


class JobAttempt:
    """A claimed job, the task that runs it, and their state in the worker.

    Args:
        worker: The resources that all attempts of the worker share.
        claim: The claim.
        task: The task to run.
        policy: Decides about another attempt.
        dump_result: Converts a result to plain data.
        stores_result: Whether the result is stored for the enqueuer.
        passes_result: Whether other jobs depend on it.
        previous: The results of its dependencies.
        held_until: When the lease ends, on the event loop's clock.
        saved: The value that an earlier attempt saved.
        misfit: The reason why this worker can't run the job, though another one may.
    """

    __slots__ = (
        "_attempts",
        "_cancel_reason",
        "_cancel_requested",
        "_dump_result",
        "_handle",
        "_passes_result",
        "_policy",
        "_since",
        "_started_at",
        "_stores_result",
        "_worker",
        "claim",
        "has_ended",
        "held_until",
        "is_lost",
        "is_settling",
        "job",
        "job_cancelled",
        "misfit",
        "previous",
        "saved",
        "task",
    )

    def __init__(
        self,
        worker: WorkerContext,
        claim: Claim,
        task: Task[Any],
        policy: AsyncRetrying | None,
        dump_result: Callable[[Any], Any],
        stores_result: bool,
        passes_result: bool,
        previous: Any,
        held_until: float,
        saved: Any,
        misfit: Exception | None,
    ) -> None:
        message = claim.message
        self.claim = claim
        self.task = task
        self.previous = previous
        self.held_until = held_until
        self.saved = saved
        self.misfit = misfit
        self.job = JobRef(
            id=message.id,
            handler=message.handler or "",
            queue=message.queue,
            attempt=claim.attempt,
            enqueued_at=claim.enqueued_at,
        )
        self.is_lost = False
        self.job_cancelled = False
        self.has_ended = False  # whether the function has returned
        self.is_settling = False
        self._worker = worker
        self._policy = policy
        self._dump_result = dump_result
        self._stores_result = stores_result
        self._passes_result = passes_result
        self._handle: TaskHandle[Any] | None = None
        self._attempts: Attempts | None = None
        self._cancel_requested = False
        self._cancel_reason: str | None = None
        self._started_at: float | None = None  # in seconds since the epoch, once it began
        self._since = 0.0  # when the first attempt began, in seconds since the epoch

    @property
    def number(self) -> int:
        """The number of the attempt."""
        return self.claim.attempt

    @property
    def meta(self) -> Mapping[str, Any]:
        """The job's metadata."""
        return self.task.meta

    @property
    def handle(self) -> TaskHandle[Any] | None:
        """The handle of its task, once it was started."""
        return self._handle

    @property
    def gives_up(self) -> bool:
        """Whether retrying a settlement of the job is pointless."""
        return self.is_lost or self._cancel_requested

    def start(self, context: Context) -> None:
        """Run the job as a task of the manager."""
        run = self._worker.host.run_attempt
        try:
            self._handle = run(self.task, context, self.job, self)
        except DuplicateTaskError:  # an earlier attempt, whose lease was lost, still runs
            self._handle = run(replace(self.task, id=None), context, self.job, self)
        if self.job_cancelled:  # an observer cancelled it before there was a handle
            self.cancel()

    def lose(self) -> None:
        """Cancel the run, because another worker can claim the job."""
        if not self.is_lost:
            self.is_lost = True
            self._log(LOST)
            self._cancel(LOST)

    def cancel(self) -> None:
        """Cancel the run, because the job was cancelled."""
        self.job_cancelled = True
        self._cancel(CANCELLED)

    def settle_without_run(self, settlement: Settlement) -> None:
        """Settle the job instead of running it."""
        self._worker.settle_soon(self, settlement)
        self._worker.remove(self)

    def release(self) -> None:
        """Cancel the run, and release the job."""
        self._cancel("shutdown")

    def _cancel(self, reason: str) -> None:
        if self._handle is not None:
            self._handle.cancel(reason)

    def _log(self, reason: str) -> None:
        log(logging.WARNING, "job '%s' (%s): %s", self.job.handler, self.job.id, reason)

    # The parts of `RunInterceptor`

    async def before_run(self) -> None:
        self._started_at = wall = clock.wall()
        if self._policy is None:
            return
        now = self._worker.host.backend.now
        # A claim that no worker received is not an attempt.
        number = self.number - self.claim.unconfirmed
        has_failed = number - 1 > self.claim.crashes
        error = self.claim.error if has_failed else None  # otherwise it precedes a requeue
        since = None if error is None else error.get("since")
        self._since = since if isinstance(since, float) else wall
        task = self.task
        self._attempts = Attempts(
            self._policy,
            task.fn,
            task.args,
            task.kwargs,
            started=now() - max(0.0, wall - self._since),
            clock=now,
            number=number,
        )
        await self._attempts.before()

    def on_cancel_requested(self, reason: str | None) -> None:
        self._cancel_requested = True
        self._cancel_reason = reason

    def on_never_started(self, reason: str | None) -> None:
        if not self.is_lost:
            outcome = Outcome(TaskStatus.CANCELLED, 0.0, cancel_reason=reason)
            self.settle_without_run(self._decide(outcome, None))
        else:
            self._worker.remove(self)

    async def after_run(self, outcome: Outcome) -> Outcome:
        self.has_ended = True
        try:
            if self.is_lost:
                return cancelled(outcome, LOST)
            try:
                outcome, result = await self._judge(outcome)
            except BaseException:  # the event loop is shutting down, so the job is released
                self.on_never_started("shutdown")
                raise
            self.is_settling = True
            settlement = self._decide(outcome, result)
            accepted = await self._worker.settle(self, settlement)
        finally:
            self._worker.remove(self)
        if accepted is False:  # the completer has logged settlements that may not have arrived
            self._log(LOST)
        return conclude(outcome, settlement, accepted)

    def _decide(self, outcome: Outcome, result: bytes | None) -> Settlement:
        return decide(
            self.claim,
            outcome,
            job_cancelled=self.job_cancelled,
            result=result,
            since=self._since,
            began=self._started_at,
            now=clock.wall(),
        )

    async def _judge(self, outcome: Outcome) -> tuple[Outcome, bytes | None]:
        """Apply the policy, and store the result; return the result that is stored with the job."""
        backend = self._worker.host.backend
        was_cancelled = outcome.status is TaskStatus.CANCELLED or self._cancel_requested
        if was_cancelled and outcome.status is not TaskStatus.SUCCEEDED:
            if outcome.cancel_reason == FROM_OUTSIDE and not backend.is_cancelling():
                # On asyncio, the function awaited something that was cancelled. It would do so
                # again if the job were released.
                return _failed(outcome, outcome.error), None
            return cancelled(outcome, outcome.cancel_reason or self._cancel_reason), None
        me = backend.current_task()
        try:
            outcome.error = unwrapped(outcome.error)
            await self._apply_policy(outcome)
            if outcome.status is not TaskStatus.SUCCEEDED:
                return outcome, None
            encoded = self._encode(outcome.value)
        except BaseException as error:  # from the policy's callbacks, or about the result
            if backend.ends(me, error):
                raise
            return _failed(outcome, stacks.without_ours(error)), None
        if not await self._store(encoded):
            return cancelled(outcome, self._cancel_reason), None
        with_the_job = self._worker.client.results is None or self._passes_result
        return outcome, encoded if with_the_job else None

    async def _apply_policy(self, outcome: Outcome) -> None:
        attempts, error = self._attempts, outcome.error
        if attempts is None or not (error is None or isinstance(error, Exception)):
            return
        if isinstance(error, Verdict):
            return
        if error is None:
            delay = await attempts.returned(outcome.value)
        else:
            delay = await attempts.failed(error)
        if delay is None:
            outcome.value = await attempts.conclude()
            outcome.status, outcome.error = TaskStatus.SUCCEEDED, None
        else:
            outcome.status, outcome.error = TaskStatus.FAILED, error or RetryError(attempts.outcome)
            outcome.retry_in = delay

    def _encode(self, value: Any) -> bytes | None:
        """Encode a result, or return `None` if it is not stored; an error fails the job."""
        if not (self._stores_result or self._passes_result):
            return None
        what = f"the result of job {self.job.id}"
        limit = self._worker.client.max_payload
        return json_data.encode(what, self._dump_result(value), limit, checked=True)

    async def _store(self, encoded: bytes | None) -> bool:
        """Store a result apart from the job; return `False` if that fails for too long."""
        results = self._worker.client.results
        if results is None or not self._stores_result or encoded is None:
            return True
        key = result_key(self.job.id, self.number)

        async def store() -> None:
            await results.save(key, encoded, retention=self.claim.message.retention)

        try:
            backoff = BrokerBackoff("storing results", self._worker.client.result_outages)
            await backoff.call(store, lambda error: self.gives_up)
        except Exception:
            return False
        return True

    async def save(self, value: Any) -> None:
        """Store an intermediate result, as `JobContext.save()` does."""
        client, message = self._worker.client, self.claim.message
        client.check()
        encoded = json_data.encode(f"a value of job {self.job.id}", value, client.max_payload)
        if self.is_lost or self.has_ended:
            raise QueueError(f"job {self.job.id}: {LOST if self.is_lost else _ENDED}")
        if not await client.broker.save(message.id, self.claim.token, encoded):
            self.lose()
            raise QueueError(f"job {self.job.id}: {LOST}")
        self.saved = value


def current_attempt() -> JobAttempt | None:
    """Return the attempt that the running code belongs to."""
    interceptor = current_interceptor()
    return interceptor if isinstance(interceptor, JobAttempt) else None


def _failed(outcome: Outcome, error: BaseException | None) -> Outcome:
    return Outcome(TaskStatus.FAILED, outcome.duration, error=error)
