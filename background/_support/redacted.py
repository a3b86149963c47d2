"""Text about values that does not contain them, because they may be personal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def kind_of(value: object) -> str:
    """Return the type of a value, as in `str`."""
    return type(value).__qualname__


def kinds(values: Iterable[object]) -> str:
    """Return the types of values, as in `(str, int)`."""
    return f"({', '.join(map(kind_of, values))})"


def kinds_by_name(values: Mapping[str, object]) -> str:
    """Return the types of values by name, as in `{'to': str}`."""
    listed = (f"{name!r}: {kind_of(value)}" for name, value in values.items())
    return f"{{{', '.join(listed)}}}"


def options(values: Mapping[str, Any]) -> str:
    """Return options, with the types of metadata, as in `delay=5, meta={'to': str}`."""
    shown = (
        f"{name}={kinds_by_name(value or {}) if name == 'meta' else repr(value)}"
        for name, value in values.items()
    )
    return ", ".join(shown) or "no options"
