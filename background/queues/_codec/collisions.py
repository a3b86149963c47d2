"""A bound for elements of sets, and keys of mappings, that have equal hashes.

The hashes of numbers are not random, and neither are those of values that consist of numbers. The
time to make a set of elements with equal hashes grows with the square of their number: those of a
payload of 1 MiB would block the event loop for many seconds. So elements are hashed before a set is
made of them. The hashes of texts are random.
"""

from __future__ import annotations

import sys
import typing
from collections import Counter
from collections.abc import Iterable
from inspect import get_annotations
from typing import Any

import msgspec
from msgspec import inspect

from .custom import CustomTypes, RefusedError, is_model
from .inspection import described_in_model, inner, type_of

#: The most elements with equal hashes; unless they were chosen for that, there are a few.
_MOST_EQUAL = 50

#: The most elements that only pydantic can convert, whose hashes are therefore unknown.
_MOST_UNKNOWN = 1000


class CollisionCheck:
    """Checks plain data before it is converted to a type.

    Args:
        info: The type.
        types: The types that msgspec does not know.
    """

    def __init__(self, info: Any, types: CustomTypes) -> None:
        self._info = info
        self._types = types
        self._models: dict[type[Any], _Model] = {}
        self._needed: dict[int, bool] = {}

    @property
    def is_needed(self) -> bool:
        """Whether values of the type contain sets, or mappings whose keys are not texts."""
        return self._is_needed(self._info)

    def check(self, value: Any) -> None:
        """Check a value.

        Raises:
            RefusedError: Too many elements have equal hashes.
            ValidationError: An element can't be converted.
        """
        self._check(self._info, value, strict=True)

    def _is_needed(self, info: Any) -> bool:
        if id(info) not in self._needed:
            found, left = dict[int, Any](), [info]
            while left:
                part = left.pop()
                if id(part) not in found:
                    found[id(part)] = part
                    left += self._model(part.cls).inner if _is_model(part) else inner(part)
            self._needed[id(info)] = any(_hashed(part) is not None for part in found.values())
        return self._needed[id(info)]

    def _model(self, cls: Any) -> _Model:
        if cls not in self._models:
            self._models[cls] = _Model(cls)
        return self._models[cls]

    def _check(self, info: Any, value: Any, *, strict: bool) -> None:
        """Check a value; if not `strict`, pydantic converts it, which accepts more values."""
        if self._is_needed(info):
            strict = strict and not _is_model(info)
            if value.__class__ is str and not strict:
                value = _from_json(value)
            for part, item in self._inside(info, value, strict=strict):
                self._check(part, item, strict=strict)
            hashed = _hashed(info)
            if hashed is not None:
                self._check_hashes(hashed, value, strict=strict)

    def _inside(self, info: Any, value: Any, *, strict: bool) -> Iterable[tuple[Any, Any]]:
        """Iterate over the types and the values directly inside a value."""
        kind: Any = value.__class__
        items: list[Any] = value if kind is list else []
        named: dict[Any, Any] = value if kind is dict else {}
        if isinstance(info, (inspect.UnionType, inspect.Metadata)):
            return [(part, value) for part in inner(info)]
        if _is_model(info):
            return self._model(info.cls).inside(value, named)
        if hasattr(info, "fields"):
            by_name = {field.encode_name: field.type for field in info.fields}
            tag = getattr(info, "tag", None)
            if tag is not None and tag not in (named.get(info.tag_field), *items[:1]):
                return []  # another type of a union
            found = [(by_name[name], item) for name, item in named.items() if name in by_name]
            listed = zip(by_name.values(), items[tag is not None :], strict=False)
            # Pydantic may have other names for the fields of a dataclass.
            others = [] if strict else [named[name] for name in named.keys() - by_name.keys()]
            renamed = [(part, item) for part in by_name.values() for item in others]
            return [*found, *listed, *renamed]
        if hasattr(info, "key_type"):
            return [(info.value_type, item) for item in named.values()]
        if hasattr(info, "item_types"):
            return zip(info.item_types, items, strict=False)
        return [(part, item) for part in inner(info) for item in items]

    def _check_hashes(self, info: Any, values: Any, *, strict: bool) -> None:
        kind: Any = values.__class__
        if kind not in (dict, list) or len(values) <= _MOST_EQUAL:
            return
        try:
            elements = msgspec.convert(
                list(values),
                list.__class_getitem__(type_of(info)),
                strict=strict and kind is list,
                str_keys=True,
                dec_hook=self._types.decode,
            )
            most = max(Counter(map(hash, elements)).values())
        except Exception:
            if strict:
                raise
            most = len(values) if len(values) > _MOST_UNKNOWN else 0
        if most > _MOST_EQUAL:
            raise RefusedError(
                f"{most} elements have equal hashes, and at most {_MOST_EQUAL} may have"
            )


