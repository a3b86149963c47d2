"""Traces and metrics for OpenTelemetry; needs only `opentelemetry-api`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import distributions
from traceback import format_exception, format_list

from anyio import current_time
from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, StatusCode, get_tracer

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
from ._otel_span import (
    Attributes,
    Origin,
    RunSpan,
    exportable,
    job_attributes,
    message_attributes,
    task_attributes,
)

__all__ = ["OpenTelemetryObserver"]


def __dir__() -> list[str]:
    return __all__


# At import time, because it reads files. A source tree that is not installed has no version.
_VERSION = next((found.version for found in distributions(name="anyio-background")), "")

_ORIGINS = ("parent", "link", None)


class OpenTelemetryObserver(Observer):
    """Records a span and metrics for each run of a one-off and each iteration of a loop.

    One observer may serve several managers if their running tasks have different ids.

    A span has the task's name and is current inside the task's function. Attributes:

    - `code.function.name`
    - `background.task.id`, `.kind`, `.iteration` (loops only), `.queue_time` (seconds), `.attempts`
    - `background.task.outcome`: `succeeded`, `failed`, `cancelled`, `expired` or `retrying`
    - `background.task.cancel_reason`
    - `error.type`: the class of the error, or `expired`

    Failed and expired spans have the status ERROR. The error of the last attempt is recorded as an
    exception. Retries and stalls are the span events `background.task.retry` and
    `background.task.stalled`.

    Each attempt of a durable job has its own span, of kind CONSUMER, with the attributes
    `background.job.id`, `.handler`, `.queue` and `.attempt`. Its parent, or the span that it links
    to, is the span that was current when the job was enqueued, in any process. An attempt that will
    be retried has the outcome `retrying`, and its error is recorded. Each job that this process
    enqueues has a span of kind PRODUCER without a duration, a child of the current span, with the
    name `enqueue` and the queue. Both kinds have `messaging.system` (`background`),
    `messaging.operation.name` and `.type`, `messaging.destination.name` (the queue) and
    `messaging.message.id`.

    Tasks have the counters `background.task.added`, `.finished` and `.retries`, the histograms
    `background.task.duration` and `.queue_time` in seconds, and the up-down counter
    `background.task.active`. A task is added and finished once; the other instruments measure each
    run or iteration. Attributes are `background.task.name` and `.kind`, for jobs also
    `background.job.queue`, and for ends also `background.task.outcome` and `error.type`.

    Jobs have the counters `background.job.enqueued` and `.dead`, and the histogram
    `background.job.queue_time`: seconds from enqueueing to the first attempt, including a delay,
    measured by the clocks of two hosts. Attributes are `background.job.handler` and `.queue`, and
    for dead jobs also `error.type`. Spans and metrics of jobs whose handler this process does not
    have are named `unknown handler`, because their names come from outside.

    Lone surrogates are escaped, and texts of more than 10,000 characters are cut, because exporters
    drop a whole batch for them.

    Args:
        tracer_provider: The tracer provider; by default the global one, even if it is set later.
        meter_provider: The meter provider; by default the global one, even if it is set later.
        linked: Whether a span starts a new trace with a link to the span that was current when the
            task was submitted, instead of being a child of that span. Use links for tasks that run
            long after the request, and for loops that a request starts. For jobs there is
            `trace`.
        trace: For jobs, the use of the trace context that came with the job: `"parent"` continues
            the enqueuer's trace, with its sampling; `"link"` starts a new trace with a link to it;
            `None` starts a new trace and ignores it. Choose one of the latter for a queue that
            others may write to.

    Raises:
        ValueError: An argument is not valid; the message names it.

    Example:
        ```python
        Manager(observers=[OpenTelemetryObserver(linked=True)])
        ```
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        *,
        linked: bool = False,
        trace: Origin = "parent",
    ) -> None:
        if not isinstance(linked, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"linked must be True or False, not {linked!r}")
        if trace not in _ORIGINS:
            raise ValueError(f"trace must be 'parent', 'link' or None, not {trace!r}")
        self._linked = linked
        self._trace: Origin = trace
        self._tracer = get_tracer("background", _VERSION, tracer_provider)
        self._metrics = Instruments(metrics.get_meter("background", _VERSION, meter_provider))
        self._runs: dict[str, RunSpan] = {}  # the runs in progress, by task id

    def __repr__(self) -> str:
        return f"OpenTelemetryObserver(linked={self._linked}, trace={self._trace!r})"

    def around_task(self, event: TaskStarted) -> RunSpan:
        origin: Origin = "link" if self._linked else "parent"
        if event.job is not None:
            origin = self._trace
        return RunSpan(event, self._tracer, self._metrics, self._runs, origin)

    def on_task_added(self, event: TaskAdded) -> None:
        self._metrics.added.add(1, task_attributes(event))

    def on_task_retrying(self, event: TaskRetrying) -> None:
        measured, details = task_attributes(event), _attempt(event)
        details["background.task.delay"] = event.delay
        if event.error is not None:
            measured["error.type"] = details["exception.type"] = _type(event.error)
            details["exception.message"] = _message(event.error)
        self._metrics.retries.add(1, measured)
        self._span(event).add_event("background.task.retry", details)
        if event.job is not None:
            self._attempt_ended(event, event.error)

    def on_task_stalled(self, event: TaskStalled) -> None:
        details = _attempt(event)
        details["background.task.elapsed"] = event.elapsed
        details["code.stacktrace"] = exportable("".join(format_list(list(event.stack))))
        self._span(event).add_event("background.task.stalled", details)

    def on_task_succeeded(self, event: TaskSucceeded) -> None:
        self._ended(event, "succeeded", event.duration, final=event.final)

    def on_task_failed(self, event: TaskFailed) -> None:
        error = event.error
        span = self._ended(event, "failed", event.duration, final=event.final, error=_type(error))
        _record(error, span)

    def on_task_cancelled(self, event: TaskCancelled) -> None:
        span = self._ended(event, "cancelled", event.duration)
        if event.reason is not None:
            span.set_attribute("background.task.cancel_reason", exportable(event.reason))

    def on_task_expired(self, event: TaskExpired) -> None:
        span = self._ended(event, "expired", event.duration, error="expired")
        span.set_status(StatusCode.ERROR, f"outlived its lifespan of {event.lifespan:g} s")

    def on_job_enqueued(self, event: JobEnqueued) -> None:
        job = event.job
        self._metrics.jobs_enqueued.add(1, job_attributes(job, job.handler))
        attributes = message_attributes(job, "send")
        name = f"enqueue {attributes['messaging.destination.name']}"
        self._tracer.start_span(name, kind=SpanKind.PRODUCER, attributes=attributes).end()

    def on_job_dead(self, event: JobDead) -> None:
        run = self._runs.get(event.job.id)
        handler = event.job.handler if run is None else run.event.name
        measured = job_attributes(event.job, handler) | {"error.type": _type(event.error)}
        self._metrics.jobs_dead.add(1, measured)

    def _attempt_ended(self, event: TaskEvent, error: Exception | None) -> None:
        """Record the end of a job's attempt; the next attempt is another task."""
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
        """Record the end of a run.

        Args:
            event: The event of the end.
            outcome: The value of `background.task.outcome`.
            duration: Seconds that the run took, or `None` if no run was in progress.
            final: Whether the task has ended.
            error: The value of `error.type`, or `None`.

        Returns:
            The span of the run, or an invalid span if no run was in progress.
        """
        result: Attributes = {"background.task.outcome": outcome}
        if error is not None:
            result["error.type"] = error
        measured = task_attributes(event) | result
        if final:
            self._metrics.finished.add(1, measured)
        if (
            duration is None
        ):  # no run was in progress; a span under this id belongs to an earlier run
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
    if span.is_recording():
        texts = {
            "exception.type": _type(error),
            "exception.message": _message(error),
            "exception.stacktrace": _stacktrace(error),
        }
        span.record_exception(error, texts)


def _type(error: BaseException) -> str:
    module, name = type(error).__module__, type(error).__qualname__
    return exportable(name if module == "builtins" else f"{module}.{name}")


def _message(error: BaseException) -> str:
    return _text(lambda: str(error))


def _stacktrace(error: BaseException) -> str:
    return _text(lambda: "".join(format_exception(type(error), error, error.__traceback__)))


def _text(make: Callable[[], str]) -> str:
    try:
        return exportable(make())
    except Exception:  # from methods and attributes of the error's class
        return "(can't be printed)"
