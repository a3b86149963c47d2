"""Inspection of functions without calling them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import (
    CO_COROUTINE,
    isasyncgenfunction,
    isawaitable,
    iscoroutine,
    iscoroutinefunction,
    isgeneratorfunction,
)
from types import FunctionType
from typing import Any

from .._errors import InvalidTaskError
from .redacted import kind_of


def is_async(fn: Callable[..., Any]) -> bool:
    """Return whether a call of `fn` returns a coroutine."""
    if fn.__class__ is FunctionType and fn.__code__.co_flags & CO_COROUTINE:
        return True  # the common case; the other checks are slow
    return iscoroutinefunction(fn) or iscoroutinefunction(type(fn).__call__)


def check(fn: Any) -> None:
    """Check that a value can be run as a task; close a coroutine that was passed by mistake.

    Raises:
        InvalidTaskError: The value is not a function, or is a generator function.
    """
    if iscoroutine(fn):
        name = fn.__qualname__
        fn.close()
        raise InvalidTaskError(
            f"fn must be a function, not a coroutine: pass {name} and its arguments, not {name}(…)"
        )
    if not callable(fn):
        hint = "; pass the function that makes it" if isawaitable(fn) else ""
        raise InvalidTaskError(f"fn must be a function, not {kind_of(fn)}{hint}")
    called = (fn, type(fn).__call__)
    if any(isasyncgenfunction(code) or isgeneratorfunction(code) for code in called):
        raise InvalidTaskError(
            f"fn must be a function, not the generator function {name_of(fn)}, which would never "
            "be iterated; call it from a function that iterates it"
        )


def name_of(fn: Callable[..., Any]) -> str:
    """Return the qualified name of a function, or that of its class."""
    while isinstance(fn, partial):
        fn = fn.func
    name: object = getattr(fn, "__qualname__", None)
    return name if isinstance(name, str) and name else type(fn).__qualname__
