"""Frozen dataclasses that cost little to define and little to make.

What `dataclass(frozen=True, slots=True)` generates takes half a millisecond of import time a class
and a microsecond an object, as each field is set by way of `object.__setattr__`. Here `__init__` is
compiled and nothing else, and `maker` offers a quicker way for what is made all the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from types import MappingProxyType
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")

EMPTY: Mapping[str, Any] = MappingProxyType({})


def empty() -> Mapping[str, Any]:
    """Return `EMPTY`, as a default factory, as dataclasses refuse it for a default."""
    return EMPTY


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make a class a dataclass that is frozen and slotted and takes its fields by keyword.

    A default factory is called once, for a default that can't be changed either.
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
        setattr(made, name, method)
    return made


def maker(cls: type[T]) -> Callable[..., T]:
    """Return a function that makes a record of its fields, in their order, without checking them.

    It sets the fields of a twin that is not frozen, which then becomes the record. Fields may be
    left out that have defaults, as have all after them.
    """
    known = fields(cls)  # type: ignore[arg-type]
    required = max((n for n, each in enumerate(known, 1) if _default(each) is MISSING), default=0)
    parameters = (each.name if n < required else _parameter(each) for n, each in enumerate(known))
    lines = [
        f"def make({', '.join(parameters)}):",
        "    made = new(opened)",
        *(f"    made.{each.name} = {each.name}" for each in known),
        "    made.__class__ = frozen",
        "    return made",
    ]
    names = {"new": object.__new__, "opened": _opened(cls), "frozen": cls}
    return _compile("make", lines, known, names)


def _initialiser(cls: type[Any]) -> Callable[..., None]:
    known = fields(cls)
    positional = [_parameter(each) for each in known if not each.kw_only]
    by_keyword = [_parameter(each) for each in known if each.kw_only]
    lines = [
        f"def __init__({', '.join(['self', *positional, '*', *by_keyword])}):",
        *(f"    set(self, {each.name!r}, {each.name})" for each in known),
        *(["    self.__post_init__()"] if hasattr(cls, "__post_init__") else []),
    ]
    initialiser = _compile("__init__", lines, known, {"set": object.__setattr__})
    initialiser.__qualname__ = f"{cls.__qualname__}.__init__"  # which errors mention
    return initialiser


def _parameter(each: Field[Any]) -> str:
    return each.name if _default(each) is MISSING else f"{each.name}=default_{each.name}"


def _default(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _compile(
    name: str, lines: list[str], known: tuple[Field[Any], ...], names: dict[str, Any]
) -> Callable[..., Any]:
    names |= {f"default_{each.name}": _default(each) for each in known}
    exec("\n".join(lines), names)
    compiled: Callable[..., Any] = names[name]
    return compiled


def _opened(cls: type[Any]) -> type[Any]:
    """Return a class of the same layout whose fields can be set."""
    copied = {
        name: vars(cls)[name] for name in ("__slots__", "__orig_bases__") if name in vars(cls)
    }
    # Only with both of them does Python set attributes without looking for a method.
    thawed = {"__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
    return type(cls.__name__, cls.__bases__, {**copied, **thawed})


def _refuse_to_set(self: Any, name: str, value: Any) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _set_state(self: Any, state: tuple[None, dict[str, Any]]) -> None:
    """Take what copying and unpickling give an object with slots."""
    for name, value in state[1].items():
        object.__setattr__(self, name, value)


def _show(self: Any) -> str:
    values = (f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.repr)
    return f"{type(self).__qualname__}({', '.join(values)})"


def _equal(self: Any, other: object) -> object:
    if type(other) is not type(self):
        return NotImplemented
    return _values(self) == _values(other)


def _hash(self: Any) -> int:
    return hash((self.__class__, *_values(self)))


def _values(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, each.name) for each in fields(self) if each.compare)
