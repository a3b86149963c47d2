"""Jobs that are enqueued again and again: each tick once, by however many processes."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from typing import Any, Protocol

import anyio

from ..._execution.runner import current_handle
from ..._schedule import PATIENCE, Calendar, Schedule, Ticks
from ..._states import TaskKind
from ..._support import clock
from ..._support.frozen import record
from ..._task import Task
from .._backoff import Outage
from .._errors import DuplicateJobError
from ..abc import Message
from .enqueuer import Sender
from .handler import Handler
from .messages import message
from .options import Options

#: Seconds for which a tick is known at least, for processes whose clocks are behind.
_REMEMBERED = 3600.0


class Dated(Protocol):
    """A schedule on the wall clock, in seconds since the epoch."""

    def after(self, wall: float) -> float:
        """Return the first tick later than `wall`."""
        ...


@record
class Aligned(Schedule):
    """A fixed rate on a grid that all processes share, as it begins with the epoch."""

    seconds: float

    def after(self, wall: float) -> float:
        tick = (math.floor(wall / self.seconds) + 1) * self.seconds
        return tick if tick > wall else tick + self.seconds

    def ticks(self, now: float, wall: float) -> Ticks:
        return Calendar(self.after)


class Ticker:
    """The function of a loop that enqueues a job for each tick."""

    def __init__(self, id: str, schedule: Dated, enqueue: Callable[[str], Awaitable[None]]) -> None:
        self._id = id
        self._schedule = schedule
        self._enqueue = enqueue
        self._last = -math.inf

    async def tick(self) -> None:
        """Enqueue the job of the tick that has come, trying again until the loops stop."""
        tick = self._latest(clock.wall())
        if tick is None:
            return
        self._last = tick
        outage = Outage("enqueueing by schedule")
        enqueued = False
        with anyio.CancelScope() as pause:
            if (handle := current_handle.get()) is not None:
                handle._pause = pause  # which is cut short when the loops stop
            while not enqueued:
                try:
                    with anyio.CancelScope(shield=True):
                        await self._enqueue(f"{self._id}.{tick:.3f}")
                    enqueued = True
                    outage.over()
                except Exception as error:
                    await outage.failed(error)

    def _latest(self, now: float) -> float | None:
        """Return the latest tick that has come and was not seen yet."""
        latest = None
        tick = self._schedule.after(max(self._last, now - PATIENCE - 1))
        while tick <= now:
            latest, tick = tick, self._schedule.after(tick)
        return latest


def describe_schedule(
    sender: Sender,
    handler: Handler[..., Any, Any],
    schedule: Schedule,
    dated: Dated,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Callable[[], Task[None]]:
    """Return what describes the loop of a schedule, anew for each manager.

    Raises what enqueueing a job with these arguments does.
    """
    settings = handler.settings
    plain_args, plain_kwargs = handler.signature.dump(args, kwargs)
    terms = replace(settings.terms, keep=max(settings.terms.keep, _REMEMBERED))
    first = id_of(handler.name, schedule, plain_args, plain_kwargs)

    def make(options: Options) -> Message:
        return message(terms, plain_args, plain_kwargs, options, sender.max_payload)

    make(Options(id=first))  # or each tick would be tried again for ever

    async def enqueue(id: str) -> None:
        options = Options(id=id)
        with suppress(DuplicateJobError):
            await sender.send([make(options)], options, settings.observers)

    def describe() -> Task[None]:
        ticker = Ticker(first, dated, enqueue)
        name = f"schedule of {handler.name}"
        return Task(ticker.tick, kind=TaskKind.LOOP, schedule=schedule, name=name)

    return describe


def id_of(name: str, schedule: Schedule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return what the ids of a schedule's jobs begin with, the same in all processes."""
    told = repr((name, schedule, list(args), sorted(kwargs.items())))
    return f"{name[:80]}:{sha256(told.encode()).hexdigest()[:12]}"
