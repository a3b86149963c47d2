"""Frozen dataclasses that are cheap to define.

`dataclass(frozen=True, slots=True)` compiles five methods per class, which takes a millisecond and
would make the import of this package a third slower. `frozen` compiles `__init__` only; all classes
share the other methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from types import MappingProxyType
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")

EMPTY: Mapping[str, Any] = MappingProxyType({})


def empty() -> Mapping[str, Any]:
    """Return `EMPTY`; a default factory, because dataclasses refuse a mapping as a default."""
    return EMPTY


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass with slots and keyword-only fields.

    A default factory is called once, so its value is shared and must be immutable. A class may have
    a `__repr__` of its own.
    """
    made = dataclass(init=False, repr=False, eq=False, slots=True, kw_only=True)(cls)
    methods = {
        "__init__": _initialiser(made),
        "__setattr__": _refuse_to_set,
        "__delattr__": _refuse_to_delete,
        "__setstate__": _set_state,
        "__repr__": _show,
        "__eq__": _equal,
        "__hash__": _hash,
    }
    for name, method in methods.items():
        if name not in vars(cls):
            setattr(made, name, method)
    return made


def thawed(cls: type[Any]) -> Any:
    """Return a class of the same layout whose fields can be set.

    For classes that are instantiated for every task. Setting the fields of an instance of this
    class and then its `__class__` takes a quarter of the time of the frozen class's `__init__`.
    """
    copied = {
        name: vars(cls)[name] for name in ("__slots__", "__orig_bases__") if name in vars(cls)
    }
    # Python takes the fast path for attributes only if neither of these is overridden.
    setters = {"__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
    return type(cls.__name__, cls.__bases__, {**copied, **setters})


def _initialiser(cls: type[Any]) -> Any:
    all_fields = fields(cls)
    positional = [_parameter(item) for item in all_fields if not item.kw_only]
    by_keyword = [_parameter(item) for item in all_fields if item.kw_only]
    lines = [
        f"def __init__({', '.join(['self', *positional, '*', *by_keyword])}):",
        *(f"    set(self, {item.name!r}, {item.name})" for item in all_fields),
        *(["    self.__post_init__()"] if hasattr(cls, "__post_init__") else []),
    ]
    defaults = {_default_name(item): _default(item) for item in all_fields}
    names = {"set": object.__setattr__, **defaults}
    exec("\n".join(lines), names)
    initialiser: Any = names["__init__"]
    initialiser.__qualname__ = f"{cls.__qualname__}.__init__"  # TypeErrors show it
    return initialiser


def _parameter(item: Field[Any]) -> str:
    return item.name if _default(item) is MISSING else f"{item.name}={_default_name(item)}"


def _default_name(item: Field[Any]) -> str:
    return f"default_{item.name}"


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _refuse_to_set(self: Any, name: str, value: Any) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _set_state(self: Any, state: tuple[None, dict[str, Any]]) -> None:
    """Set the fields of a copied or unpickled instance."""
    for name, value in state[1].items():
        object.__setattr__(self, name, value)


def _show(self: Any) -> str:
    values = (f"{item.name}={getattr(self, item.name)!r}" for item in fields(self) if item.repr)
    return f"{type(self).__qualname__}({', '.join(values)})"


def _equal(self: Any, other: object) -> object:
    if type(other) is not type(self):
        return NotImplemented
    return _values(self) == _values(other)


def _hash(self: Any) -> int:
    return hash((self.__class__, *_values(self)))


def _values(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, item.name) for item in fields(self) if item.compare)
