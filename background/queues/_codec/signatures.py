"""Signatures of handlers: annotations of parameters, and the match of arguments to parameters."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import (
    Awaitable,
    Callable,
    Container,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import Parameter
from itertools import repeat
from operator import attrgetter
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any, Generic, NoReturn, ParamSpecArgs, ParamSpecKwargs, TypeVar

from ..._support.callables import is_async

P = TypeVar("P")

NOTHING = Parameter.empty
VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)

# Since Python 3.14, annotations are evaluated when they are read, which fails for undefined names.
_LENIENTLY: dict[str, Any] = (
    {"annotation_format": import_module("annotationlib").Format.FORWARDREF}
    if sys.version_info >= (3, 14)
    else {}
)

#: The attribute that `functools.wraps` copies.
_ANNOTATIONS = "__annotate__" if sys.version_info >= (3, 14) else "__annotations__"

_ANY_ARGUMENTS = inspect.Signature(
    [Parameter("args", Parameter.VAR_POSITIONAL), Parameter("kwargs", Parameter.VAR_KEYWORD)]
)


@dataclass(slots=True)
class Hint:
    """A resolved annotation.

    Args:
        type: The type, or `NOTHING` if there is no annotation, or if it accepts any value.
        unresolved: The error if the annotation can't be resolved, or not yet.
    """

    type: Any = NOTHING
    unresolved: str | None = None


def shown(fn: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
    """Return the function whose parameters say what a function takes.

    That is the function itself, unless it wraps another one with `functools.wraps` and takes only
    `*args` and `**kwargs`.

    Returns:
        The function, and whether another one may supply, drop or change its arguments.
    """
    called: Any = fn
    inner: Any
    if issubclass(called.__class__, partial):
        inner, is_wrapped = shown(called.func)
        return partial(inner, *called.args, **called.keywords), is_wrapped
    if isinstance(fn, MethodType):
        inner, is_wrapped = shown(fn.__func__)
        return MethodType(inner, fn.__self__), is_wrapped
    inner = getattr(fn, "__wrapped__", None)
    signature = _signature(fn)
    if not callable(inner) or not (signature is None or _is_open(signature)):
        return fn, False
    fn, is_wrapped = shown(inner)
    return fn, is_wrapped or signature is not None  # `lru_cache`, for example, has no signature


def _is_open(signature: inspect.Signature) -> bool:
    """Return whether there are only `*args` and `**kwargs`."""
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    return bool(kinds) and kinds <= {*VARIADIC}


def _signature(fn: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(fn, follow_wrapped=False, **_LENIENTLY)
    except ValueError:  # some functions that are written in C
        return None


def signature_of(fn: Callable[..., Any]) -> inspect.Signature:
    """Return a function's own signature, or one that takes any arguments if it has none."""
    return _signature(fn) or _ANY_ARGUMENTS


def opened(signature: inspect.Signature, names: Container[str]) -> inspect.Signature:
    """Return a signature that takes any arguments, among them those with certain names."""
    parameters = [
        parameter if parameter.kind in VARIADIC else parameter.replace(default=None)
        for parameter in signature.parameters.values()
        if parameter.name in names
    ]
    kinds = {parameter.kind for parameter in parameters}
    missing = [
        parameter.replace(name=f"wrapper_{parameter.name}")
        for parameter in _ANY_ARGUMENTS.parameters.values()
        if parameter.kind not in kinds
    ]
    return signature.replace(parameters=sorted([*parameters, *missing], key=attrgetter("kind")))


def refuse_method(fn: Callable[..., Any], signature: inspect.Signature) -> None:
    """Check that a function is not a method that lacks its object.

    A function that is defined in a class is one if its first parameter is called `self` or `cls`,
    unless that has an annotation by which an argument can be sent.

    Raises:
        TypeError: It is.
    """
    name: str = getattr(fn, "__qualname__", "")
    owner = name.rpartition(".")[0]
    first = next(iter(signature.parameters.values()), None)
    if (
        isinstance(fn, FunctionType)
        and owner
        and not owner.endswith("<locals>")
        and first is not None
        and first.name in ("self", "cls")
        and first.annotation is NOTHING
    ):
        raise TypeError(
            f"{name} is a method, and a job has no {first.name} to call it with: make a handler of "
            "a function, of a staticmethod, or of a method of an object, as in "
            "jobs.handler()(mailer.send)"
        )


