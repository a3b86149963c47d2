"""The OpenTelemetry trace context that is stored with a job."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Context

from opentelemetry import context, propagate


def inject() -> dict[str, str]:
    """Return the current trace context as a carrier."""
    carrier: dict[str, str] = {}
    if context.get_current():  # faster than injecting an empty context
        propagate.inject(carrier)
    return carrier


def attach(variables: Context, carrier: Mapping[str, str]) -> None:
    """Set the trace context of a carrier in a `contextvars.Context`."""
    if carrier:
        variables.run(context.attach, propagate.extract(carrier))
