"""The OpenTelemetry SDK with in-memory exporters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from background.observers.otel import OpenTelemetryObserver


class Telemetry:
    """A tracer provider and a meter provider with an in-memory exporter and reader."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader])
        self.tracer = self.tracers.get_tracer("test")

    def observer(self, **options: Any) -> OpenTelemetryObserver:
        return OpenTelemetryObserver(self.tracers, self.meters, **options)

    @property
    def spans(self) -> list[ReadableSpan]:
        """The ended spans, oldest first, without those of enqueueing."""
        spans = self._exporter.get_finished_spans()
        return [span for span in spans if span.kind is not SpanKind.PRODUCER]

    @property
    def producers(self) -> list[ReadableSpan]:
        """The spans of enqueueing, oldest first."""
        spans = self._exporter.get_finished_spans()
        return [span for span in spans if span.kind is SpanKind.PRODUCER]

    @property
    def span(self) -> ReadableSpan:
        (span,) = self.spans
        return span

    def metric(self, name: str) -> Any:
        """Return the metric `background.<name>` for "job.…", else `background.task.<name>`."""
        name = name if name.startswith("job.") else f"task.{name}"
        data = self._reader.get_metrics_data()
        (found,) = (
            metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == f"background.{name}"
        )
        return found

    def points(self, name: str) -> dict[tuple[Any, ...], Any]:
        """Return a metric's data points, keyed by the values of their attributes."""
        return {
            tuple(point.attributes.values()): point for point in self.metric(name).data.data_points
        }

    def values(self, name: str) -> dict[tuple[Any, ...], float]:
        return {key: point.value for key, point in self.points(name).items()}


def attributes(of: Any) -> Mapping[str, Any]:
    assert of.attributes is not None
    return {name.removeprefix("background.task."): value for name, value in of.attributes.items()}


def ids(span: trace.SpanContext | None) -> tuple[int, int]:
    assert span is not None
    return span.trace_id, span.span_id
