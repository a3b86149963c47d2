"""The span around one run or iteration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from opentelemetry import context, trace

from .._events import TaskEvent, TaskStarted
from ._otel_metrics import Instruments

Attributes = dict[str, str | int | float]


class Run:
    """A context manager that keeps the run's span current and in `spans`, and counts it active."""

    __slots__ = ("_event", "_linked", "_metrics", "_span", "_spans", "_token", "_tracer")

    def __init__(
        self,
        event: TaskStarted,
        tracer: trace.Tracer,
        metrics: Instruments,
        spans: dict[str, trace.Span],
        *,
        linked: bool,
    ) -> None:
        self._event = event
        self._tracer = tracer
        self._metrics = metrics
        self._spans = spans
        self._linked = linked

    def __enter__(self) -> None:
        event = self._event
        self._span = self._spans[event.id] = self._start_span()
        self._token = context.attach(trace.set_span_in_context(self._span))
        attributes = task_attributes(event)
        self._metrics.active.add(1, attributes)
        self._metrics.queue_time.record(event.queued_for, attributes)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._metrics.active.add(-1, task_attributes(self._event))
        self._spans.pop(self._event.id, None)
        context.detach(self._token)
        self._span.end()

    def _start_span(self) -> trace.Span:
        event = self._event
        attributes: Attributes = {
            "code.function.name": _function_name(event.fn),
            "background.task.id": event.id,
            "background.task.kind": event.kind.value,
            "background.task.queue_time": event.queued_for,
        }
        if event.iteration:
            attributes["background.task.iteration"] = event.iteration
        if not self._linked:  # the span that is current was so at the submission
            return self._tracer.start_span(event.name, attributes=attributes)
        submitter = trace.get_current_span().get_span_context()
        links = [trace.Link(submitter)] if submitter.is_valid else []
        root = trace.set_span_in_context(trace.INVALID_SPAN)
        return self._tracer.start_span(event.name, root, attributes=attributes, links=links)


def task_attributes(event: TaskEvent) -> Attributes:
    """Return the attributes of every measurement; few tasks differ in them."""
    return {"background.task.name": event.name, "background.task.kind": event.kind.value}


def _function_name(fn: Callable[..., Any]) -> str:
    while isinstance(fn, partial):
        fn = fn.func
    named: Any = fn if hasattr(fn, "__qualname__") else type(fn)
    return f"{named.__module__}.{named.__qualname__}"