def hints_of_parameters(fn: Callable[..., Any], signature: inspect.Signature) -> dict[str, Hint]:
    """Return the annotations of a function's parameters, each resolved separately."""
    names, types = _namespace(fn)
    return {
        parameter.name: _resolve(parameter.annotation, names, types)
        for parameter in signature.parameters.values()
    }


def hint_of_result(fn: Callable[..., Any], signature: inspect.Signature) -> Hint:
    """Return the annotation of a function's result after it was awaited."""
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
    """Return the names that annotations can use: the globals, and the type parameters."""
    inner: Any = fn
    while inner is not None:
        fn = inner
        if issubclass(fn.__class__, partial):
            inner = fn.func
        else:
            inner = getattr(fn, "__wrapped__", None)
            if getattr(fn, _ANNOTATIONS, None) is not getattr(inner, _ANNOTATIONS, NOTHING):
                inner = None  # the annotations are not those of the wrapped function
    made_by = getattr(fn, "__init__" if isinstance(fn, type) else "__call__")
    names: dict[str, Any] = getattr(fn, "__globals__", getattr(made_by, "__globals__", {}))
    type_params: tuple[Any, ...] = getattr(fn, "__type_params__", ())
    return names, {param.__name__: param for param in type_params}


@dataclass(slots=True, eq=False)
class _CallShape(Generic[P]):
    """The values of the parameters in calls with a certain number of positional arguments.

    Args:
        positional: The values for the positional arguments. `None` at the end means that a
            positional argument is missing.
        named: The values for keyword arguments, by name. `None` means that the parameter has a
            positional argument already. Names that are missing here belong to `**kwargs`.
        required: The names of required keyword arguments.
        is_complete: Whether no keyword argument is required.
    """

    positional: tuple[P | None, ...]
    named: Mapping[str, P | None]
    required: frozenset[str]
    is_complete: bool


class Binding(Generic[P]):
    """Finds the values of the parameters for a call's arguments, faster than `Signature.bind`.

    Args:
        name: The function's name, for messages.
        signature: The function's signature.
        parameters: A value for each parameter, by name.
    """

    def __init__(
        self, name: str, signature: inspect.Signature, parameters: Mapping[str, P]
    ) -> None:
        self._name = name
        self._signature = signature
        self._rest: P | None = None
        self._others: P | None = None
        plain: list[Parameter] = []
        for parameter in signature.parameters.values():
            if parameter.kind is Parameter.VAR_POSITIONAL:
                self._rest = parameters[parameter.name]
            elif parameter.kind is Parameter.VAR_KEYWORD:
                self._others = parameters[parameter.name]
            else:
                plain.append(parameter)
        self._most = sum(parameter.kind is not Parameter.KEYWORD_ONLY for parameter in plain)
        self._shapes = [_shape(given, plain, parameters) for given in range(self._most + 1)]

    def match(
        self, args: Sequence[object], kwargs: Mapping[Any, object]
    ) -> tuple[Sequence[P], Sequence[P]]:
        """Return the values of the parameters for the arguments of a call.

        Args:
            args: Positional arguments.
            kwargs: Keyword arguments.

        Returns:
            The values for the positional and for the keyword arguments, in order.

        Raises:
            TypeError: The function can't be called with these arguments.
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
        """Return Python's error message for a call; not every version refuses every such call."""
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            return str(error)
        return "the arguments do not fit its parameters"


def _shape(given: int, plain: Iterable[Parameter], parameters: Mapping[str, P]) -> _CallShape[P]:
    positional = [param for param in plain if param.kind is not Parameter.KEYWORD_ONLY]
    named = [param for param in plain if param.kind is not Parameter.POSITIONAL_ONLY]
    taken = positional[:given]
    required = [param for param in plain if param.default is param.empty and param not in taken]
    by_position = [param for param in required if param.kind is Parameter.POSITIONAL_ONLY]
    return _CallShape(
        positional=(*(parameters[param.name] for param in taken), *([None] if by_position else [])),
        named={param.name: None if param in taken else parameters[param.name] for param in named},
        required=frozenset(param.name for param in required),
        is_complete=not required,
    )
