"""Jobs on a schedule; a tick is enqueued once, even if there are several processes."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import anyio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from ..._schedule import PATIENCE, Calendar, Every, Schedule, Ticks
from ..._states import TaskKind
from ..._support import clock, validation
from ..._support.log import log
from ..._task import Task
from .._backoff import WAIT, Outage
from .._codec.body import decode
from .._errors import DuplicateJobError, InvalidPayloadError
from .._names import RESERVED
from ..abc import Message
from .enqueuer import Enqueuer
from .messages import message
from .options import CheckedOptions
from .steps import Single, Step

#: The shortest retention in seconds of a tick's job, which processes with late clocks must find.
_MIN_RETENTION = 3600.0

_SHORTEST = 0.1  # seconds between ticks


class _WallClock(Schedule):
    """The ticks of a schedule that all processes share."""

    __slots__ = ("_schedule",)

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def ticks(self, now: float, wall: float) -> Ticks:
        return Calendar(self.after)

    def after(self, wall: float) -> float:
        return self._schedule.after(wall)


class JobSchedule:
    """A schedule, and the job that each of its ticks enqueues.

    Args:
        enqueuer: Enqueues the jobs.
        schedule: The schedule.
        job: The job.

    Raises:
        ValueError: The schedule has no ticks that processes can share.
        TypeError: The job was not made by `handler.job()`.
    """

    def __init__(self, enqueuer: Enqueuer, schedule: Schedule, job: Step[Any]) -> None:
        validation.instances("schedule", (schedule,), Schedule)
        if isinstance(schedule, Every):
            validation.seconds("schedule: its seconds", schedule.seconds, at_least=_SHORTEST)
        if not isinstance(job, Single):
            raise TypeError(f"job must be made by handler.job(), not {job!r}")
        if job.options.at is not None:
            raise ValueError("job: at can't be given, because the schedule says when it may start")
        terms = replace(
            job.terms,
            retention=max(job.terms.retention, _MIN_RETENTION),
            dead_retention=max(job.terms.dead_retention, _MIN_RETENTION),
        )
        self._job: Single[Any] = Single(
            terms, job.args, job.kwargs, job.options, job.observers, job.load_result
        )
        self._enqueuer = enqueuer
        self._schedule = schedule
        self._id = _id_of(schedule, job)
        self._jitter = schedule.jitter if isinstance(schedule, Every) else 0.0
        self._outage = Outage("enqueueing on a schedule")
        self._make(self._id, self._jitter)  # raises now, instead of at every tick

    def describe_loop(self) -> Task[None]:
        """Return the loop that enqueues the jobs, for another manager."""
        ticker = _Ticker(self._schedule, self._enqueue)
        return Task(
            ticker.tick,
            kind=TaskKind.LOOP,
            schedule=_WallClock(self._schedule),
            name=f"schedule of {self._job.terms.name}",
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

    async def _enqueue(self, tick: float) -> None:
        id = f"{self._id}{RESERVED}{tick:.3f}"
        made, options = self._make(id, self._jitter * _chance(id))
        try:
            await self._enqueuer.enqueue([made], options, self._job.observers)
        except DuplicateJobError:
            stored = await self._enqueuer.stored(id)
            if stored is not None and not _is_same(stored, made):
                text = "schedule of %s: no job is enqueued, because another job has the id %s"
                log(logging.ERROR, text, self._job.terms.name, id)
            # Otherwise another process was faster.
        self._outage.succeeded()

    def _failed(self, state: RetryCallState) -> None:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        self._outage.failed(error)


class _Ticker:
    """The function of a schedule's loop."""

    def __init__(self, schedule: Schedule, enqueue: Callable[[float], Awaitable[None]]) -> None:
        self._schedule = schedule
        self._enqueue = enqueue
        self._last = -math.inf

    async def tick(self) -> None:
        """Enqueue the job of the latest tick, if it is new."""
        tick = self._latest(clock.wall())
        if tick is not None:
            with anyio.CancelScope(shield=True):
                await self._enqueue(tick)
            self._last = tick

    def _latest(self, now: float) -> float | None:
        latest = None
        tick = self._schedule.after(max(self._last, now - PATIENCE - 1))
        while tick <= now:
            latest, tick = tick, self._schedule.after(tick)
        return latest


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
