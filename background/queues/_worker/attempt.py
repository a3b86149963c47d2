"""One attempt of a job, from its claim to its settlement."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tenacity import RetryError

from ..._errors import TaskCancelledError
from ..._eventloop.backend import Backend
from ..._events import JobRef
from ..._execution.outcome import Outcome
from ..._execution.runner import FROM_OUTSIDE
from ..._retry import Attempts
from ..._states import TaskStatus
from ..._support import clock
from ..._support.frozen import maker, record
from ..._support.log import log
from .._backoff import Outage
from .._client import Client, key
from .._codec import errors, json_data
from .._errors import QueueError
from .._states import JobState
from ..abc import Claim, Settlement
from .completer import Settler
from .preparation import Plan

if TYPE_CHECKING:
    from ..._execution.handle import TaskHandle

LOST = "its lease was lost"
CANCELLED = "the job was cancelled"
UNSETTLED = "it could not be settled"
OVER = "the attempt has ended"

#: Reasons of cancellations after which another worker is to have the job at once.
_HANDED_BACK = ("shutdown", FROM_OUTSIDE)

_make_job = maker(JobRef)
_make_settlement = maker(Settlement)


@record
class _Verdict:
    """What an attempt has come to."""

    state: JobState
    delay: float = 0.0
    value: Any = None
    error: BaseException | None = None


_make_verdict: Callable[..., _Verdict] = maker(_Verdict)


@record
class Means:
    """What all runs of a worker share; `release` takes one off it."""

    backend: Backend
    client: Client
    settler: Settler
    now: Callable[[], float]
    release: Callable[[JobRun], None]


class JobRun:
    """What a worker knows of a job that it has claimed.

    `held_until` is when its lease ends, on the event loop's clock.
    """

    __slots__ = (
        "_attempts",
        "_means",
        "_saved",
        "_since",
        "claim",
        "handle",
        "held_until",
        "is_cancelled",
        "is_lost",
        "is_over",
        "is_settling",
        "job",
        "plan",
    )

    def __init__(self, means: Means, claim: Claim, plan: Plan, held_until: float) -> None:
        message = claim.message
        self._means = means
        self.claim = claim
        self.plan = plan
        self.held_until = held_until
        self.handle: TaskHandle[Any] | None = None
        self.is_lost = False
        self.is_cancelled = False  # as the broker was asked to
        self.is_over = False  # what it does from now on is none of the attempt's
        self.is_settling = False
        self.job: JobRef = _make_job(
            message.id, message.handler or "", message.queue, claim.attempt, claim.enqueued_at
        )
        self._attempts: Attempts | None = None
        self._saved = False  # an intermediate result
        self._since = 0.0  # when the first attempt began, in seconds since the epoch

    @property
    def attempt(self) -> int:
        return self.claim.attempt

    @property
    def gives_up(self) -> bool:
        """Whether settling the job is not worth another try."""
        return self.is_lost or (self.handle is not None and self.handle._cancelled)

    def lose(self) -> None:
        """End the run, as another worker may have the job by now."""
        if not self.is_lost:
            self.is_lost = True
            log(logging.WARNING, "job %s of %s: %s", self.job.id, self.job.handler, LOST)
            self._cancel(LOST)

    def cancel(self) -> None:
        """End the run, as somebody has cancelled the job."""
        self.is_cancelled = True
        self._cancel(CANCELLED)

    def hand_back(self) -> None:
        """End the run, so that another worker has the job."""
        self._cancel("shutdown")

    def _cancel(self, reason: str) -> None:
        if self.handle is not None:
            self.handle.cancel(reason)

    async def begin(self) -> None:
        plan, now = self.plan, self._means.now
        if plan.policy is None:
            return
        wall = clock.wall()
        has_failed = self.attempt - 1 > self.claim.crashes
        error = self.claim.error if has_failed else None  # else one from before a requeue
        since = None if error is None else error.get("since")
        self._since = since if isinstance(since, float) else wall
        started = now() - max(0.0, wall - self._since)
        self._attempts = Attempts(
            plan.policy,
            plan.fn,
            plan.args,
            plan.kwargs,
            started=started,
            clock=now,
            number=self.attempt,
        )
        await self._attempts.before()

    def drop(self, handle: TaskHandle[Any] | None) -> None:
        """Have a job settled whose run never began: handed back, if there was to be none."""
        if not self.is_lost:
            reason = "shutdown" if handle is None else handle._reason
            verdict = self._judge_cancelled(reason)
            self._means.settler.put(self._settlement(verdict, None), self)
        self._means.release(self)

    async def conclude(self, handle: TaskHandle[Any], outcome: Outcome) -> Outcome:
        self.is_over = True
        try:
            if self.is_lost:
                return self._as_cancelled(handle, outcome, LOST)
            try:
                verdict, result = await self._judge(handle, outcome)
            except BaseException:  # the event loop's cancellation: it is another's, then
                self.drop(None)
                raise
            self.is_settling = True
            accepted = await self._means.settler.settle(self._settlement(verdict, result), self)
        finally:
            self._means.release(self)
        if accepted:
            return self._as_judged(handle, outcome, verdict)
        reason = UNSETTLED if accepted is None else LOST
        log(logging.WARNING, "job %s of %s: %s", self.job.id, self.job.handler, reason)
        return self._as_cancelled(handle, outcome, reason)

    async def _judge(
        self, handle: TaskHandle[Any], outcome: Outcome
    ) -> tuple[_Verdict, bytes | None]:
        """Decide what is to become of the job, and give its result as it is kept with it."""
        cancelled = outcome.status is TaskStatus.CANCELLED
        if cancelled or (handle._cancelled and outcome.status is TaskStatus.FAILED):
            return self._judge_cancelled_run(handle, outcome), None
        me = self._means.backend.current_task()
        try:
            verdict = await self._judge_by_policy(outcome)
            if verdict.state is not JobState.SUCCEEDED:
                return verdict, None
            encoded = self._encode(verdict.value)
        except BaseException as error:  # of the policy's functions, or of the result
            if self._means.backend.ends(me, error):
                raise
            return _judge_raised(error), None
        if not await self._keep(encoded):
            return self._judge_cancelled(handle._reason), None
        with_the_job = self._means.client.results is None or self.plan.passes
        return verdict, encoded if with_the_job else None

    def _judge_cancelled_run(self, handle: TaskHandle[Any], outcome: Outcome) -> _Verdict:
        if handle._reason == FROM_OUTSIDE and not self._means.backend.is_cancelling():
            # On asyncio by awaiting what others have cancelled; handed back, it would do so again.
            assert outcome.error is not None
            return _judge_raised(outcome.error)
        return self._judge_cancelled(handle._reason)

    def _judge_cancelled(self, reason: str | None) -> _Verdict:
        back = not self.is_cancelled and reason in _HANDED_BACK
        return _Verdict(state=JobState.READY if back else JobState.CANCELLED)

    async def _judge_by_policy(self, outcome: Outcome) -> _Verdict:
        attempts, error, value = self._attempts, outcome.error, outcome.value
        if attempts is not None and (error is None or isinstance(error, Exception)):
            delay = await (attempts.returned(value) if error is None else attempts.failed(error))
            if delay is not None:
                error = error or RetryError(attempts.outcome)
                return _Verdict(state=JobState.SCHEDULED, delay=delay, error=error)
            value, error = await attempts.conclude(), None
        if error is not None:
            return _judge_raised(error)
        return _make_verdict(JobState.SUCCEEDED, 0.0, value)

    def _encode(self, value: Any) -> bytes | None:
        """Return a result as it is kept, if it is. Raises what makes it the job's failure."""
        plan = self.plan
        if not (plan.stores or plan.passes):
            return None
        assert plan.dump_result is not None
        what = f"the result of job {self.job.id}"
        plain = plan.dump_result(value)
        return json_data.encode(what, plain, self._means.client.max_payload, checked=True)

    async def _keep(self, encoded: bytes | None) -> bool:
        """Have a result kept if that is not with the job; `False` if it can't be for too long."""
        results = self._means.client.results
        if results is None or not (self.plan.stores or self._saved):
            return True
        outage = Outage("keeping results")
        place = key(self.job.id, self.attempt)
        while True:
            try:
                if self.plan.stores and encoded is not None:
                    await results.save(place, encoded, keep=self.claim.message.keep)
                else:
                    await results.delete(place)
            except Exception as error:
                if self.gives_up:
                    return False
                await outage.failed(error)
            else:
                outage.over()
                return True

    def _settlement(self, verdict: _Verdict, result: bytes | None) -> Settlement:
        error: dict[str, Any] | None = None
        if verdict.error is not None and verdict.state is not JobState.READY:
            error = errors.describe(verdict.error)
            error["since"] = self._since
        settlement: Settlement = _make_settlement(
            self.claim.message.id, self.claim.token, verdict.state, verdict.delay, result, error
        )
        return settlement

    def _as_judged(self, handle: TaskHandle[Any], outcome: Outcome, verdict: _Verdict) -> Outcome:
        if verdict.state is JobState.SUCCEEDED:
            outcome.value, outcome.error = verdict.value, None
            outcome.status = TaskStatus.SUCCEEDED
        elif verdict.error is not None:
            outcome.status, outcome.error = TaskStatus.FAILED, verdict.error
            outcome.is_dead = verdict.state is JobState.DEAD
            if verdict.state is JobState.SCHEDULED:
                outcome.retry_in = verdict.delay
        else:
            return self._as_cancelled(handle, outcome, handle._reason or CANCELLED)
        return outcome

    def _as_cancelled(self, handle: TaskHandle[Any], outcome: Outcome, reason: str) -> Outcome:
        handle._reason = reason
        error = TaskCancelledError(handle.name, handle.id, reason)
        return Outcome(TaskStatus.CANCELLED, outcome.duration, None, error)

    async def save(self, value: Any) -> None:
        """Keep an intermediate result."""
        client, message = self._means.client, self.claim.message
        encoded = json_data.encode(f"a value of job {self.job.id}", value, client.max_payload)
        if self.is_lost or self.is_over:  # a store of results can't tell
            raise QueueError(f"job {self.job.id}: {LOST if self.is_lost else OVER}")
        self._saved = True
        held = await client.save(message.id, self.attempt, self.claim.token, encoded, message.keep)
        if not held:
            self.lose()
            raise QueueError(f"job {self.job.id}: {LOST}")


def _judge_raised(error: BaseException) -> _Verdict:
    interrupted = isinstance(error, KeyboardInterrupt)  # which is the process's, and not the job's
    return _Verdict(state=JobState.READY if interrupted else JobState.DEAD, error=error)
