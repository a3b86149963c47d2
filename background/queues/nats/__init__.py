"""Jobs in NATS JetStream.

A job is a record in a key-value bucket, which is changed by compare-and-set. A work queue has hints
about ready jobs, and a stream of timers says when to check a record. docs/design/nats.md explains
the protocol, and which module has which part.
"""

from __future__ import annotations

from .address import NatsOptions
from .broker import NatsBroker

__all__ = ["NatsBroker", "NatsOptions"]


def __dir__() -> list[str]:
    return __all__
