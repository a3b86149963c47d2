"""Schedules: the due times of the iterations of loops.

Schedules are immutable and shared by any number of loops; a loop's own state is in its `Ticks`.
Both take times as arguments and never read a clock.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import field
from datetime import UTC, datetime, tzinfo

from ._errors import InvalidTaskError
from ._support import validation
from ._support.frozen import frozen

SHORTEST = 1e-6  # seconds between ticks

#: Seconds that a change of the wall clock may delay a tick, at most.
PATIENCE = 60.0

_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


class Ticks(ABC):
    """The due times of one loop."""

    #: The most seconds of a wait before the clocks must be read again.
    patience: float = math.inf

    @abstractmethod
    def next(self, now: float, wall: float, took: float = 0.0) -> float:
        """Return when the tick after the last one is due, on the clock of `now`.

        `took` is the duration of the iteration that has just ended, in seconds.
        """

    def confirm(self, due: float, now: float, wall: float) -> float:
        """Return when a tick is due by the current clocks; `due` was computed earlier."""
        return due


class Schedule(ABC):
    """The ticks of a loop; made by `every()` and `cron()`, and not meant to be subclassed."""

    __slots__ = ()

    @abstractmethod
    def ticks(self, now: float, wall: float) -> Ticks:
        """Return the ticks of a loop that may start at `now` or later."""

    @abstractmethod
    def after(self, wall: float) -> float:
        """Return the first tick later than `wall` that all processes share.

        Both are in seconds since the epoch.
        """


@frozen
class Every(Schedule):
    """A fixed rate; made by `every()`."""

    seconds: float
    jitter: float = 0.0

    def ticks(self, now: float, wall: float) -> Ticks:
        return _Grid(self.seconds, self.jitter, now)

    def after(self, wall: float) -> float:
        number = math.floor(wall / self.seconds)
        while number * self.seconds <= wall:  # the division may be rounded down
            number += 1
        return number * self.seconds


class _Grid(Ticks):
    def __init__(self, interval: float, jitter: float, anchor: float) -> None:
        self._interval = interval
        self._jitter = jitter
        self._anchor = anchor
        self._number = -1

    def next(self, now: float, wall: float, took: float = 0.0) -> float:
        # An iteration misses a tick if it ran long, not if it merely began late. Sums of floats
        # are slightly off the grid; that misses no tick either.
        since = now - took if took < self._interval else now
        reached = math.ceil((since - self._jitter - self._anchor) / self._interval - 1e-6)
        self._number = max(self._number + 1, reached)
        due = self._anchor + self._number * self._interval
        return max(now, due + random.uniform(0, self._jitter)) if self._jitter else due


@frozen
class Cron(Schedule):
    """A cron expression in a time zone; made by `cron()`."""

    expression: str
    tz: str = "UTC"
    zone: tzinfo = field(default=UTC, repr=False, compare=False)

    def ticks(self, now: float, wall: float) -> Ticks:
        return Calendar(self.after)

    def after(self, wall: float) -> float:
        from cronsim import CronSim

        start = datetime.fromtimestamp(wall, self.zone)
        ticks = (found.timestamp() for found in CronSim(self.expression, start))
        # In an hour that is repeated, the first one is the tick from its first time.
        return next(tick for tick in ticks if tick > wall)


class Calendar(Ticks):
    """Ticks on the wall clock.

    Args:
        after: Returns the first tick later than a time.
    """

    patience = PATIENCE

    def __init__(self, after: Callable[[float], float]) -> None:
        self._after = after
        self._tick = -math.inf
        self._last = -math.inf  # the tick before it
        self._read_at = 0.0  # when the clocks were last read, on the event loop's clock

    def next(self, now: float, wall: float, took: float = 0.0) -> float:
        self._last = self._tick
        return self._find(now, wall, wall)

    def confirm(self, due: float, now: float, wall: float) -> float:
        delayed = now + self._tick - wall - due
        if wall - self._tick > self.patience or delayed >= self.patience:
            # The process slept through the tick, so the tick is missed; or the clock was set back
            # across earlier ticks. A tick since the last reading of the clocks is in time.
            return self._find(now, wall, wall - min(self.patience, now - self._read_at))
        self._read_at = now
        return now + max(0.0, self._tick - wall)

    def _find(self, now: float, wall: float, after: float) -> float:
        self._read_at = now
        self._tick = self._after(max(self._last, after))
        return now + max(0.0, self._tick - wall)


def every(seconds: float, *, jitter: float = 0.0) -> Schedule:
    """Make a schedule with a fixed rate, whose first tick is immediate.

    A tick during an iteration is skipped. Jitter delays each tick by a random time, which spreads
    the loops of many processes; the grid itself does not move.

    Args:
        seconds: Seconds from one tick to the next, at least a microsecond.
        jitter: The most seconds by which a tick is delayed, at most `seconds`.

    Returns:
        The schedule.

    Raises:
        InvalidTaskError: An argument is not valid.
    """
    validation.seconds("seconds", seconds, at_least=SHORTEST, error=InvalidTaskError)
    validation.seconds("jitter", jitter, at_least=0, error=InvalidTaskError)
    if jitter > seconds:
        raise InvalidTaskError(
            f"jitter must be at most the {seconds:g} seconds between ticks, not {jitter!r}"
        )
    return Every(seconds=float(seconds), jitter=float(jitter))


def cron(expression: str, *, tz: str = "UTC") -> Schedule:
    """Make a schedule from a cron expression.

    Daylight saving follows Debian's cron: a local time that does not exist runs once, right after
    the gap; a local time that exists twice runs once. (Where clocks change by half an hour, as on
    Lord Howe Island, ticks within that hour may be missed.) A tick during an iteration, or one that
    the process or the clock jumped over by more than a minute, is skipped. If the clock is set
    back, no tick runs again: a loop waits until the clock has reached the next one.

    Args:
        expression: Five fields; six with seconds first; or `@hourly`, `@daily`, `@weekly`,
            `@monthly` or `@yearly`.
        tz: The time zone in which the expression is read.

    Returns:
        The schedule.

    Raises:
        InvalidTaskError: The expression is wrong or never due, or the zone is unknown.
    """
    from cronsim import CronSimError

    if not isinstance(expression, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidTaskError(
            f"expression must be a string such as '0 3 * * *', not {expression!r}"
        )
    fields = " ".join(expression.split())
    schedule = Cron(expression=_ALIASES.get(fields.lower(), fields), tz=tz, zone=_zone(tz))
    try:
        schedule.after(0.0)
    except CronSimError as error:
        raise InvalidTaskError(
            f"expression {expression!r} is not a cron expression: {error}"
        ) from None
    except StopIteration:
        raise InvalidTaskError(f"expression {expression!r} is never due") from None
    return schedule


def _zone(tz: str) -> tzinfo:
    if tz == "UTC":  # cronsim has a fast path for this object
        return UTC
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise InvalidTaskError(
            f"tz must be a time zone such as 'Europe/Prague', not {tz!r}"
        ) from None
