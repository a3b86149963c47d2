"""The errors of observers, which are counted, and logged once per hook."""

from __future__ import annotations

import logging
from collections import Counter

from .._support.log import log


class HookErrors:
    """Errors and dropped events of one manager's observers, by the name of their class."""

    def __init__(self) -> None:
        self._errors: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()

    @property
    def raised_count(self) -> int:
        """The number of errors that hooks raised."""
        return self._errors.total()

    @property
    def dropped_count(self) -> int:
        """The number of events that were dropped or not delivered."""
        return self._dropped.total()

    def raised(self, observer: str, hook: str, error: BaseException) -> None:
        """Record an error of a hook."""
        name = f"{observer}.{hook}"
        self._errors[name] += 1
        if self._errors[name] == 1:
            log(
                logging.ERROR,
                "Observer hook %s raised an exception. Tasks are unaffected; further errors of "
                "this hook are counted, not logged.",
                name,
                error=error,
            )

    def overflowed(self, observer: str, hook: str, buffered: int) -> None:
        """Record an event that was dropped because the buffer was full."""
        self._dropped[observer] += 1
        if self._dropped[observer] == 1:
            log(
                logging.WARNING,
                "Observer hook %s.%s is too slow: %d events are buffered. Events that do not fit "
                "are dropped and counted.",
                observer,
                hook,
                buffered,
            )

    def undelivered(self, observer: str, events: int) -> None:
        """Record events that were still buffered at the end."""
        self._dropped[observer] += events

    def summarise(self) -> None:
        """Log the number of errors of each hook, and of missed events of each observer."""
        for name, count in self._errors.items():
            if count > 1:
                log(logging.ERROR, "Observer hook %s raised %d exceptions in all.", name, count)
        for observer, count in self._dropped.items():
            if count:
                text = "Observer %s missed %d events."
                log(logging.WARNING, text, observer, count)
