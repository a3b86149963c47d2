"""Settlements of one worker: those of about the same time go to the broker together."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import anyio
from anyio.lowlevel import checkpoint

from ..._support.log import log
from .._backoff import Outage
from .._codec.errors import describe
from .._errors import BrokerUnavailableError, QueueError
from .._states import FINAL, JobState
from ..abc import Broker, Settlement

_SINCE_THEN = (JobState.RUNNING, JobState.SUCCEEDED)
_REFUSALS = (QueueError, ValueError)  # which trying again does not mend


class Held(Protocol):
    """Who has a job that is to be settled."""

    @property
    def attempt(self) -> int:
        """The number of the attempt."""
        ...

    @property
    def gives_up(self) -> bool:
        """Whether it is no use to try again."""
        ...


class Batch:
    """Settlements that are sent together; `answers` are there when `done` is set."""

    def __init__(self, event: type[anyio.Event]) -> None:
        self.settlements: list[Settlement] = []
        self.holders: list[Held] = []
        self.answers: list[bool | None] = []  # `None` for what could not be settled
        self.done = event()


class Settler:
    """Sends settlements while it is run as a service; what comes meanwhile is sent next."""

    def __init__(self, broker: Broker, event: type[anyio.Event]) -> None:
        self._broker = broker
        self._event = event
        self._batch = Batch(event)  # that fills
        self._sent: Batch | None = None  # which has no answers yet
        self._filled = event()
        self._running = False
        self._closed = False

    def put(self, settlement: Settlement, holder: Held) -> tuple[Batch, int]:
        """Have a job settled; return where its answer will be."""
        batch = self._batch
        if self._closed:
            batch = Batch(self._event)
            batch.answers = [None]
            batch.done.set()
            return batch, 0
        batch.settlements.append(settlement)
        batch.holders.append(holder)
        if len(batch.settlements) == 1:
            self._filled.set()
        return batch, len(batch.settlements) - 1

    async def settle(self, settlement: Settlement, holder: Held) -> bool | None:
        """Settle a job; tell whether its lease was still held, `None` if that stays unknown."""
        batch, place = self.put(settlement, holder)
        await batch.done.wait()
        return batch.answers[place]

    async def drain(self) -> None:
        """Wait until everything has been sent."""
        while self._sent is not None or self._batch.settlements:
            if self._sent is None and not self._running:  # as the manager has closed
                await self._send_next()
            else:
                await (self._sent or self._batch).done.wait()

    def close(self) -> None:
        """Settle no more: what comes late will not be, nor what a broker does not take now."""
        self._closed = True

    async def run(self) -> None:
        """Send what there is to be sent, until cancelled; then send the rest."""
        self._running = True
        try:
            while True:
                await self._filled.wait()
                await checkpoint()  # what ends in this turn of the event loop comes along
                await self._send_next()
        finally:
            while self._batch.settlements:
                await self._send_next()
            self._running = False

    async def _send_next(self) -> None:
        batch = self._sent = self._batch
        self._batch, self._filled = Batch(self._event), self._event()
        try:
            with anyio.CancelScope(shield=True):
                batch.answers = await self._send(batch)
        finally:
            batch.answers = batch.answers or [None] * len(batch.settlements)
            self._sent = None
            batch.done.set()

    async def _send(self, batch: Batch) -> list[bool | None]:
        outage = Outage("settling jobs")
        repeated = False
        while True:
            try:
                answers = await self._broker.settle(batch.settlements)
                if repeated:
                    answers = [await self._look(batch, *each) for each in enumerate(answers)]
            except Exception as error:
                if isinstance(error, _REFUSALS) and not isinstance(error, BrokerUnavailableError):
                    return await self._refused(batch, error)
                if self._closed or all(holder.gives_up for holder in batch.holders):
                    count = len(batch.settlements)
                    log(logging.ERROR, "%d jobs could not be settled: %s", count, error)
                    return []
                repeated = True
                await outage.failed(error)
            else:
                outage.over()
                return [*answers]

    async def _refused(self, batch: Batch, error: Exception) -> list[bool | None]:
        """Find out which settlement the broker refuses; its job is dead, by that error."""
        if len(batch.settlements) == 1:
            (settlement,) = batch.settlements
            log(logging.ERROR, "job %s can't be settled", settlement.id, error=error)
            dead = replace(settlement, state=JobState.DEAD, result=None, error=describe(error))
            with suppress(Exception):  # its lease ends
                await self._broker.settle([dead])
            return [None]
        answers: list[bool | None] = []
        for settlement, holder in zip(batch.settlements, batch.holders, strict=True):
            alone = Batch(self._event)
            alone.settlements, alone.holders = [settlement], [holder]
            answers += await self._send(alone) or [None]
        return answers

    async def _look(self, batch: Batch, place: int, accepted: bool) -> bool:
        """Tell whether a settlement was accepted, the answer to which may have been lost."""
        if accepted:
            return True
        settlement = batch.settlements[place]
        job = await self._broker.get(settlement.id)
        if job is None:
            return settlement.state in FINAL  # and was kept for less than all this took
        counted = batch.holders[place].attempt - (settlement.state is JobState.READY)
        if settlement.state is JobState.SCHEDULED and job.attempt == counted + 1:
            # The next attempt has begun, which sees the error of this one if that was accepted.
            return job.state in _SINCE_THEN and job.error == settlement.error
        states = {settlement.state}
        if settlement.state not in FINAL:  # it may be due by now
            states.add(JobState.READY)
        return job.attempt == counted and job.state in states
