"""Observers for every day; `background.observers.otel` is imported on its own."""

from __future__ import annotations

from .logging import LoggingObserver
from .stall import StallObserver

__all__ = ["LoggingObserver", "StallObserver"]
