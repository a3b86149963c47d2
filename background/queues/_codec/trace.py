"""The OpenTelemetry context that is stored with a job: the trace context, and baggage if wanted."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Context

from opentelemetry import baggage, context, propagate


def inject(*, with_baggage: bool) -> dict[str, str]:
    """Return the current context as a carrier."""
    carrier: dict[str, str] = {}
    current = context.get_current()
    if current:  # faster than injecting an empty context
        propagate.inject(carrier, current if with_baggage else baggage.clear(current))
    return carrier


def attach(variables: Context, carrier: Mapping[str, str], *, with_baggage: bool) -> None:
    """Set the context of a carrier in a `contextvars.Context`."""
    if carrier:
        extracted = propagate.extract(carrier)
        variables.run(context.attach, extracted if with_baggage else baggage.clear(extracted))
