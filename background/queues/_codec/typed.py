"""Conversion of values of annotated types with msgspec; imported only if msgspec is installed.

Pydantic models are converted by their own methods. Pydantic is not imported here, because it has
been imported if there is a model.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from datetime import datetime, time
from typing import Any

import msgspec

from .._errors import InvalidPayloadError

_SCALARS: frozenset[type[Any]] = frozenset({str, int, float, bool, types.NoneType})
_SEQUENCES: tuple[type[Any], ...] = (list, tuple)


class Typed:
    """Converts values of one annotated type.

    Args:
        what: The name of the value in messages.
        annotation: The type.

    Raises:
        TypeError: msgspec can't decode the type, for example a union that is ambiguous in JSON.
        NameError: A name in the type is not defined.
    """

    def __init__(self, what: str, annotation: Any) -> None:
        #: Types of values that need neither a conversion nor a check.
        self.as_is: frozenset[type[Any]] = _SCALARS.intersection(_members(annotation))
        self._what = what
        # msgspec caches its information about Structs, but not about other types.
        self._holder = msgspec.defstruct("Holder", [("it", annotation)])
        msgspec.json.Decoder(self._holder)

    def dump(self, value: Any) -> Any:
        """Convert a value to plain data, which `load` converts to an equal value.

        Raises:
            InvalidPayloadError: The value can't be converted, or would be decoded differently.
        """
        try:
            plain = msgspec.to_builtins(value, str_keys=True, enc_hook=_encode)
            again = self._convert(plain)
            is_same = bool(again == value) or _alike(again, value)
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
        holder: Any = msgspec.convert({"it": plain}, self._holder, str_keys=True, dec_hook=_decode)
        return holder.it

    def _invalid(self, error: Exception) -> InvalidPayloadError:
        reason = str(error).replace("`$.it", "`$").removesuffix(" - at `$`")
        return InvalidPayloadError(f"{self._what}: {reason or type(error).__name__}")


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the types in a union, or the type itself if it is not a union."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _encode(value: Any) -> Any:
    if is_model(type(value)):
        # By field names, because aliases may differ for validation and serialization.
        return value.model_dump(mode="json", by_alias=False, round_trip=True, warnings=False)
    raise TypeError(f"{type(value).__qualname__} can't be sent")


def _decode(kind: Any, value: Any) -> Any:
    if not is_model(kind):
        return value
    pydantic: Any = sys.modules["pydantic"]
    try:
        return kind.model_validate(value, by_name=True)
    except pydantic.ValidationError as error:
        # Without the data, which pydantic's message quotes.
        raise ValueError("; ".join(map(_line, error.errors()))) from None


def is_model(kind: Any) -> bool:
    """Return whether a type is a pydantic model."""
    pydantic: Any = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


def _line(error: dict[str, Any]) -> str:
    where = ".".join(map(str, error["loc"]))
    return f"{where}: {error['msg']}" if where else str(error["msg"])


def _alike(again: Any, sent: Any) -> bool:
    """Return whether a decoded value equals the value that was sent, where `==` does not suffice.

    Tuples and lists are the same in JSON. Objects that compare by identity are compared by their
    fields. Times are compared by their digits and UTC offsets, because a time in the hour that is
    repeated at the end of summer time never equals a time in another zone:
    https://peps.python.org/pep-0495/#inter-zone-comparison

    Args:
        again: The decoded value.
        sent: The value that was sent.
    """
    kind: type[Any] = sent.__class__
    if issubclass(kind, _SEQUENCES):
        is_sequence = isinstance(again, _SEQUENCES) and len(sent) == len(again)
        return is_sequence and all(map(_alike, again, sent))
    if issubclass(kind, dict):
        is_mapping = isinstance(again, dict) and sent.keys() == again.keys()
        return is_mapping and all(_alike(again[key], sent[key]) for key in sent)
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
    """Return the names of the fields to compare in a dataclass, a Struct or a pydantic model."""
    if is_dataclass(kind):
        return [field.name for field in fields(kind) if field.compare]
    if is_model(kind):
        return [*kind.model_fields, "model_extra"]
    names: Iterable[str] | None = getattr(kind, "__struct_fields__", None)
    return names
