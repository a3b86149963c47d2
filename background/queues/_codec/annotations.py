"""What a function's parameters and its result are annotated with, each resolved by itself."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NoReturn, ParamSpecArgs, ParamSpecKwargs

from ..._support.callables import is_async
from ..._support.frozen import record

NOTHING = inspect.Parameter.empty


@record
class Hint:
    """What an annotation means: a type, or `NOTHING` if there is none that says anything.

    `unresolved` tells of names in it that are not defined, or not yet.
    """

    type: Any = NOTHING
    unresolved: str | None = None


def signature_of(fn: Callable[..., Any]) -> inspect.Signature:
    """Return a function's signature; what has none may take anything."""
    try:
        return inspect.signature(fn, **_LENIENTLY)
    except ValueError:  # some that are written in C
        return _ANYTHING


# Since 3.14 annotations are evaluated when they are asked for, which may fail.
_LENIENTLY: dict[str, Any] = (
    {"annotation_format": import_module("annotationlib").Format.FORWARDREF}
    if sys.version_info >= (3, 14)
    else {}
)

_ANYTHING = inspect.Signature(
    [
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
    ]
)


def of_parameters(fn: Callable[..., Any], signature: inspect.Signature) -> dict[str, Hint]:
    names, types = _namespace(fn)
    return {
        each.name: _resolve(each.annotation, names, types) for each in signature.parameters.values()
    }


def of_result(fn: Callable[..., Any], signature: inspect.Signature) -> Hint:
    """Return what a function's result is annotated with once it has been awaited."""
    hint = _resolve(signature.return_annotation, *_namespace(fn))
    if not is_async(fn) and typing.get_origin(hint.type) in (Awaitable, Coroutine):
        return Hint(type=typing.get_args(hint.type)[-1])
    return hint


def _resolve(annotation: Any, names: dict[str, Any], types: Mapping[str, Any]) -> Hint:
    if annotation is NOTHING:
        return Hint()
    holder = SimpleNamespace(__annotations__={"it": annotation})
    try:
        found = typing.get_type_hints(holder, names, types, include_extras=True)["it"]
    except Exception as error:  # an annotation may be any expression
        return Hint(unresolved=f"{type(error).__name__}: {error}")
    return Hint() if _says_nothing(found) else Hint(type=found)


def _says_nothing(found: Any) -> bool:
    return (
        found in (Any, object, NoReturn, typing.Never)
        or isinstance(found, (ParamSpecArgs, ParamSpecKwargs))
        or typing.get_origin(found) is typing.Unpack
    )


def _namespace(fn: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the names that a function's annotations may use: its module's, its type parameters."""
    inner: Any = fn
    while inner is not None:
        fn = inner
        inner = fn.func if issubclass(fn.__class__, partial) else getattr(fn, "__wrapped__", None)
    made_by = getattr(fn, "__init__" if isinstance(fn, type) else "__call__")
    names: dict[str, Any] = getattr(fn, "__globals__", getattr(made_by, "__globals__", {}))
    return names, {each.__name__: each for each in getattr(fn, "__type_params__", ())}