class _Model:
    """The types inside a pydantic model.

    Args:
        cls: The model.
    """

    def __init__(self, cls: Any) -> None:
        self._is_root: bool = cls.__pydantic_root_model__
        self._fields = [
            (described_in_model(field.annotation), _names(name, field))
            for name, field in cls.model_fields.items()
        ]
        self._used = [name for _, names in self._fields for name in names]
        self._extras = [described_in_model(annotation) for annotation in _extras(cls)]

    @property
    def inner(self) -> list[Any]:
        return [*(info for info, _ in self._fields), *self._extras]

    def inside(self, value: Any, named: dict[Any, Any]) -> Iterable[tuple[Any, Any]]:
        """Iterate over the types and the values of fields, and those of extra values."""
        if self._is_root:
            return [(self._fields[0][0], value)]
        fields = [
            (info, found)
            for info, names in self._fields
            for name in names
            for found in [_found(named, name)]
            if found is not None
        ]
        extra = {name: item for name, item in named.items() if name not in self._used}
        return [*fields, *((info, extra) for info in self._extras)]


def _is_model(info: Any) -> bool:
    return isinstance(info, inspect.CustomType) and is_model(info.cls)


def _hashed(info: Any) -> Any:
    """Return the type of a set's elements, or of a mapping's keys, unless these are texts."""
    if isinstance(info, (inspect.SetType, inspect.FrozenSetType)):
        hashed: Any = info.item_type
    else:
        hashed = getattr(info, "key_type", None)
        if isinstance(hashed, inspect.AnyType):  # keys of JSON objects are texts
            return None
    return None if isinstance(hashed, inspect.StrType) else hashed


def _names(name: str, field: Any) -> list[Any]:
    """Return the name of a field and its aliases, of which some are paths."""
    aliases = [field.alias, *getattr(field.validation_alias, "choices", [field.validation_alias])]
    return [name, *(alias for alias in aliases if alias is not None)]


def _found(named: dict[Any, Any], name: Any) -> Any:
    """Return the value with a name or at a path, or `None`."""
    if isinstance(name, str):
        return named.get(name)
    value: Any = named
    for step in name.path:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def _extras(model: Any) -> list[Any]:
    """Return the annotation of a model's extra values, if it has one."""
    for cls in model.__mro__:
        annotation = get_annotations(cls).get("__pydantic_extra__")
        if annotation is None or cls.__module__.startswith("pydantic."):
            continue
        holder = type("Holder", (), {"__annotations__": {"it": annotation}})
        holder.__module__ = cls.__module__
        try:
            return [typing.get_type_hints(holder)["it"]]
        except Exception:
            return [dict[str, set[Any]]]  # the strictest: it may be any type
    return []


def _from_json(text: str) -> Any:
    """Return the value that `pydantic.Json` would read from a text, or the text."""
    pydantic_core: Any = sys.modules["pydantic_core"]
    try:
        return pydantic_core.from_json(text)
    except ValueError:
        return text
