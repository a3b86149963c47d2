"""The span around one run or iteration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Literal

from anyio import current_time
from opentelemetry import context, trace
from opentelemetry.trace import SpanKind

from .._events import JobRef, TaskEvent, TaskStarted
from ._otel_metrics import Instruments

Attributes = dict[str, str | int | float]

#: The use of the span in which a task was submitted or a job was enqueued.
Origin = Literal["parent", "link"] | None

_LONGEST = 10_000  # characters of a text; exporters reject batches that are too large


class RunSpan:
    """A context manager around one run, with a span that is current inside it.

    `began` is the start on the event loop's clock; it is set for jobs only.

    Args:
        event: The start of the run.
        tracer: The tracer that starts the span.
        metrics: The instruments that count and measure the run.
        runs: The runs in progress, by task id; this run is in it between enter and exit.
        origin: The use of the submitter's span, which is current: as the parent, in a link from a
            new trace, or none at all.
    """

    __slots__ = ("_metrics", "_origin", "_runs", "_token", "_tracer", "began", "event", "span")

    def __init__(
        self,
        event: TaskStarted,
        tracer: trace.Tracer,
        metrics: Instruments,
        runs: dict[str, RunSpan],
        origin: Origin,
    ) -> None:
        self.event = event
        self._tracer = tracer
        self._metrics = metrics
        self._runs = runs
        self._origin: Origin = origin

    def __enter__(self) -> None:
        event = self.event
        self.span = self._start_span()
        self._runs[event.id] = self
        self._token = context.attach(trace.set_span_in_context(self.span))
        attributes = task_attributes(event)
        self._metrics.active.add(1, attributes)
        self._metrics.queue_time.record(event.queued_for, attributes)
        if event.job is not None:
            self.began = current_time()
            if event.job.attempt == 1:
                waited = max(
                    0.0, event.time - event.job.enqueued_at
                )  # two hosts' clocks may differ
                attributes = job_attributes(event.job, event.name)
                self._metrics.job_queue_time.record(waited, attributes)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._metrics.active.add(-1, task_attributes(self.event))
        self._runs.pop(self.event.id, None)
        context.detach(self._token)
        self.span.end()

    def _start_span(self) -> trace.Span:
        event = self.event
        attributes: Attributes = {
            "code.function.name": _function_name(event.fn),
            "background.task.id": exportable(event.id),
            "background.task.kind": event.kind.value,
            "background.task.queue_time": event.queued_for,
        }
        if event.iteration:
            attributes["background.task.iteration"] = event.iteration
        kind = SpanKind.INTERNAL
        if event.job is not None:
            # The messaging conventions define this kind for spans that process a message:
            # https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/#span-kind
            kind = SpanKind.CONSUMER
            attributes |= message_attributes(event.job, "process")
            attributes["background.job.attempt"] = event.job.attempt
        name = exportable(event.name)
        if self._origin == "parent":
            return self._tracer.start_span(name, kind=kind, attributes=attributes)
        submitter = trace.get_current_span().get_span_context()
        is_linked = self._origin == "link" and submitter.is_valid
        links = [trace.Link(submitter)] if is_linked else []
        root = trace.set_span_in_context(trace.INVALID_SPAN)
        return self._tracer.start_span(name, root, kind=kind, attributes=attributes, links=links)


def task_attributes(event: TaskEvent) -> Attributes:
    """Return the attributes of a task's measurements; they have few distinct values."""
    attributes: Attributes = {
        "background.task.name": exportable(event.name),
        "background.task.kind": event.kind.value,
    }
    if event.job is not None:
        attributes["background.job.queue"] = exportable(event.job.queue)
    return attributes


def job_attributes(job: JobRef, handler: str) -> Attributes:
    """Return the attributes of a job's measurements; they have few distinct values.

    Args:
        job: The job.
        handler: The name of its handler, or one name for all handlers that are unknown here.
    """
    return {
        "background.job.handler": exportable(handler),
        "background.job.queue": exportable(job.queue),
    }


def message_attributes(job: JobRef, operation: Literal["send", "process"]) -> Attributes:
    """Return the attributes of a span that sends or processes a job's message.

    Those of `messaging.*` are from version 1.44.0 of the semantic conventions, in which they are
    not stable yet: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
    """
    id, queue = exportable(job.id), exportable(job.queue)
    return {
        "background.job.id": id,
        "background.job.handler": exportable(job.handler),
        "background.job.queue": queue,
        "messaging.system": "background",
        "messaging.operation.name": "enqueue" if operation == "send" else operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": queue,
        "messaging.message.id": id,
    }


def exportable(text: str) -> str:
    """Return a text that exporters accept: lone surrogates are escaped, and long texts cut."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _function_name(fn: Callable[..., Any]) -> str:
    while isinstance(fn, partial):
        fn = fn.func
    named: Any = fn if hasattr(fn, "__qualname__") else type(fn)
    return exportable(f"{named.__module__}.{named.__qualname__}")
