"""What goes wrong with observers: logged once for each hook, and counted."""

from __future__ import annotations

import logging
from collections import Counter

from .._support.log import log


class Complaints:
    """One manager's complaints; a hook is that of a class, whatever the number of its objects."""

    def __init__(self) -> None:
        self._errors: Counter[str] = Counter()
        self._missed: Counter[str] = Counter()

    @property
    def errors(self) -> int:
        """How often hooks have raised."""
        return self._errors.total()

    @property
    def missed(self) -> int:
        """How many events came too fast for an `async def` hook."""
        return self._missed.total()

    def raised(self, observer: str, hook: str, error: BaseException) -> None:
        """Take note of an error."""
        name = f"{observer}.{hook}"
        self._errors[name] += 1
        if self._errors[name] == 1:
            log(
                logging.ERROR,
                "%s raised; no task is harmed, and more errors of this hook are only counted",
                name,
                error=error,
            )

    def overflowed(self, observer: str, hook: str, waiting: int) -> None:
        """Take note of an event that found no room behind the ones that are waiting."""
        self._missed[observer] += 1
        if self._missed[observer] == 1:
            log(
                logging.WARNING,
                "%s.%s is too slow: %d events wait for it, and it misses what comes",
                observer,
                hook,
                waiting,
            )

    def undelivered(self, observer: str, events: int) -> None:
        """Take note of events that were still waiting in the end."""
        self._missed[observer] += events

    def summarise(self) -> None:
        """Log the counts."""
        for name, count in self._errors.items():
            if count > 1:
                log(logging.ERROR, "%s raised %d times", name, count)
        for observer, count in self._missed.items():
            if count:
                text = "%s was too slow for %d events, which it missed"
                log(logging.WARNING, text, observer, count)
