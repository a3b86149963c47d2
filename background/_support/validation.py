"""Checks of arguments; the error messages name the argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

from .redacted import kind_of

T = TypeVar("T")


def seconds(
    argument: str,
    value: object,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    error: type[Exception] = ValueError,
) -> None:
    """Raise `error` unless the value is a finite number of seconds within the bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise error(f"{argument} must be a number of seconds, not {value!r}")
    if not _is_finite(value) or value <= above or value < at_least:
        bound = f"more than {above:g}" if above > -math.inf else f"at least {at_least:g}"
        raise error(f"{argument} must be a finite number of seconds, {bound}, not {value!r}")


def count(argument: str, value: object, *, error: type[Exception] = ValueError) -> None:
    """Raise `error` unless the value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise error(f"{argument} must be a whole number of at least 1, not {value!r}")


def instances(
    argument: str,
    values: tuple[object, ...],
    kind: type,
    *,
    error: type[Exception] = ValueError,
    hint: str = "",
) -> None:
    """Raise `error` unless all values are instances of a class.

    Args:
        argument: The argument's name.
        values: The values. The message has their types only, because a URL may have a password.
        kind: The class.
        error: The class of the error.
        hint: What to do with a `str`, for the message.
    """
    for value in values:
        if isinstance(value, kind):
            continue
        shown = kind_of(value)
        if isinstance(value, type):
            shown = f"the class {value.__qualname__}; pass an instance"
        elif isinstance(value, str) and hint:
            shown = f"{shown}; {hint}"
        raise error(f"{argument} must be of type {kind.__name__}, not {shown}")


def optional(check: Callable[..., None], argument: str, value: object, **bounds: object) -> None:
    """Apply a check unless the value is `None`."""
    if value is not None:
        check(argument, value, **bounds)


def collected(
    argument: str, values: Iterable[T], *, error: type[Exception] = ValueError
) -> tuple[T, ...]:
    """Return an iterable as a tuple; raise `error` for text, and for what can't be iterated."""
    try:
        if not isinstance(values, (str, bytes)):
            return tuple(values)
    except TypeError:
        pass
    raise error(f"{argument} must be a collection, such as a tuple, not a {kind_of(values)}")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # no float can hold the int
        return False
