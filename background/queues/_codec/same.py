"""Whether what came back is what was sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from datetime import datetime, time
from typing import Any

from .models import is_model

_SEQUENCES: tuple[type[Any], ...] = (list, tuple)


def same(again: Any, sent: Any) -> bool:
    """Compare two values, one of which has travelled.

    Tuples and lists are the same to JSON. What compares by identity is compared by its fields, and
    a time by what it shows: one in the hour that is repeated when summer time ends equals none of
    another time zone, not even if both mean the same moment.
    """
    return bool(again == sent) or _alike(again, sent)


def _alike(again: Any, sent: Any) -> bool:
    """Go down to what has no parts, and compare only that: each part is looked at once."""
    kind: type[Any] = sent.__class__
    if issubclass(kind, _SEQUENCES):
        alike = isinstance(again, _SEQUENCES) and len(sent) == len(again)
        return alike and all(map(_alike, again, sent))
    if issubclass(kind, dict):
        alike = isinstance(again, dict) and sent.keys() == again.keys()
        return alike and all(_alike(again[key], sent[key]) for key in sent)
    if issubclass(kind, (datetime, time)):
        return isinstance(again, (datetime, time)) and _shown(again) == _shown(sent)
    names = _compared(kind)
    if names is not None:
        return type(again) is kind and all(
            _alike(getattr(again, name), getattr(sent, name)) for name in names
        )
    return bool(again == sent)


def _shown(when: datetime | time) -> tuple[Any, ...]:
    return when.replace(tzinfo=None), when.utcoffset()


def _compared(kind: type[Any]) -> Iterable[str] | None:
    """Return the names of the fields of a dataclass, of msgspec's or of pydantic's models."""
    if is_dataclass(kind):
        return [each.name for each in fields(kind) if each.compare]
    if is_model(kind):
        return [*kind.model_fields, "model_extra"]
    names: Iterable[str] | None = getattr(kind, "__struct_fields__", None)
    return names
