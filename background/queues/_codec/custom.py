"""Types that msgspec does not know: some of the standard library, pydantic models, registered ones.

Pydantic models are converted by their own methods. Pydantic is not imported here, because it has
been imported if there is a model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import PurePath
from typing import Any

from ..._support.redacted import kind_of

#: The parts of pydantic's messages that come from types, and not from values.
_SAFE = {
    *("actual_length", "class_name", "expected", "field_type", "ge", "gt", "le", "lt"),
    *("max_length", "min_length", "multiple_of", "pattern"),
}

_PLAIN_VALUES: tuple[Any, ...] = ("", 0, 0.0, True, None, [], {})


class RefusedError(ValueError):
    """A value can't be converted; the message has no values in it."""


class CustomTypes:
    """The types of one queue that msgspec does not know."""

    def __init__(self) -> None:
        self._registered: dict[type[Any], tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {}

    def register(
        self, cls: type[Any], encode: Callable[[Any], Any], decode: Callable[[Any], Any]
    ) -> None:
        """Register a type with its conversions to and from data that can be sent.

        Raises:
            ValueError: It is not a class, can be sent already, or is registered.
            ImportError: msgspec is not installed.
        """
        if find_spec("msgspec") is None:
            raise ImportError("register_type() needs the extra msgspec: anyio-background[msgspec]")
        from .inspection import is_known

        if not isinstance(cls, type):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"cls must be a class, not {kind_of(cls)}")
        if is_known(cls):
            raise ValueError(f"cls: msgspec encodes {cls.__qualname__} itself")
        if cls in self._registered:  # handlers may use the conversions
            raise ValueError(f"cls: {cls.__qualname__} is registered already")
        self._registered[cls] = encode, decode

    def is_registered(self, kind: type[Any]) -> bool:
        """Return whether a type was registered."""
        return kind in self._registered

    def can_travel(self, kind: Any) -> bool:
        """Return whether values of a type can be sent."""
        if kind in self._registered or is_model(kind) or _is_from_text(kind):
            return True
        with suppress(TypeError):  # not every type can be used with isinstance()
            return any(isinstance(value, kind) for value in _PLAIN_VALUES)
        return False

    def encode(self, value: Any) -> Any:
        """Convert a value to data that can be sent.

        Raises:
            RefusedError: It can't be sent, or the function for its type raised an error.
        """
        kind: type[Any] = value.__class__
        encode = self._encoder(kind)
        if encode is None:
            raise RefusedError(f"{kind.__qualname__} can't be sent")
        try:
            return encode(value)
        except Exception as error:
            raise RefusedError(
                f"{kind.__qualname__} can't be sent: {type(error).__name__}"
            ) from None

    def _encoder(self, kind: type[Any]) -> Callable[[Any], Any] | None:
        """Return the function that converts values of a type, or `None` if they can't be sent."""
        for base in kind.__mro__:
            if base in self._registered:
                return self._registered[base][0]
        if is_model(kind):
            return _encode_model
        return str if _is_from_text(kind) else None

    def decode(self, kind: Any, value: Any) -> Any:
        """Convert data to a type; data for other types is returned unchanged.

        Raises:
            RefusedError: The data does not fit, or the function for the type raised an error.
        """
        if kind in self._registered:
            decode = self._registered[kind][1]
        elif is_model(kind):
            return _decode_model(kind, value)
        elif _is_from_text(kind):
            if type(value) is not str:
                raise RefusedError(f"Expected `str`, got `{type(value).__qualname__}`")
            decode = partial(_from_text, kind)
        else:
            return value
        try:
            return decode(value)
        except Exception as error:
            raise RefusedError(
                f"{kind.__qualname__} can't be decoded: {type(error).__name__}"
            ) from None


@cache
def _text_types() -> tuple[type[Any], ...]:
    """Return types of the standard library that can be made from their `str()`."""
    # Imported by the first handler, and not with the package.
    import ipaddress
    from fractions import Fraction

    return (
        PurePath,
        ipaddress.IPv4Address,
        ipaddress.IPv4Network,
        ipaddress.IPv4Interface,
        ipaddress.IPv6Address,
        ipaddress.IPv6Network,
        ipaddress.IPv6Interface,
        Fraction,
    )


def _is_from_text(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, _text_types())


def _from_text(kind: type[Any], text: str) -> Any:
    from fractions import Fraction

    if issubclass(kind, Fraction):
        # Fraction() also takes "1e999999999", which is a number of a billion digits.
        return kind(*map(int, text.split("/")))
    return kind(text)


def is_model(kind: Any) -> bool:
    """Return whether a type is a pydantic model."""
    pydantic: Any = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


def _encode_model(value: Any) -> Any:
    # By field names, because aliases may differ for validation and serialization.
    return value.model_dump(mode="json", by_alias=False, round_trip=True, warnings=False)


def _decode_model(kind: Any, value: Any) -> Any:
    pydantic: Any = sys.modules["pydantic"]
    try:
        return kind.model_validate(value, by_name=True)
    except pydantic.ValidationError as error:
        lines = (_line(part, kind) for part in error.errors(include_input=False))
        raise RefusedError("; ".join(lines)) from None


def _line(error: dict[str, Any], kind: Any) -> str:
    """Return the text of one error, without keys of dicts and other values."""
    fields = kind.model_fields.keys() | {field.alias for field in kind.model_fields.values()}
    where = ".".join(
        str(part) if isinstance(part, int) or part in fields else "…" for part in error["loc"]
    )
    # Only pydantic's own messages have a URL, and only those with a context contain values.
    is_safe = "url" in error and error.get("ctx", {}).keys() <= _SAFE
    text = error["msg"] if is_safe else error["type"]
    return f"{where}: {text}" if where else str(text)
