"""The log level of each event."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TypedDict

Level = int | str


class LogLevels(TypedDict, total=False):
    """Log levels by event, as numbers or names."""

    added: Level
    started: Level
    retrying: Level
    succeeded: Level
    failed: Level
    cancelled: Level
    stopped: Level
    released: Level
    expired: Level
    stalled: Level
    enqueued: Level
    dead: Level
    closing: Level
    closed: Level
    stuck: Level


_DEFAULTS: Mapping[str, Level] = {
    "added": logging.DEBUG,
    "started": logging.DEBUG,
    "retrying": logging.WARNING,
    "succeeded": logging.INFO,
    "failed": logging.ERROR,
    "cancelled": logging.WARNING,
    "stopped": logging.INFO,
    "released": logging.INFO,
    "expired": logging.WARNING,
    "stalled": logging.WARNING,
    "enqueued": logging.DEBUG,
    "dead": logging.ERROR,
    "closing": logging.INFO,
    "closed": logging.INFO,
    "stuck": logging.WARNING,
}


def level_numbers(chosen: Mapping[str, object]) -> dict[str, int]:
    """Return the level of each event as a number.

    Args:
        chosen: Levels by event; all other events have their default levels.

    Raises:
        TypeError: There is no such event.
        ValueError: There is no such level.
    """
    unknown = chosen.keys() - _DEFAULTS.keys()
    if unknown:
        raise TypeError(
            f"LoggingObserver has no event {', '.join(sorted(unknown))}; "
            f"its events are {', '.join(_DEFAULTS)}"
        )
    return {event: _number(event, chosen.get(event, level)) for event, level in _DEFAULTS.items()}


def _number(event: str, level: object) -> int:
    number = logging.getLevelNamesMapping().get(level, 0) if isinstance(level, str) else level
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{event} must be a level such as logging.INFO or 'INFO', not {level!r}")
    return number
