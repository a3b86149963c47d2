"""The loop of a schedule of jobs: which ticks it enqueues, on time or later.

The broker stores up to which tick a schedule is enqueued. A process reads that, enqueues a tick,
and then advances it. If it dies in between, another process enqueues the tick again; the tick's id
makes that harmless, as its job is stored for longer than missed ticks are made up.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Literal

from ..._schedule import PATIENCE, Calendar, Schedule, Ticks
from ..._support import clock
from ..._support.log import log

Missed = Literal["latest", "all", "skip"]

_ON_TIME = PATIENCE + 1  # the most seconds by which a tick is late without having been missed
_AHEAD = 3600.0  # seconds by which clocks of processes may differ
_FORGOTTEN = 31 * 86_400.0  # seconds for which a schedule is stored at least

#: Stores a tick by compare-and-set: the expected tick, the new one, and seconds to store it.
Advance = Callable[[float | None, float, float], Awaitable[float]]


class Ticker:
    """The function of a schedule's loop.

    Args:
        name: The handler's name, for the log.
        schedule: The schedule.
        missed: Which missed ticks are enqueued.
        grace: The most seconds by which such a tick is late.
        enqueue: Enqueues the job of a tick; returns `False` if its id is stored.
        advance: Stores a tick by compare-and-set.
    """

    def __init__(
        self,
        name: str,
        schedule: Schedule,
        missed: Missed,
        grace: float,
        enqueue: Callable[[float], Awaitable[bool]],
        advance: Advance,
    ) -> None:
        self.after = schedule.after
        self.is_behind = True  # whether there may be a tick to enqueue now
        self._name = name
        self._missed = missed
        self._window = _ON_TIME if missed == "skip" else max(grace, _ON_TIME)
        self._enqueue = enqueue
        self._advance = advance
        self._last = clock.wall()  # the latest tick, or the start; a new schedule begins here

    async def tick(self) -> None:
        """Enqueue the job of one tick, if there is a new one.

        It can be cancelled anywhere: what it has done is found by the next one, here or elsewhere.
        """
        stored = await self._store(None, self._last)
        now = clock.wall()
        done = stored
        if stored > now + _AHEAD:
            log(
                logging.WARNING,
                "schedule of %s: its latest tick is %s, which is in the future here; the clock "
                "of a process is or was wrong",
                *(self._name, _shown(stored)),
            )
            done = now - _ON_TIME
        since = max(done, now - self._window)
        tick = self._next(since, now)
        advanced = since if tick is None else tick
        first_missed = self.after(done)
        is_new = True
        if tick is not None:
            is_new = await self._enqueue(tick)
            self._last = max(self._last, tick)
        if first_missed <= now or stored != done:
            late = is_new and first_missed < now - _ON_TIME
            reached = await self._store(stored, advanced)
            if late and reached == advanced:
                self._report(first_missed, tick)
        self.is_behind = tick is not None and self.after(tick) <= now

    def _next(self, since: float, now: float) -> float | None:
        if self._missed == "all":
            tick = self.after(since)
            return tick if tick <= now else None
        return latest(self.after, since, now)

    async def _store(self, expected: float | None, tick: float) -> float:
        gap = self.after(tick) - tick
        return await self._advance(expected, tick, _FORGOTTEN + 2 * gap)

    def _report(self, first: float, tick: float | None) -> None:
        log(
            logging.INFO,
            "schedule of %s: ticks since %s were missed; %s",
            self._name,
            _shown(first),
            "they are skipped" if tick is None else f"that of {_shown(tick)} is enqueued now",
        )


class TickerClock(Schedule):
    """The times at which a ticker runs: at the start, at each tick, and after a jump of the clock.

    Args:
        ticker: The ticker.
    """

    __slots__ = ("_ticker",)

    def __init__(self, ticker: Ticker) -> None:
        self._ticker = ticker

    def ticks(self, now: float, wall: float) -> Ticks:
        return _TickerTicks(self._ticker, self.after)

    def after(self, wall: float) -> float:
        return self._ticker.after(wall)


class _TickerTicks(Calendar):
    def __init__(self, ticker: Ticker, after: Callable[[float], float]) -> None:
        super().__init__(after)
        self._ticker = ticker
        self._is_now = False

    def next(self, now: float, wall: float, took: float = 0.0) -> float:
        # Ticks from before the clock was set back are found again; the broker knows them.
        self._is_now = self._ticker.is_behind
        return now if self._is_now else self._find(now, wall, wall)

    def confirm(self, due: float, now: float, wall: float) -> float:
        if self._is_now or wall - self._tick > self.patience:  # the process slept through the tick
            return min(due, now)
        return super().confirm(due, now, wall)


def latest(after: Callable[[float], float], since: float, now: float) -> float | None:
    """Return the latest tick later than `since` and not later than `now`, by bisection."""
    found, low, high = None, since, now
    while (tick := after(low)) <= now:
        found = low = tick
        middle = (low + high) / 2
        if (later := after(middle)) <= now:
            found = low = later
        else:
            high = middle
    return found


def _shown(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
