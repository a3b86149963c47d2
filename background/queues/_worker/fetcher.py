"""Claims jobs while there is room, and starts their attempts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextvars import copy_context

import anyio
from opentelemetry import context as trace_context

from ..._eventloop.interruption import ki_protected
from ..._retry import pause_after_failures
from ..._support import clock
from ..._support.log import log
from .._backoff import EXPECTED, WAIT, BrokerBackoff, Outage
from .._codec import trace
from .._codec.errors import earlier_attempts
from .._errors import BrokerUnavailableError
from ..abc import Broker, Claim, LeaseStatus
from .attempt import JobAttempt, WorkerContext
from .capacity import Capacity
from .decision import postpone
from .in_flight import InFlight
from .preparation import Preparation
from .selection import Selection

_MOST_REPORTED = 1000  # handlers whose jobs are reported as left for another worker
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
        capacity: How many more jobs may be claimed.
        lease: Seconds for which jobs are claimed.
        max_crashes: The number of crashes after which a job is dead.
        unknown_for: Seconds for which a job that this worker can't run is released.
        with_baggage: Whether baggage that is stored with a job is attached when it runs.
    """

    def __init__(
        self,
        broker: Broker,
        worker: WorkerContext,
        preparation: Preparation,
        in_flight: InFlight,
        queues: Selection,
        capacity: Capacity,
        lease: float,
        max_crashes: int,
        unknown_for: float,
        with_baggage: bool,
    ) -> None:
        self.is_fetching = True  # until the loop has ended
        self._broker = broker
        self._now = worker.host.backend.now
        self._preparation = preparation
        self._in_flight = in_flight
        self._queues = queues
        self._capacity = capacity
        self._lease = lease
        self._max_crashes = max_crashes
        self._unknown_for = unknown_for
        self._with_baggage = with_baggage
        self._reported: set[tuple[str, type[Exception]]] = set()
        self._backoff = BrokerBackoff("claiming jobs", worker.client.outages)
        self._outage = Outage("waiting for jobs", worker.client.outages)
        self._failed_waits = 0  # one after the other
        self._is_stopped = False
        self._pause: anyio.CancelScope | None = None  # `stop` cancels it
        self._claiming = anyio.CancelScope()  # `give_up` cancels it
        self._context = copy_context()
        self._context.run(trace_context.attach, trace_context.Context())

    def stop(self) -> None:
        """Stop claiming; claimed jobs continue."""
        self._is_stopped = True
        if self._pause is not None:
            self._pause.cancel()

    def give_up(self) -> bool:
        """Interrupt the call of a broker that does not answer; the leases of its jobs end.

        Returns:
            Whether there was a call.
        """
        self.stop()
        self._claiming.cancel()
        return self.is_fetching

    async def ended(self) -> None:
        """Wait until the loop has ended, so that no job can be claimed any more."""
        while self.is_fetching:
            await self._in_flight.wait_for_change()

    async def run(self) -> None:
        """Claim jobs until stopped or cancelled."""
        self.is_fetching = True
        try:
            while not self._is_stopped:
                with anyio.CancelScope() as self._pause:
                    while self._capacity.room <= 0:
                        await self._in_flight.wait_for_change()
                    if queues := await self._backoff.call(self._claim):
                        await self._wait_for_work(queues)
        finally:
            self._outage.ended()
            self.is_fetching = False
            self._in_flight.notify()

    async def _claim(self) -> Sequence[str]:
        """Claim jobs, and start them; return the queues to wait for if there is room for more."""
        room = self._capacity.room
        queues = self._queues.draw()
        began = self._now()
        # A cancelled claim could leave jobs claimed.
        with anyio.CancelScope(shield=True) as self._claiming:
            claims = await self._broker.claim(queues, room, lease=self._lease)
            claims = await self._confirmed(claims)
            for claim in claims:
                self._start(claim, began + self._lease)
            self._capacity.claimed(len(claims), self._now() - began)
            room -= len(claims)
        return queues if room and not self._is_stopped else ()

    async def _wait_for_work(self, queues: Sequence[str]) -> None:
        try:
            await self._broker.wait_for_work(queues, _IDLE)
        except Exception as error:
            self._failed_waits += 1
            # In an outage, the next claim fails, too, and is logged.
            if self._failed_waits > 1 or not isinstance(error, EXPECTED):
                self._outage.failed(error)
            await anyio.sleep(pause_after_failures(WAIT, self._failed_waits, error))
        else:
            self._failed_waits = 0
            self._outage.succeeded()

    async def _confirmed(self, claims: list[Claim]) -> list[Claim]:
        """Confirm claims whose crash must be counted; return the claims that still hold their jobs.

        The broker counts a crash only if the claim was confirmed, because the answer of a claim may
        be lost. The heartbeat confirms claims soon enough for a job that has never been lost.
        """
        doubtful = [
            claim for claim in claims if claim.unconfirmed or claim.crashes + 1 >= self._max_crashes
        ]
        if not doubtful:
            return claims
        try:
            with anyio.fail_after(self._lease / 3):
                statuses = await self._broker.renew(doubtful, lease=self._lease)
        except (BrokerUnavailableError, TimeoutError):
            return claims  # their leases hold, though a crash may not be counted
        lost = {
            claim.message.id
            for claim, status in zip(doubtful, statuses, strict=True)
            if status is LeaseStatus.LOST
        }
        return [claim for claim in claims if claim.message.id not in lost]

    def _start(self, claim: Claim, held_until: float) -> None:
        attempt, carrier = self._preparation.prepare(claim, held_until)
        if _is_taken_over(claim):
            text = "job '%s' (%s): the lease of its worker expired; this is attempt %d"
            log(logging.WARNING, text, attempt.job.handler, attempt.job.id, claim.attempt)
        self._in_flight.add(attempt)
        if self._is_stopped or self._now() >= held_until:  # the answer was too late
            attempt.on_never_started("shutdown")
            return
        if attempt.misfit is not None and self._postpone(attempt, attempt.misfit):
            return
        try:
            context = self._context.copy()
            trace.attach(context, carrier, with_baggage=self._with_baggage)
            attempt.start(context)
        except Exception as error:  # its lease ends, and max_crashes bounds the number of tries
            log(logging.ERROR, "job %s can't be started", claim.message.id, error=error)
            self._in_flight.remove(attempt)

    def _postpone(self, attempt: JobAttempt, error: Exception) -> bool:
        """Release a job that this worker can't run; return `False` if it waited too long."""
        settlement = postpone(attempt.claim, error, now=clock.wall(), unknown_for=self._unknown_for)
        if settlement is None:
            return False
        reported = attempt.job.handler, type(error)
        if reported not in self._reported and len(self._reported) < _MOST_REPORTED:
            self._reported.add(reported)
            log(
                logging.WARNING,
                "job '%s' (%s) and others like it are left for another worker: %s; this worker "
                "has the handlers %s",
                attempt.job.handler,
                attempt.job.id,
                error,
                self._preparation.handler_names,
            )
        attempt.settle_without_run(settlement)
        return True


def _is_taken_over(claim: Claim) -> bool:
    """Return whether the claim before this one was lost, and not settled as a failed attempt."""
    if not claim.crashes and not claim.unconfirmed:
        return False
    failed = earlier_attempts(claim.error)
    return not failed or failed[-1].number < claim.attempt - 1
