"""Triggers the broker's maintenance of due, lost and old jobs."""

from __future__ import annotations

import random

import anyio

from .._backoff import BrokerBackoff, Outages
from ..abc import Broker

_SWEEP = 5.0  # the most seconds between two passes


class Janitor:
    """The loop that calls `Broker.maintain()`.

    Args:
        broker: The broker.
        lease: The lease of the worker's jobs in seconds.
        outages: The logged outages of the broker.
    """

    def __init__(self, broker: Broker, lease: float, outages: Outages) -> None:
        self._broker = broker
        self._interval = min(lease / 3, _SWEEP)
        self._backoff = BrokerBackoff("maintaining jobs", outages)

    async def run(self) -> None:
        """Maintain jobs until cancelled."""
        while True:
            await self._backoff.call(self._broker.maintain)
            await anyio.sleep(self._interval * random.uniform(0.5, 1))
