"""The number of jobs whose leases a worker can renew in time."""

from __future__ import annotations

import logging
from math import inf

from ..._support.log import log
from .in_flight import InFlight

_FIRST = 100  # jobs at once, before anything is measured
_SHARE = 1 / 4  # of a lease, in which all leases are renewed; other work may be three times slower


class Capacity:
    """Limits the attempts in flight to those whose leases are renewed in a quarter of their length.

    The limit doubles as long as claims and renewals are fast enough, and falls as soon as a renewal
    is not. A job takes less time to renew than to claim, so claims show how many leases can be
    renewed before the first renewal does.

    Args:
        in_flight: The attempts in flight.
        concurrency: The most attempts in flight, if their leases can be renewed.
        lease: Seconds for which jobs are claimed.
    """

    def __init__(self, in_flight: InFlight, concurrency: int, lease: float) -> None:
        self._in_flight = in_flight
        self._concurrency = concurrency
        self._lease = lease
        self._most = _FIRST
        self._has_warned = False

    @property
    def room(self) -> int:
        """How many more jobs may be claimed."""
        return min(self._concurrency, self._most) - len(self._in_flight)

    def claimed(self, jobs: int, seconds: float) -> None:
        """Raise the limit if a claim was fast enough."""
        most = jobs * self._lease * _SHARE / seconds if seconds else inf
        if most > self._most < self._concurrency:
            self._most = int(min(most, 2 * self._most))
            self._in_flight.notify()

    def renewed(self, jobs: int, seconds: float) -> None:
        """Adapt the limit to the time that the renewal of jobs has taken so far."""
        if seconds <= self._lease * _SHARE:
            self.claimed(jobs, seconds)
            return
        self._most = max(1, int(jobs * self._lease * _SHARE / seconds))
        if self._most < len(self._in_flight) and not self._has_warned:
            self._has_warned = True
            log(
                logging.WARNING,
                "this worker runs %d jobs at once, though %d is the most whose leases of %g s it "
                "renews in time; use a longer lease or less concurrency",
                len(self._in_flight),
                self._most,
                self._lease,
            )
