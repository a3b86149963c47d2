"""Equality of values that were sent and decoded, where `==` does not suffice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from datetime import datetime, time
from itertools import repeat
from typing import Any

from .custom import CustomTypes, is_model

_SEQUENCES: tuple[type[Any], ...] = (list, tuple)


def alike(again: Any, sent: Any, custom: CustomTypes) -> bool:
    """Return whether a decoded value equals the value that was sent.

    Tuples and lists are the same in JSON. Objects that compare by identity are compared by their
    fields, and objects of registered types by what is sent for them. Times are compared by their
    digits and UTC offsets, because a time in the hour that is repeated at the end of summer time
    never equals a time in another zone: https://peps.python.org/pep-0495/#inter-zone-comparison

    Args:
        again: The decoded value.
        sent: The value that was sent.
        custom: The registered types.
    """
    kind: type[Any] = sent.__class__
    if issubclass(kind, _SEQUENCES):
        is_sequence = isinstance(again, _SEQUENCES) and len(sent) == len(again)
        return is_sequence and all(map(alike, again, sent, repeat(custom)))
    if issubclass(kind, dict):
        is_mapping = isinstance(again, dict) and sent.keys() == again.keys()
        return is_mapping and all(alike(again[key], sent[key], custom) for key in sent)
    if issubclass(kind, (datetime, time)):
        return isinstance(again, (datetime, time)) and _shown(again) == _shown(sent)
    if type(again) is kind and custom.is_registered(kind):
        return bool(again == sent or custom.encode(again) == custom.encode(sent))
    names = _compared(kind)
    if names is not None:
        return type(again) is kind and all(
            alike(getattr(again, name), getattr(sent, name), custom) for name in names
        )
    return bool(again == sent)


def _shown(when: datetime | time) -> tuple[Any, ...]:
    return when.replace(tzinfo=None), when.utcoffset()


def _compared(kind: type[Any]) -> Iterable[str] | None:
    """Return the names of the fields to compare in a dataclass, a Struct or a pydantic model."""
    if is_dataclass(kind):
        return [field.name for field in fields(kind) if field.compare]
    if is_model(kind):
        return [*kind.model_fields, "model_extra"]
    names: Iterable[str] | None = getattr(kind, "__struct_fields__", None)
    return names
