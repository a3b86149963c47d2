"""Values of annotated types as plain data, by way of msgspec; imported where that is installed."""

from __future__ import annotations

import types
import typing
from typing import Any

import msgspec

from .._errors import InvalidPayloadError
from . import models
from .same import same

_SCALARS: frozenset[type[Any]] = frozenset({str, int, float, bool, types.NoneType})


class Typed:
    """How values of one annotated type travel.

    `as_is` has the types that need no conversion, and no check but that they are these.
    """

    def __init__(self, what: str, annotation: Any) -> None:
        """Raises `TypeError` for a type that can't be told from JSON, `NameError` for one in it
        that is not defined.
        """
        self.as_is: frozenset[type[Any]] = _SCALARS.intersection(_members(annotation))
        self._what = what
        # msgspec keeps what it knows of a Struct, and looks at anything else again every time.
        self._holder = msgspec.defstruct("Holder", [("it", annotation)])
        msgspec.json.Decoder(self._holder)

    def dump(self, value: Any) -> Any:
        """Return plain data that comes back as the same value. Raises `InvalidPayloadError`."""
        try:
            plain = msgspec.to_builtins(value, str_keys=True, enc_hook=_encode)
            again = self._convert(plain)
            alike = same(again, value)
        except Exception as error:  # of the value's own methods
            raise self._invalid(error) from None
        if not alike:
            sent, got = type(value).__qualname__, type(again).__qualname__
            back = "changed" if type(again) is type(value) else f"as a {got}"
            raise InvalidPayloadError(
                f"{self._what}: a {sent} would come back {back}; annotate all of it with the types "
                "that are sent"
            )
        return plain

    def load(self, value: Any) -> Any:
        """Return plain data as what is annotated. Raises `InvalidPayloadError`."""
        try:
            return self._convert(value)
        except Exception as error:
            raise self._invalid(error) from None

    def _convert(self, plain: Any) -> Any:
        holder: Any = msgspec.convert({"it": plain}, self._holder, str_keys=True, dec_hook=_decode)
        return holder.it

    def _invalid(self, error: Exception) -> InvalidPayloadError:
        reason = str(error).replace("`$.it", "`$").removesuffix(" - at `$`")
        return InvalidPayloadError(f"{self._what}: {reason or type(error).__name__}")


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the types that a union is made of, or the one that is none."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _encode(value: Any) -> Any:
    if models.is_model(type(value)):
        return models.dump(value)
    raise TypeError(f"{type(value).__qualname__} can't be sent")


def _decode(kind: Any, value: Any) -> Any:
    return models.load(kind, value) if models.is_model(kind) else value
