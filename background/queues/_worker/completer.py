"""Settles the jobs of one worker; jobs that end at about the same time share a call."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import anyio
from anyio.lowlevel import checkpoint

from ..._support.log import log
from .._backoff import BrokerBackoff, Outages
from .._codec.errors import describe
from .._errors import BrokerUnavailableError, QueueError
from .._states import FINAL, JobState
from ..abc import Broker, Settlement
from .attempt import JobAttempt

_UNKNOWN = "the settlements of %d jobs may not have arrived (%s): %s"
_MOST_BYTES = 4_000_000  # of results and errors, after which a call of the broker ends
_REFUSALS = (QueueError, ValueError)  # calling again does not help


class _Batch:
    """Settlements that end at about the same time; `accepted` is complete when `done` is set."""

    def __init__(self, event: type[anyio.Event]) -> None:
        self.attempts: list[JobAttempt] = []
        self.settlements: list[Settlement] = []
        self.accepted: list[bool | None] = []
        self.done = event()


class Completer:
    """Sends settlements in batches; settlements that arrive during a call form the next batch.

    Args:
        broker: The broker.
        event: The event loop's class of events.
        outages: The logged outages of the broker.
    """

    def __init__(self, broker: Broker, event: type[anyio.Event], outages: Outages) -> None:
        self._broker = broker
        self._event = event
        self._outages = outages
        self._filling = _Batch(event)
        self._sent: _Batch | None = None
        self._filled = event()
        self._sending: anyio.CancelScope | None = None
        self._is_running = False
        self._is_closed = False
        self._is_given_up = False

    async def settle(self, attempt: JobAttempt, settlement: Settlement) -> bool | None:
        """Settle a job; return whether its lease was held, or `None` if that is unknown."""
        if self._is_closed:
            _log_unknown([settlement], "there is no time left")
            return None
        batch = self._put(attempt, settlement)
        place = len(batch.settlements) - 1
        await batch.done.wait()
        return batch.accepted[place]

    def settle_soon(self, attempt: JobAttempt, settlement: Settlement) -> None:
        """Settle a job without waiting for the answer."""
        if not self._is_closed:
            self._put(attempt, settlement)

    def _put(self, attempt: JobAttempt, settlement: Settlement) -> _Batch:
        batch = self._filling
        batch.attempts.append(attempt)
        batch.settlements.append(settlement)
        if len(batch.settlements) == 1:
            self._filled.set()
        return batch

    async def drain(self) -> None:
        """Wait until all settlements were sent."""
        while self._sent is not None or self._filling.settlements:
            if self._sent is None and not self._is_running:  # the manager has closed
                await self._send_next()
            else:
                await (self._sent or self._filling).done.wait()

    def close(self) -> None:
        """Ignore further settlements, and stop retrying failed calls."""
        self._is_closed = True

    def give_up(self) -> bool:
        """Interrupt the call of a broker that does not answer, and send nothing more.

        Returns:
            Whether there was a call; otherwise nothing has changed.
        """
        if self._sending is None:
            return False
        self._is_closed = self._is_given_up = True
        self._sending.cancel()
        return True

    async def run(self) -> None:
        """Send settlements until cancelled, and finally the remaining ones."""
        self._is_running = True
        try:
            while True:
                await self._filled.wait()
                await checkpoint()  # jobs that end in this turn of the event loop join the batch
                await self._send_next()
        finally:
            while self._filling.settlements:
                await self._send_next()
            self._is_running = False

    async def _send_next(self) -> None:
        batch = self._sent = self._filling
        self._filling, self._filled = _Batch(self._event), self._event()
        try:
            with anyio.CancelScope(shield=True) as self._sending:
                if not self._is_given_up:
                    for part in self._split(batch, _MOST_BYTES):
                        batch.accepted += await self._send(part)
            if unknown := batch.settlements[len(batch.accepted) :]:
                _log_unknown(unknown, "there is no time left")
        finally:
            batch.accepted += [None] * (len(batch.settlements) - len(batch.accepted))
            self._sent = self._sending = None
            batch.done.set()

    def _split(self, batch: _Batch, most: int) -> Iterator[_Batch]:
        """Yield parts that end with the settlement that brings them to `most` bytes."""
        part, size = _Batch(self._event), 0
        for attempt, settlement in zip(batch.attempts, batch.settlements, strict=True):
            part.attempts.append(attempt)
            part.settlements.append(settlement)
            size += _size(settlement)
            if size >= most:
                yield part
                part, size = _Batch(self._event), 0
        if part.settlements:
            yield part

    async def _send(self, batch: _Batch) -> list[bool | None]:
        try:
            return await self._send_until_answered(batch)
        except Exception as error:
            if isinstance(error, _REFUSALS) and not isinstance(error, BrokerUnavailableError):
                return await self._send_one_by_one(batch, error)
            _log_unknown(batch.settlements, error)
            return [None] * len(batch.settlements)

    async def _send_until_answered(self, batch: _Batch) -> list[bool | None]:
        is_repeated = False

        async def send() -> list[bool | None]:
            nonlocal is_repeated
            was_repeated, is_repeated = is_repeated, True
            accepted = await self._broker.settle(batch.settlements)
            if not was_repeated:
                return [*accepted]
            return [
                yes or await self._was_accepted(settlement)
                for yes, settlement in zip(accepted, batch.settlements, strict=True)
            ]

        def give_up(error: Exception) -> bool:
            is_refusal = isinstance(error, _REFUSALS)
            if is_refusal and not isinstance(error, BrokerUnavailableError):
                return True
            return self._is_closed or all(attempt.gives_up for attempt in batch.attempts)

        return await BrokerBackoff("settling jobs", self._outages).call(send, give_up)

    async def _was_accepted(self, settlement: Settlement) -> bool:
        """Return whether a refused settlement was accepted before, when the answer was lost."""
        try:
            job = await self._broker.get(settlement.id)
        except BrokerUnavailableError:
            raise
        except QueueError:  # a newer version of the library has changed it since
            return False
        ends = settlement.state in FINAL
        if job is None:
            return ends  # its retention has ended already
        if any(claim.token == settlement.token for claim in job.lost):
            return False
        if job.token != settlement.token:
            return not ends  # the next attempt has begun
        if ends:
            return job.state is settlement.state
        return job.state is not JobState.RUNNING

    async def _send_one_by_one(self, batch: _Batch, error: Exception) -> list[bool | None]:
        """Send settlements separately; make the job dead whose settlement the broker refuses."""
        if len(batch.settlements) == 1:
            (settlement,) = batch.settlements
            log(logging.ERROR, "job %s can't be settled", settlement.id, error=error)
            dead = replace(settlement, state=JobState.DEAD, result=None, error=describe(error))
            with suppress(Exception):  # otherwise its lease expires
                await self._broker.settle([dead])
            return [None]
        accepted: list[bool | None] = []
        for alone in self._split(batch, 0):
            accepted += await self._send(alone)
        return accepted


def _log_unknown(settlements: Sequence[Settlement], reason: object) -> None:
    ids = ", ".join(settlement.id for settlement in settlements)
    log(logging.ERROR, _UNKNOWN, len(settlements), ids, reason)


def _size(settlement: Settlement) -> int:
    error = settlement.error
    return len(settlement.result or b"") + (0 if error is None else len(str(error)))
