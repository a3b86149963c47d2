"""The types in annotations; imported only if msgspec is installed."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping, Set
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from msgspec import inspect

_TYPES: dict[type[Any], Any] = {
    inspect.NoneType: None,
    inspect.BoolType: bool,
    inspect.IntType: int,
    inspect.FloatType: float,
    inspect.StrType: str,
    inspect.BytesType: bytes,
    inspect.DateTimeType: datetime,
    inspect.DateType: date,
    inspect.TimeType: time,
    inspect.TimeDeltaType: timedelta,
    inspect.UUIDType: UUID,
    inspect.DecimalType: Decimal,
}


def described(annotation: Any) -> Any:
    """Return msgspec's description of a type; any type if it has none."""
    try:
        return inspect.type_info(annotation)
    except Exception:
        return inspect.AnyType()


def described_in_model(annotation: Any) -> Any:
    """Return a description of a type that pydantic decodes, such as `Counter[int]`.

    msgspec does not describe what is inside a collection that it does not know.
    """
    while (named := getattr(annotation, "__supertype__", annotation)) is not annotation:
        annotation = named
    origin: Any = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        return described_in_model(arguments[0])
    parts = [described_in_model(part) for part in arguments if part is not ...]
    if origin in (typing.Union, types.UnionType):
        return inspect.UnionType(tuple(parts))
    if not isinstance(origin, type) or not issubclass(origin, Iterable):
        return described(annotation)
    if issubclass(origin, tuple) and ... not in arguments:
        return inspect.TupleType(tuple(parts))
    if issubclass(origin, Mapping):
        return inspect.DictType(parts[0], parts[-1])
    make = inspect.SetType if issubclass(origin, Set) else inspect.ListType
    return make(inspect.UnionType(tuple(parts)))


def is_known(cls: type[Any]) -> bool:
    """Return whether msgspec can decode a class itself."""
    return not isinstance(described(cls), inspect.CustomType)


def inner(info: Any, *, required: bool = False) -> Iterable[Any]:
    """Return the types directly inside a type.

    Args:
        info: The type.
        required: Whether fields with defaults are left out.
    """
    if hasattr(info, "fields"):
        return [field.type for field in info.fields if field.required or not required]
    if hasattr(info, "key_type"):
        return info.key_type, info.value_type
    for name in ("item_types", "types"):
        if hasattr(info, name):
            parts: Iterable[Any] = getattr(info, name)
            return parts
    return [getattr(info, name) for name in ("item_type", "type") if hasattr(info, name)]


def unknown_type(info: Any, can_travel: Callable[[Any], bool]) -> type[Any] | None:
    """Return a type inside a type whose values must be sent, but can't be, or `None`.

    Args:
        info: The type.
        can_travel: Whether values of a type that msgspec does not know can be sent.
    """
    left, seen = [info], set[int]()
    while left:
        part = left.pop()
        if id(part) not in seen:
            seen.add(id(part))
            if isinstance(part, inspect.CustomType) and not can_travel(part.cls):
                return part.cls
            left += inner(part, required=True)
    return None


def type_of(info: Any) -> Any:
    """Return the type that was described, or `Any` if its values can't be hashed."""
    if type(info) in _TYPES:
        return _TYPES[type(info)]
    if isinstance(info, inspect.Metadata):
        return type_of(info.type)
    if isinstance(info, inspect.LiteralType):
        return typing.Literal[tuple(info.values)]
    if isinstance(info, inspect.UnionType):
        return typing.Union[tuple(map(type_of, info.types))]  # noqa: UP007
    if isinstance(info, inspect.TupleType):
        return tuple.__class_getitem__(tuple(map(type_of, info.item_types)))
    if isinstance(info, inspect.VarTupleType):
        return tuple.__class_getitem__((type_of(info.item_type), ...))
    if isinstance(info, inspect.FrozenSetType):
        return frozenset.__class_getitem__(type_of(info.item_type))
    return getattr(info, "cls", Any)
