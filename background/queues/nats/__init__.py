"""Jobs in NATS JetStream."""

from __future__ import annotations

from .broker import NatsBroker

__all__ = ["NatsBroker"]
