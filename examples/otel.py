"""OpenTelemetry: a span for each run, with its retries, and metrics, here on the console.

    pip install '.[examples]'       # from a clone, until the first release
    python examples/otel.py

The library depends on the OpenTelemetry API only. The application chooses the SDK and the
exporters; without an SDK, the observer does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from background import Manager, task
from background.observers.otel import OpenTelemetryObserver

tracer = trace.get_tracer(__name__)


@contextmanager
def telemetry() -> Iterator[None]:
    """Set up tracing and metrics, and export everything at the end."""
    resource = Resource.create({"service.name": "shop"})
    spans = TracerProvider(resource=resource)
    spans.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
    trace.set_tracer_provider(spans)
    reader = PeriodicExportingMetricReader(ConsoleMetricExporter())
    meters = MeterProvider(resource=resource, metric_readers=[reader])
    metrics.set_meter_provider(meters)
    try:
        yield
    finally:
        spans.shutdown()
        meters.shutdown()


refusals = ["the first attempt is refused"]


@task(retry=3)
async def charge(order: int) -> None:
    if refusals:
        raise ConnectionError(refusals.pop())
    # The observer's span is the parent of this span.
    with tracer.start_as_current_span("payment provider"):
        await anyio.sleep(0.05)


def make_invoice(order: int) -> None:
    raise ValueError(f"order {order} has no address")


async def main() -> None:
    async with Manager(observers=[OpenTelemetryObserver()], signals=True) as manager:
        # As in a request: the tasks' spans belong to the trace of their submitter.
        with tracer.start_as_current_span("POST /orders"):
            manager.run(charge, 1)
            manager.run(make_invoice, 1)


if __name__ == "__main__":
    with telemetry():
        anyio.run(main)
