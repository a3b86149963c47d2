"""Jobs on a schedule; a tick is enqueued once, even if there are several processes."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any, get_args

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from ..._schedule import Every, Schedule
from ..._states import TaskKind
from ..._support import validation
from ..._support.log import log
from ..._support.redacted import kind_of
from ..._task import Task
from .._backoff import WAIT, Outage
from .._client import Client
from .._codec.body import decode
from .._errors import (
    BrokerUnavailableError,
    DuplicateJobError,
    InvalidPayloadError,
    QueueError,
)
from .._names import RESERVED
from ..abc import Message
from .enqueuer import Enqueuer
from .messages import message
from .options import CheckedOptions
from .steps import Single, Step
from .ticker import Missed, Ticker, TickerClock

#: Seconds for which a tick's job is stored at least after its tick can't be made up any more,
#: because processes with late clocks must find it.
_MIN_RETENTION = 3600.0

_SHORTEST = 0.1  # seconds between ticks


class JobSchedule:
    """A schedule, and the job that each of its ticks enqueues.

    Args:
        client: Stores up to which tick the schedule is enqueued.
        enqueuer: Enqueues the jobs.
        schedule: The schedule.
        job: The job.
        missed: Which ticks that all processes missed are enqueued.
        grace: The most seconds by which such a tick is late.

    Raises:
        ValueError: The schedule has no ticks that processes can share, or an argument is not valid.
        TypeError: The job was not made by `handler.job()`.
    """

    def __init__(
        self,
        client: Client,
        enqueuer: Enqueuer,
        schedule: Schedule,
        job: Step[Any],
        missed: Missed,
        grace: float,
    ) -> None:
        validation.instances("schedule", (schedule,), Schedule)
        if isinstance(schedule, Every):
            validation.seconds("schedule: its seconds", schedule.seconds, at_least=_SHORTEST)
        if not isinstance(job, Single):
            raise TypeError(f"job must be made by handler.job(), not {kind_of(job)}")
        if job.options.at is not None:
            raise ValueError("job: at can't be given, because the schedule says when it may start")
        if missed not in get_args(Missed):
            raise ValueError(f'missed must be "latest", "all" or "skip", not {missed!r}')
        validation.seconds("grace", grace, at_least=0)
        terms = replace(
            job.terms,
            retention=max(job.terms.retention, grace + _MIN_RETENTION),
            dead_retention=max(job.terms.dead_retention, grace + _MIN_RETENTION),
        )
        self._job: Single[Any] = Single(
            terms, job.args, job.kwargs, job.options, job.observers, job.load_result
        )
        self._missed: Missed = missed
        self._grace = grace
        self._client = client
        self._enqueuer = enqueuer
        self._schedule = schedule
        self._id = _id_of(schedule, job)
        self._jitter = schedule.jitter if isinstance(schedule, Every) else 0.0
        self._outage = Outage("enqueueing on a schedule", client.outages)
        self._make(self._id, self._jitter)  # raises now, instead of at every tick

    def describe_loop(self) -> Task[None]:
        """Return the loop that enqueues the jobs, for another manager."""
        ticker = Ticker(
            self._job.terms.name,
            self._schedule,
            self._missed,
            self._grace,
            self._enqueue,
            partial(self._client.advance_schedule, self._id),
        )
        return Task(
            partial(self._tick, ticker),
            kind=TaskKind.LOOP,
            schedule=TickerClock(ticker),
            name=f"schedule of {self._job.terms.name}",
            meta={"schedule_of": self._job.terms.name},
            # Without a limit of attempts; stopping the loop ends a pause.
            retry=AsyncRetrying(
                retry=retry_if_exception_type(Exception), wait=WAIT, before_sleep=self._failed
            ),
        )

    def _make(self, id: str, jitter: float) -> tuple[Message, CheckedOptions]:
        job = self._job
        options = replace(job.options, id=id, delay=job.options.delay + jitter)
        return message(
            job.terms, job.args, job.kwargs, options, self._enqueuer.max_payload
        ), options

    async def _enqueue(self, tick: float) -> bool:
        id = f"{self._id}{RESERVED}{tick:.3f}"
        made, options = self._make(id, self._jitter * _chance(id))
        try:
            await self._enqueuer.enqueue([made], options, self._job.observers)
        except DuplicateJobError:
            try:
                stored = await self._enqueuer.stored(id)
            except BrokerUnavailableError:
                raise
            except QueueError:  # a newer version of the library has enqueued it
                return False
            if stored is not None and not _is_same(stored, made):
                text = "schedule of %s: no job is enqueued, because another job has the id %s"
                log(logging.ERROR, text, self._job.terms.name, id)
            # Otherwise another process was faster.
            return False
        return True

    async def _tick(self, ticker: Ticker) -> None:
        await ticker.tick()
        self._outage.succeeded()

    def _failed(self, state: RetryCallState) -> None:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        self._outage.failed(error)


def _id_of(schedule: Schedule, job: Single[Any]) -> str:
    """Return the prefix of the ids of a schedule's jobs, which is equal in all processes."""
    name = job.terms.name
    described = repr((name, schedule, [*job.args], sorted(job.kwargs.items()), job.options))
    return f"{name[:80]}:{sha256(described.encode()).hexdigest()[:12]}"


def _is_same(stored: Message, made: Message) -> bool:
    """Return whether two messages are those of one tick."""
    if stored.handler != made.handler:
        return False
    try:
        first, second = (decode(job.id, job.body, math.inf) for job in (stored, made))
    except InvalidPayloadError:
        return False
    return (first.args, first.kwargs) == (second.args, second.kwargs)


def _chance(id: str) -> float:
    """Return a pseudo-random number from 0 to 1, which is equal in all processes."""
    return int(sha256(id.encode()).hexdigest()[:12], 16) / 16**12
