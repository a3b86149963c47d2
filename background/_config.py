"""The settings of a manager, and their checks."""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterable
from inspect import iscoroutinefunction
from typing import TypedDict

from tenacity.wait import wait_base

from ._observer import Observer, check_observers, overrides
from ._retry import Retry, make_policy
from ._support import validation
from ._support.callables import is_async
from ._support.frozen import frozen

_UNCATCHABLE = {
    getattr(signal, name, None)
    for name in ("SIGKILL", "SIGSTOP", "CTRL_C_EVENT", "CTRL_BREAK_EVENT")
}

#: The signals of `signals=True`.
_DEFAULT_SIGNALS = frozenset(
    number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGBREAK")
)


class ManagerOptions(TypedDict, total=False):
    """The arguments of `Manager`."""

    name: str
    observers: Observer | Iterable[Observer]
    retry: Retry
    limit: int | None
    capacity: int | None
    loop_backoff: wait_base | None
    threads: int
    signals: bool | Collection[signal.Signals]
    grace: float | None
    leave_timeout: float | None
    cancel_timeout: float


@frozen
class ManagerConfig:
    """The checked settings of a manager.

    `signals_optional` means that signals are ignored where they can't be handled.
    """

    name: str
    observers: tuple[Observer, ...]
    retry: Retry
    limit: int | None
    capacity: int | None
    loop_backoff: wait_base | None
    threads: int
    signals: frozenset[signal.Signals]
    signals_optional: bool
    grace: float | None
    leave_timeout: float | None
    cancel_timeout: float

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"name must be a string that is not empty, not {self.name!r}")
        make_policy(self.retry)
        _check_own_observers(self.observers)
        validation.optional(validation.count, "limit", self.limit)
        validation.optional(validation.count, "capacity", self.capacity)
        validation.optional(_check_backoff, "loop_backoff", self.loop_backoff)
        validation.count("threads", self.threads)
        for number in self.signals & _UNCATCHABLE:
            raise ValueError(f"signals can't contain {number.name}, which no process can handle")
        validation.optional(validation.seconds, "grace", self.grace, at_least=0)
        validation.optional(validation.seconds, "leave_timeout", self.leave_timeout, at_least=0)
        validation.seconds("cancel_timeout", self.cancel_timeout, at_least=0)


def _check_backoff(argument: str, backoff: object) -> None:
    if not callable(backoff) or isinstance(backoff, type):
        raise ValueError(f"{argument} must be a tenacity wait strategy or None, not {backoff!r}")
    if is_async(backoff):
        raise ValueError(f"{argument} must be a def that returns seconds, not an async def")


def _check_own_observers(observers: tuple[Observer, ...]) -> None:
    check_observers(observers, ValueError)
    for observer in observers:
        if overrides(observer, "watch") and not iscoroutinefunction(observer.watch):
            raise ValueError(f"observers: {type(observer).__name__}.watch must be an async def")


def signals_of(signals: bool | Collection[signal.Signals]) -> frozenset[signal.Signals]:
    """Return the signals to handle, which may be given as numbers, too.

    Raises:
        ValueError: `signals` is neither a bool nor a collection of signals.
    """
    if isinstance(signals, bool):
        return _DEFAULT_SIGNALS if signals else frozenset()
    given = validation.collected("signals", signals)
    try:
        return frozenset(signal.Signals(number) for number in given)
    except ValueError as error:
        raise ValueError(f"signals must be True, or a collection of signals: {error}") from None
