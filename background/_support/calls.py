"""Checks that a function takes the arguments of a call, without calling it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from functools import partial
from inspect import CO_VARARGS, CO_VARKEYWORDS, signature
from types import FunctionType, MethodType
from typing import Any

from .._errors import InvalidTaskError
from .callables import name_of

#: Marks positions in the arguments of a `partial`, since Python 3.14.
_PLACEHOLDER: object = getattr(functools, "Placeholder", object())


def check_call(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    advice: Mapping[str, str],
) -> None:
    """Check that a function takes arguments; a function whose signature is unknown takes any.

    Args:
        fn: The function.
        args: Positional arguments.
        kwargs: Keyword arguments.
        advice: What to write instead of keyword arguments that the function does not take, by name.

    Raises:
        InvalidTaskError: The function does not take them.
    """
    function = _function_of(fn, len(args), kwargs)
    if function is not None and _takes(*function):
        return
    problem = _problem(fn, args, kwargs, advice)
    if problem is None:
        if function is None:
            return
        problem = "they do not fit its parameters"
    raise InvalidTaskError(f"fn: {name_of(fn)}() does not take these arguments: {problem}")


def _problem(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    advice: Mapping[str, str],
) -> str | None:
    """Return why a function does not take arguments by its signature, or `None`."""
    try:
        # Not the signature of a function that it wraps.
        parameters = signature(fn, follow_wrapped=False)
    except Exception:  # some functions that are written in C; or from attributes of an object
        return None
    try:
        parameters.bind(*args, **kwargs)
    except TypeError as error:
        unknown = [name for name in kwargs if name not in parameters.parameters]
        hints = (f"; for {name} use {advice[name]}" for name in unknown if name in advice)
        return f"{error}{''.join(hints)}"
    return None


def _function_of(
    fn: Any, given: int, kwargs: Mapping[str, Any]
) -> tuple[FunctionType, int, Mapping[str, Any]] | None:
    """Return the Python function that a call runs, or `None` if it is not known.

    Args:
        fn: What is called.
        given: The number of positional arguments.
        kwargs: Keyword arguments.

    Returns:
        The function, the number of its positional arguments, and its keyword arguments.
    """
    while not isinstance(fn, FunctionType):
        if isinstance(fn, MethodType):
            fn, given = fn.__func__, given + 1
        elif fn.__class__ is partial:
            filled = sum(argument is _PLACEHOLDER for argument in fn.args)
            if filled > given:
                return None
            fn, given, kwargs = fn.func, given + len(fn.args) - filled, {**fn.keywords, **kwargs}
        else:
            call: Any = type(fn).__call__
            if not isinstance(call, FunctionType):
                return None
            fn, given = call, given + 1
    return fn, given, kwargs


def _takes(fn: FunctionType, given: int, kwargs: Mapping[str, Any]) -> bool:
    """Return whether a Python function takes arguments.

    It takes a tenth of the time of `inspect.signature` and `Signature.bind`.

    Args:
        fn: The function.
        given: The number of positional arguments.
        kwargs: Keyword arguments.
    """
    code = fn.__code__
    names, most, by_position = code.co_varnames, code.co_argcount, code.co_posonlyargcount
    required = most - len(fn.__defaults__ or ())
    if given > most and not code.co_flags & CO_VARARGS:
        return False
    if given >= required and not kwargs and not code.co_kwonlyargcount:
        return True
    taken, end = min(given, most), most + code.co_kwonlyargcount
    if taken < min(required, by_position):
        return False
    defaults = fn.__kwdefaults__ or ()
    for name in (*names[taken:required], *names[most:end]):
        if name not in kwargs and name not in defaults:
            return False
    by_name = names[max(taken, by_position) : end]
    for name in kwargs:
        if name not in by_name and (
            not code.co_flags & CO_VARKEYWORDS or name in names[by_position:taken]
        ):
            return False
    return True
