"""Conversion of values of annotated types with msgspec; imported only if msgspec is installed."""

from __future__ import annotations

import re
import types
import typing
from typing import Any

import msgspec

from .._errors import InvalidPayloadError
from .collisions import CollisionCheck
from .custom import CustomTypes, RefusedError
from .equality import alike
from .inspection import described, unknown_type

_SCALARS: frozenset[type[Any]] = frozenset({str, int, float, bool, types.NoneType})
#: The values in messages of msgspec.
_VALUE = re.compile(
    r"(?<=^Invalid enum value) .*|(?<=^Invalid value) .*|(?<=unknown field) `.*", re.S
)


class Typed:
    """Converts values of one annotated type.

    Args:
        what: The name of the value in messages.
        annotation: The type.
        custom: The types that msgspec does not know.

    Raises:
        TypeError: msgspec can't decode the type, for example a union that is ambiguous in JSON.
        NameError: A name in the type is not defined.
    """

    def __init__(self, what: str, annotation: Any, custom: CustomTypes) -> None:
        members = _members(annotation)
        #: Types of values that need neither a conversion nor a check.
        self.as_is: frozenset[type[Any]] = _SCALARS.intersection(members)
        #: A type in the annotation whose values can't be sent.
        self.unknown: type[Any] | None = None
        self._what = what
        self._custom = custom
        # msgspec caches its information about Structs, but not about other types.
        self._holder = msgspec.defstruct("Holder", [("it", annotation)])
        msgspec.json.Decoder(self._holder)
        self._collisions: CollisionCheck | None = None
        if not _SCALARS.issuperset(members):
            info = described(annotation)
            self.unknown = unknown_type(info, custom.can_travel)
            check = CollisionCheck(info, custom)
            self._collisions = check if check.is_needed else None

    def dump(self, value: Any) -> Any:
        """Convert a value to plain data, which `load` converts to an equal value.

        Raises:
            InvalidPayloadError: The value can't be converted, or would be decoded differently.
        """
        try:
            plain = msgspec.to_builtins(value, str_keys=True, enc_hook=self._custom.encode)
            again = self._convert(plain)
            is_same = bool(again == value) or alike(again, value, self._custom)
        except Exception as error:  # from methods of the value
            raise self._invalid(error) from None
        if not is_same:
            sent, got = type(value).__qualname__, type(again).__qualname__
            back = "changed" if type(again) is type(value) else f"as a {got}"
            raise InvalidPayloadError(
                f"{self._what}: a {sent} would come back {back}; annotate it, and all values "
                "inside it, with their types"
            )
        return plain

    def load(self, value: Any) -> Any:
        """Convert plain data to the annotated type.

        Raises:
            InvalidPayloadError: The data does not fit the type.
        """
        try:
            return self._convert(value)
        except Exception as error:
            raise self._invalid(error) from None

    def _convert(self, plain: Any) -> Any:
        if self._collisions is not None:
            self._collisions.check(plain)
        holder: Any = msgspec.convert(
            {"it": plain}, self._holder, str_keys=True, dec_hook=self._custom.decode
        )
        return holder.it

    def _invalid(self, error: Exception) -> InvalidPayloadError:
        return InvalidPayloadError(f"{self._what}: {_reason(error)}")


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the types in a union, or the type itself if it is not a union."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _reason(error: Exception) -> str:
    """Return the reason of an error without values, which may be secret."""
    if isinstance(error, RefusedError):
        return str(error)
    if not isinstance(error, msgspec.ValidationError):
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        is_msgspecs = traceback is not None and traceback.tb_frame.f_globals is globals()
        return str(error) if is_msgspecs else type(error).__name__
    message, _, place = str(error).rpartition(" - at `")
    cause = error.__cause__  # of functions of users, and of `CustomTypes`
    if isinstance(cause, RefusedError):
        message = str(cause)
    elif cause is not None:
        message = type(cause).__name__
    place = place.replace("$.it", "$", 1)
    return _VALUE.sub("", message) + ("" if place == "$`" else f" - at `{place}")
