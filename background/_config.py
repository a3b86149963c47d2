"""What a manager was told when it was made, checked."""

from __future__ import annotations

import signal
from collections.abc import Collection
from inspect import iscoroutinefunction

from tenacity import AsyncRetrying
from tenacity.wait import wait_base

from ._observer import Observer, check_observers, overrides
from ._support import validation
from ._support.frozen import record

_UNCATCHABLE = {
    getattr(signal, name, None)
    for name in ("SIGKILL", "SIGSTOP", "CTRL_C_EVENT", "CTRL_BREAK_EVENT")
}


@record
class Settings:
    """The arguments of `Manager`, in the form in which they are used."""

    name: str
    observers: tuple[Observer, ...]
    policy: AsyncRetrying | None
    limit: int | None
    capacity: int | None
    loop_backoff: wait_base | None
    threads: int
    signals: frozenset[signal.Signals]
    grace: float | None
    cancel_timeout: float

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"name must be a string that is not empty, not {self.name!r}")
        _check_standing(self.observers)
        validation.optional(validation.count, "limit", self.limit)
        validation.optional(validation.count, "capacity", self.capacity)
        if self.loop_backoff is not None and (
            not callable(self.loop_backoff) or isinstance(self.loop_backoff, type)
        ):
            raise ValueError(
                f"loop_backoff must be a tenacity wait strategy or None, not {self.loop_backoff!r}"
            )
        validation.count("threads", self.threads)
        for each in self.signals & _UNCATCHABLE:
            raise ValueError(f"signals can't contain {each.name}, which no process can handle")
        validation.optional(validation.seconds, "grace", self.grace, at_least=0)
        validation.seconds("cancel_timeout", self.cancel_timeout, at_least=0)


def _check_standing(observers: tuple[Observer, ...]) -> None:
    check_observers(observers, ValueError)
    for observer in observers:
        if overrides(observer, "watch") and not iscoroutinefunction(observer.watch):
            raise ValueError(f"observers: {type(observer).__name__}.watch must be an async def")


def known_signals(signals: Collection[signal.Signals]) -> frozenset[signal.Signals]:
    """Return the signals, also where plain numbers were given. Raises `ValueError`."""
    given = validation.collected("signals", signals)
    try:
        return frozenset(signal.Signals(each) for each in given)
    except ValueError as error:
        raise ValueError(f"signals must be a collection of signal.Signals: {error}") from None
