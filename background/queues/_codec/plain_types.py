"""Annotations without msgspec, which accept plain data only."""

from __future__ import annotations

import types
import typing
from typing import Any

#: Of each type that decoded JSON has; tuples are sent as lists.
_VALUES: tuple[Any, ...] = ("", 0, 0.0, True, None, [], {}, ())


def other_type(annotation: Any) -> type[Any] | None:
    """Return a class in an annotation whose objects are no plain data, or `None`."""
    left = [annotation]
    while left:
        part = left.pop()
        origin: Any = typing.get_origin(part)
        arguments = typing.get_args(part)
        if origin is typing.Literal:
            continue
        if origin is typing.Annotated:
            arguments = arguments[:1]
        elif origin not in (typing.Union, types.UnionType):
            kind = origin or getattr(part, "__supertype__", part)
            if isinstance(kind, type) and not _is_plain(kind):
                return kind
        left += arguments
    return None


def _is_plain(kind: type[Any]) -> bool:
    try:
        return any(isinstance(value, kind) for value in _VALUES)
    except TypeError:  # a TypedDict or a protocol, for example
        return True
