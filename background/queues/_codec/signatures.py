"""Signatures of handlers: the annotation of each parameter, and the parameter of each argument."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import Parameter
from itertools import repeat
from types import SimpleNamespace
from typing import Any, Generic, NoReturn, ParamSpecArgs, ParamSpecKwargs, TypeVar

from ..._support.callables import is_async

P = TypeVar("P")

NOTHING = Parameter.empty

# Since Python 3.14 annotations are evaluated when they are read, which may fail.
_LENIENTLY: dict[str, Any] = (
    {"annotation_format": import_module("annotationlib").Format.FORWARDREF}
    if sys.version_info >= (3, 14)
    else {}
)

_ANY_ARGUMENTS = inspect.Signature(
    [Parameter("args", Parameter.VAR_POSITIONAL), Parameter("kwargs", Parameter.VAR_KEYWORD)]
)


@dataclass(slots=True)
class Hint:
    """What an annotation means.

    Args:
        type: A type, or `NOTHING` if there is no annotation that says anything.
        unresolved: Why a name in it is not defined, or not yet.
    """

    type: Any = NOTHING
    unresolved: str | None = None


def signature_of(fn: Callable[..., Any]) -> inspect.Signature:
    """Return a function's signature; a function without one takes any arguments."""
    try:
        return inspect.signature(fn, **_LENIENTLY)
    except ValueError:  # some functions that are written in C
        return _ANY_ARGUMENTS


def hints_of_parameters(fn: Callable[..., Any], signature: inspect.Signature) -> dict[str, Hint]:
    """Return what a function's parameters are annotated with, each resolved by itself."""
    names, types = _namespace(fn)
    return {
        parameter.name: _resolve(parameter.annotation, names, types)
        for parameter in signature.parameters.values()
    }


def hint_of_result(fn: Callable[..., Any], signature: inspect.Signature) -> Hint:
    """Return what a function's result is annotated with, once it was awaited."""
    hint = _resolve(signature.return_annotation, *_namespace(fn))
    if not is_async(fn) and typing.get_origin(hint.type) in (Awaitable, Coroutine):
        return Hint(typing.get_args(hint.type)[-1])
    return hint


def _resolve(annotation: Any, names: dict[str, Any], types: Mapping[str, Any]) -> Hint:
    if annotation is NOTHING:
        return Hint()
    holder = SimpleNamespace(__annotations__={"it": annotation})
    try:
        found = typing.get_type_hints(holder, names, types, include_extras=True)["it"]
    except Exception as error:  # an annotation may be any expression
        return Hint(unresolved=f"{type(error).__name__}: {error}")
    return Hint() if _says_nothing(found) else Hint(found)


def _says_nothing(found: Any) -> bool:
    return (
        found in (Any, object, NoReturn, typing.Never)
        or isinstance(found, (ParamSpecArgs, ParamSpecKwargs))
        or typing.get_origin(found) is typing.Unpack
    )


def _namespace(fn: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the names that annotations may use: the module's, and the type parameters."""
    inner: Any = fn
    while inner is not None:
        fn = inner
        inner = fn.func if issubclass(fn.__class__, partial) else getattr(fn, "__wrapped__", None)
    made_by = getattr(fn, "__init__" if isinstance(fn, type) else "__call__")
    names: dict[str, Any] = getattr(fn, "__globals__", getattr(made_by, "__globals__", {}))
    return names, {each.__name__: each for each in getattr(fn, "__type_params__", ())}


@dataclass(slots=True, eq=False)
class _CallShape(Generic[P]):
    """What belongs to the arguments of a call with a certain number of positional arguments.

    Args:
        positional: For each positional argument; ends with `None` if another one must follow.
        named: For each name that is not free for `**kwargs`; `None` for a name that is taken.
        required: The names that must follow.
        is_complete: Whether nothing must follow.
    """

    positional: tuple[P | None, ...]
    named: Mapping[str, P | None]
    required: frozenset[str]
    is_complete: bool


class Binding(Generic[P]):
    """Finds what belongs to the parameter of each argument, several times as fast as `bind`.

    Args:
        name: The function's name, for messages.
        signature: Its signature.
        parameters: What belongs to each parameter, by name.
    """

    def __init__(
        self, name: str, signature: inspect.Signature, parameters: Mapping[str, P]
    ) -> None:
        self._name = name
        self._signature = signature
        self._rest: P | None = None
        self._others: P | None = None
        known: list[Parameter] = []
        for parameter in signature.parameters.values():
            if parameter.kind is Parameter.VAR_POSITIONAL:
                self._rest = parameters[parameter.name]
            elif parameter.kind is Parameter.VAR_KEYWORD:
                self._others = parameters[parameter.name]
            else:
                known.append(parameter)
        self._most = sum(parameter.kind is not Parameter.KEYWORD_ONLY for parameter in known)
        self._shapes = [_shape(given, known, parameters) for given in range(self._most + 1)]

    def match(
        self, args: Sequence[object], kwargs: Mapping[Any, object]
    ) -> tuple[Sequence[P], Sequence[P]]:
        """Return what belongs to each positional and to each keyword argument.

        Raises:
            TypeError: The function can't be called with them.
        """
        given = len(args)
        shape = self._shapes[min(given, self._most)]
        if shape.is_complete and not kwargs and given <= self._most:
            return shape.positional, ()  # type: ignore[return-value]  # there is no `None`
        positional: Sequence[P | None] = shape.positional
        if given > self._most:
            positional = [*positional, *repeat(self._rest, given - self._most)]
        named = [shape.named.get(name, self._others) for name in kwargs]
        if (
            None in named
            or None in positional
            or not shape.required <= kwargs.keys()
            or (self._others is not None and not all(isinstance(name, str) for name in kwargs))
        ):
            raise TypeError(f"{self._name}(): {self._reason(args, kwargs)}")
        return positional, named  # type: ignore[return-value]  # there is no `None`

    def _reason(self, args: Sequence[object], kwargs: Mapping[Any, object]) -> str:
        """Let Python say what is wrong; not every version of it finds everything."""
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            return str(error)
        return "the arguments do not fit its parameters"


def _shape(given: int, known: Iterable[Parameter], parameters: Mapping[str, P]) -> _CallShape[P]:
    positional = [each for each in known if each.kind is not Parameter.KEYWORD_ONLY]
    named = [each for each in known if each.kind is not Parameter.POSITIONAL_ONLY]
    taken = positional[:given]
    required = [each for each in known if each.default is each.empty and each not in taken]
    by_position = [each for each in required if each.kind is Parameter.POSITIONAL_ONLY]
    return _CallShape(
        positional=(*(parameters[each.name] for each in taken), *([None] if by_position else [])),
        named={each.name: None if each in taken else parameters[each.name] for each in named},
        required=frozenset(each.name for each in required),
        is_complete=not required,
    )
