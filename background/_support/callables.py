"""What a function is, without calling it."""

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


def is_async(fn: Callable[..., Any]) -> bool:
    """Tell whether calling `fn` gives a coroutine, rather than running it."""
    if fn.__class__ is FunctionType and fn.__code__.co_flags & CO_COROUTINE:
        return True  # as is the case for nearly all; what follows takes its time
    return iscoroutinefunction(fn) or iscoroutinefunction(type(fn).__call__)


def check(fn: Any) -> None:
    """Refuse what can't be run, and close a coroutine that was given instead."""
    if iscoroutine(fn):
        name = fn.__qualname__
        fn.close()
        raise InvalidTaskError(
            f"fn must be a function, not a coroutine: pass {name} and its arguments, not {name}(…)"
        )
    if not callable(fn):
        hint = "; pass the function that makes it" if isawaitable(fn) else ""
        raise InvalidTaskError(f"fn must be a function, not {fn!r}{hint}")
    if any(
        isasyncgenfunction(each) or isgeneratorfunction(each) for each in (fn, type(fn).__call__)
    ):
        raise InvalidTaskError(
            f"fn must be a function, not the generator function {name_of(fn)}, which would never "
            "be iterated; call it from a function that does"
        )


def name_of(fn: Callable[..., Any]) -> str:
    """Return what people call it."""
    while isinstance(fn, partial):
        fn = fn.func
    name: object = getattr(fn, "__qualname__", None)
    return name if isinstance(name, str) and name else type(fn).__qualname__
