"""Claims jobs while there is room, and starts their attempts."""

from __future__ import annotations

import logging
from contextvars import copy_context

import anyio
from opentelemetry import context as trace_context

from ..._eventloop.interruption import ki_protected
from ..._support.log import log
from .._backoff import BrokerBackoff
from .._codec import trace
from ..abc import Broker, Claim
from .attempt import WorkerContext
from .in_flight import InFlight
from .preparation import Preparation
from .selection import Selection

_IDLE = 30.0  # the most seconds between two claims, if the broker reports no work


@ki_protected
class Fetcher:
    """The loop that claims jobs.

    Args:
        broker: The broker.
        worker: The resources that all attempts of the worker share.
        preparation: Turns claims into attempts.
        in_flight: The attempts in flight.
        queues: The queues to claim from.
        concurrency: The most attempts in flight.
        lease: Seconds for which jobs are claimed.
    """

    def __init__(
        self,
        broker: Broker,
        worker: WorkerContext,
        preparation: Preparation,
        in_flight: InFlight,
        queues: Selection,
        concurrency: int,
        lease: float,
    ) -> None:
        self.is_fetching = True  # until the loop has ended
        self._broker = broker
        self._now = worker.host.backend.now
        self._preparation = preparation
        self._in_flight = in_flight
        self._queues = queues
        self._concurrency = concurrency
        self._lease = lease
        self._backoff = BrokerBackoff("claiming jobs")
        self._is_stopped = False
        self._pause: anyio.CancelScope | None = None  # `stop` cancels it
        self._context = copy_context()
        self._context.run(trace_context.attach, trace_context.Context())

    def stop(self) -> None:
        """Stop claiming; claimed jobs continue."""
        self._is_stopped = True
        if self._pause is not None:
            self._pause.cancel()

    async def run(self) -> None:
        """Claim jobs until stopped or cancelled."""
        self.is_fetching = True
        try:
            while not self._is_stopped:
                with anyio.CancelScope() as self._pause:
                    while len(self._in_flight) >= self._concurrency:
                        await self._in_flight.wait_for_change()
                    await self._backoff.call(self._fetch)
        finally:
            self.is_fetching = False
            self._in_flight.notify()

    async def _fetch(self) -> None:
        room = self._concurrency - len(self._in_flight)
        queues = self._queues.draw()
        began = self._now()
        with anyio.CancelScope(shield=True):  # a cancelled claim could leave jobs claimed
            for claim in await self._broker.claim(queues, room, lease=self._lease):
                self._start(claim, began + self._lease)
                room -= 1
        if room:
            await self._broker.wait_for_work(queues, _IDLE)

    def _start(self, claim: Claim, held_until: float) -> None:
        attempt, carrier = self._preparation.prepare(claim, held_until)
        if claim.crashes:
            text = "job %s of %s: its worker died or lost its lease; this is attempt %d"
            log(logging.WARNING, text, attempt.job.id, attempt.job.handler, claim.attempt)
        self._in_flight.add(attempt)
        if self._is_stopped or self._now() >= held_until:  # the answer was too late
            attempt.on_never_started("shutdown")
            return
        try:
            context = self._context.copy()
            trace.attach(context, carrier)
            attempt.start(context)
        except Exception as error:  # its lease ends, and max_crashes bounds the number of tries
            log(logging.ERROR, "job %s can't be started", claim.message.id, error=error)
            self._in_flight.remove(attempt)
