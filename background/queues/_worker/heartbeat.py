"""Renews the leases of one worker's jobs, and detects lost leases."""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio

from ..._support.log import log
from .._backoff import Outage, Outages
from ..abc import Broker, LeaseStatus
from .attempt import JobAttempt
from .capacity import Capacity
from .in_flight import InFlight

_PART = 500  # leases that are renewed by one call
_OFTEN = 2.0  # the most seconds until a worker detects a cancellation


class LeaseRenewer:
    """The loop that renews all leases.

    A call renews a part of them, those that end first before the others. If it fails, the leases
    that other calls have renewed are still held.

    Args:
        broker: The broker.
        in_flight: The attempts whose leases are renewed.
        capacity: Adapts to the time that renewals take.
        lease: Seconds for which they are renewed.
        now: Returns the event loop's time.
        outages: The logged outages of the broker.
    """

    def __init__(
        self,
        broker: Broker,
        in_flight: InFlight,
        capacity: Capacity,
        lease: float,
        now: Callable[[], float],
        outages: Outages,
    ) -> None:
        self._broker = broker
        self._in_flight = in_flight
        self._capacity = capacity
        self._lease = lease
        self._now = now
        self._interval = min(lease / 3, _OFTEN)
        self._outage = Outage("renewing leases", outages)

    async def run(self) -> None:
        """Renew leases until cancelled."""
        due = self._now()
        try:
            while True:
                due = max(due + self._interval, self._now())
                await anyio.sleep_until(due)
                self._warn_if_late(due)
                await self._renew_all()
        finally:
            self._outage.ended()

    def _warn_if_late(self, due: float) -> None:
        late = self._now() - due
        if late > self._lease / 3:
            log(
                logging.WARNING,
                "leases are renewed %.1f s late: the event loop was blocked, or the process "
                "was stopped; jobs with a lease of %g s may be lost",
                late,
                self._lease,
            )

    async def _renew_all(self) -> None:
        left = sorted(self._in_flight, key=lambda attempt: attempt.held_until)
        if not left:
            self._outage.ended()
        renewed, took = 0, 0.0
        while left := [attempt for attempt in left if attempt in self._in_flight]:
            part, left = left[:_PART], left[_PART:]
            began = self._now()
            if await self._renew(part, is_last=not left):
                renewed += len(part)
                took += self._now() - began
                self._capacity.renewed(renewed, took)

    async def _renew(self, attempts: list[JobAttempt], *, is_last: bool) -> bool:
        began = self._now()
        left = min(attempt.held_until for attempt in attempts) - began
        patience = left if is_last else left / 2  # the other parts need time, too
        claims = [attempt.claim for attempt in attempts]
        renewed: list[tuple[JobAttempt, LeaseStatus]] = []
        try:
            with anyio.fail_after(max(patience, self._interval)):  # a broker may never answer
                statuses = await self._broker.renew(claims, lease=self._lease)
                renewed = list(zip(attempts, statuses, strict=True))
        except Exception as error:
            self._outage.failed(error, began)
            self._lose_overdue()
            return False
        self._outage.succeeded()
        for attempt, status in renewed:
            if attempt not in self._in_flight:
                continue  # settled meanwhile
            if status is LeaseStatus.LOST:
                # A pending settlement may have ended the lease; its answer decides.
                if not attempt.is_settling or attempt.held_until <= began:
                    attempt.lose()
            else:
                attempt.held_until = began + self._lease
                if status is LeaseStatus.CANCELLED:
                    attempt.cancel()
        return True

    def _lose_overdue(self) -> None:
        """Give up attempts whose leases have expired by the worker's clock."""
        now = self._now()
        for attempt in self._in_flight:
            if attempt.held_until <= now:
                attempt.lose()
