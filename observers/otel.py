"""Traces and metrics for OpenTelemetry; needs no more than `opentelemetry-api`."""

from __future__ import annotations

from importlib.metadata import distributions
from traceback import format_list

from anyio import current_time
from opentelemetry import metrics, trace
from opentelemetry.trace import StatusCode

from .._events import (
    JobDead,
    JobEnqueued,
    TaskAdded,
    TaskCancelled,
    TaskEvent,
    TaskExpired,
    TaskFailed,
    TaskRetrying,
    TaskStalled,
    TaskStarted,
    TaskSucceeded,
)
from .._observer import Observer
from ._otel_metrics import Instruments
from ._otel_span import Attributes, Run, job_attributes, task_attributes

# Looked up here, as it takes files to be read; there is none for a source tree.
_VERSION = next((found.version for found in distributions(name="anyio-background")), "")


class OpenTelemetryObserver(Observer):
    """Makes a span for each run of a one-off and each iteration of a loop, and measures them.

    - `tracer_provider`, `meter_provider`: default: the global ones, also if they are set later.
    - `linked`: `False` (default) makes a span the child of the one that was current where the task
      was submitted; `True` starts a trace of its own with a link to that span. Choose links for
      tasks that go on long after the request, and for loops started in one.

    A span has the task's name, is current inside the task's function, and has the attributes
    `code.function.name`, `background.task.id`, `.kind`, `.iteration` (of a loop), `.queue_time`
    (seconds), `.attempts`, `.outcome` (`succeeded`, `failed`, `cancelled`, `expired`),
    `.cancel_reason`, and `error.type`: the class of the error, or `expired`. Failed and expired
    spans have the status ERROR. The error on which the policy gave up is recorded as an exception;
    `background.task.retry` and `background.task.stalled` are events of the span.

    Each attempt of a durable job is a run of its own. Its span has the kind CONSUMER and the
    attributes `background.job.id`, `.queue` and `.attempt`; the span that it is a child of, or
    linked to, is the one that was current where the job was enqueued, in whichever process. An
    attempt that is followed by another has the outcome `retrying`, and its error is recorded.

    Metrics: the counters `background.task.added`, `.finished` and `.retries`, the histograms
    `background.task.duration` and `.queue_time` in seconds, and `background.task.active`, which
    goes up and down. Tasks are added and finished once; the others count each run or iteration.
    Attributes are `background.task.name` and `.kind`, `background.job.queue` for jobs, with
    `.outcome` and `error.type` at the end. Of jobs themselves there are the counters
    `background.job.enqueued` and `.dead`, and the histogram `background.job.queue_time`: seconds
    from enqueueing to the first attempt, a delay included, as the clocks of two hosts may have it.
    Attributes are `background.job.handler` and `.queue`, and `error.type` of the dead.

        Manager(observers=[OpenTelemetryObserver(linked=True)])

    One observer may serve any number of managers whose running tasks have different ids.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        *,
        linked: bool = False,
    ) -> None:
        self._linked = linked
        self._tracer = trace.get_tracer("background", _VERSION, tracer_provider)
        self._metrics = Instruments(metrics.get_meter("background", _VERSION, meter_provider))
        self._runs: dict[str, Run] = {}  # by task, while they are under way

    def around_task(self, event: TaskStarted) -> Run:
        return Run(event, self._tracer, self._metrics, self._runs, linked=self._linked)

    def on_task_added(self, event: TaskAdded) -> None:
        self._metrics.added.add(1, task_attributes(event))

    def on_task_retrying(self, event: TaskRetrying) -> None:
        measured, told = task_attributes(event), _attempt(event)
        told["background.task.delay"] = event.delay
        if event.error is not None:
            measured["error.type"] = told["exception.type"] = _type(event.error)
            told["exception.message"] = _message(event.error)
        self._metrics.retries.add(1, measured)
        self._span(event).add_event("background.task.retry", told)
        if event.job is not None:
            self._ended_for_now(event, event.error)

    def on_task_stalled(self, event: TaskStalled) -> None:
        told = _attempt(event)
        told["background.task.elapsed"] = event.elapsed
        told["code.stacktrace"] = "".join(format_list(list(event.stack)))
        self._span(event).add_event("background.task.stalled", told)

    def on_task_succeeded(self, event: TaskSucceeded) -> None:
        self._ended(event, "succeeded", event.duration, final=event.final)

    def on_task_failed(self, event: TaskFailed) -> None:
        error = event.error
        span = self._ended(event, "failed", event.duration, final=event.final, error=_type(error))
        _record(error, span)

    def on_task_cancelled(self, event: TaskCancelled) -> None:
        span = self._ended(event, "cancelled", event.duration)
        if event.reason is not None:
            span.set_attribute("background.task.cancel_reason", event.reason)

    def on_task_expired(self, event: TaskExpired) -> None:
        span = self._ended(event, "expired", event.duration, error="expired")
        span.set_status(StatusCode.ERROR, f"outlived its lifespan of {event.lifespan:g} s")

    def on_job_enqueued(self, event: JobEnqueued) -> None:
        self._metrics.jobs_enqueued.add(1, job_attributes(event.job))

    def on_job_dead(self, event: JobDead) -> None:
        measured = job_attributes(event.job) | {"error.type": _type(event.error)}
        self._metrics.jobs_dead.add(1, measured)

    def _ended_for_now(self, event: TaskEvent, error: Exception | None) -> None:
        """Measure the end of a job's attempt that is followed by another, in another task."""
        run = self._runs.get(event.id)
        duration = None if run is None else current_time() - run.began
        kind = None if error is None else _type(error)
        span = self._ended(event, "retrying", duration, error=kind)
        if error is not None:
            _record(error, span)

    def _ended(
        self,
        event: TaskEvent,
        outcome: str,
        duration: float | None,
        *,
        final: bool = True,
        error: str | None = None,
    ) -> trace.Span:
        """Measure an end, and return the span that it is the end of."""
        result: Attributes = {"background.task.outcome": outcome}
        if error is not None:
            result["error.type"] = error
        measured = task_attributes(event) | result
        if final:
            self._metrics.finished.add(1, measured)
        if duration is None:  # a span that is open now has had its own end
            return trace.INVALID_SPAN
        self._metrics.duration.record(duration, measured)
        span = self._span(event)
        span.set_attributes(result | {"background.task.attempts": event.attempt})
        return span

    def _span(self, event: TaskEvent) -> trace.Span:
        run = self._runs.get(event.id)
        return trace.INVALID_SPAN if run is None else run.span


def _attempt(event: TaskEvent) -> Attributes:
    return {"background.task.attempt": event.attempt}


def _record(error: BaseException, span: trace.Span) -> None:
    span.set_status(StatusCode.ERROR, f"{_type(error)}: {_message(error)}")
    span.record_exception(error)


def _type(error: BaseException) -> str:
    module, name = type(error).__module__, type(error).__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(can't be printed)"
