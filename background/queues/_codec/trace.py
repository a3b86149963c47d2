"""The trace context that travels with a job."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Context

from opentelemetry import context, propagate


def inject() -> dict[str, str]:
    """Return the current trace context in the form in which it travels."""
    carrier: dict[str, str] = {}
    if context.get_current():  # to say that there is none takes longer
        propagate.inject(carrier)
    return carrier


def attach(variables: Context, carrier: Mapping[str, str]) -> None:
    """Let the trace context among these context variables be the one that has travelled."""
    if carrier:
        variables.run(context.attach, propagate.extract(carrier))
