"""Observers for logging and for stalled attempts.

`background.observers.otel` needs OpenTelemetry and is imported separately.
"""

from __future__ import annotations

from ._log_levels import LogLevels
from .logging import LoggingObserver
from .stall import StallObserver

__all__ = ["LogLevels", "LoggingObserver", "StallObserver"]


def __dir__() -> list[str]:
    return [*__all__, *({"otel"} & {*globals()})]
