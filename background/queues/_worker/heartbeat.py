"""The leases of one worker's jobs: renewed, and missed when they are lost."""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio

from ..._support.log import log
from .._errors import BrokerUnavailableError
from ..abc import Broker, LeaseStatus
from .attempt import JobRun

_OFTEN = 2.0  # seconds after which a worker hears of a cancellation, at the latest


class Leases:
    """Renews all leases with one call at a time, while it is run as a service."""

    def __init__(self, broker: Broker, lease: float, now: Callable[[], float]) -> None:
        self.held: set[JobRun] = set()
        self._broker = broker
        self._lease = lease
        self._now = now
        self._interval = min(lease / 3, _OFTEN)

    async def run(self) -> None:
        """Renew what is held, until cancelled."""
        while True:
            due = self._now() + self._interval
            await anyio.sleep(self._interval)
            late = self._now() - due
            if late > self._lease / 3:
                log(
                    logging.WARNING,
                    "leases are renewed %.1f s late: the event loop was blocked, or the process "
                    "stopped, and jobs with a lease of %g s may be lost",
                    late,
                    self._lease,
                )
            if self.held:
                await self._renew(list(self.held))

    async def _renew(self, runs: list[JobRun]) -> None:
        began = self._now()
        left = min(run.held_until for run in runs) - began
        holds: list[LeaseStatus] = []
        try:
            with anyio.fail_after(max(left, self._interval)):  # a broker may give no answer at all
                holds = await self._broker.renew([run.claim for run in runs], lease=self._lease)
        except BrokerUnavailableError as error:
            self._miss(runs, error)
            return
        except Exception as error:
            log(logging.ERROR, "leases could not be renewed", error=error)
            self._miss(runs, error)
            return
        for run, hold in zip(runs, holds, strict=True):
            if run not in self.held:
                continue  # it was settled meanwhile
            if hold is LeaseStatus.LOST:
                # What has ended it may be the settlement that is on its way, whose answer tells.
                if not run.is_settling or run.held_until <= began:
                    run.lose()
            else:
                run.held_until = began + self._lease
                if hold is LeaseStatus.CANCELLED:
                    run.cancel()

    def _miss(self, runs: list[JobRun], error: Exception) -> None:
        """Give up what nobody but the broker could tell to be still held."""
        now = self._now()
        for run in runs:
            if run in self.held and run.held_until <= now:
                run.lose()
