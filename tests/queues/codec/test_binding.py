"""Binding of arguments to parameters."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from background.queues._codec.signatures import Binding


def make_function(
    only: list[bool], both: list[bool], named: list[bool], rest: bool, options: bool
) -> Any:
    """Return a function; every flag of a list is a parameter with or without a default."""
    free = iter("abcdefgh")
    before = [(next(free), default) for default in sorted([*only, *both])]
    parts = [f"{name}=0" if default else name for name, default in before]
    if only:
        parts.insert(len(only), "/")
    if rest:
        parts.append("*rest")
    elif named:
        parts.append("*")
    parts += [f"{next(free)}=0" if default else next(free) for default in named]
    if options:
        parts.append("**options")
    names: dict[str, Any] = {}
    exec(f"def fn({', '.join(parts)}): return locals()", names)
    return names["fn"]


flags = st.lists(st.booleans(), max_size=2)
functions = st.builds(make_function, flags, flags, flags, st.booleans(), st.booleans())


@settings(derandomize=True)
@given(
    functions,
    st.lists(st.just("x"), max_size=5),
    st.dictionaries(st.sampled_from([*"abcdef", "rest", "options", ""]), st.just("x"), max_size=4),
)
def test_same_as_python(fn: Any, args: list[str], kwargs: dict[str, str]) -> None:
    """Arguments are bound to the same parameters as in a call of the function."""
    signature = inspect.signature(fn)
    binding = Binding("fn", signature, {name: name for name in signature.parameters})
    try:
        bound = fn(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError, match=r"^fn\(\): ."):
            binding.match(args, kwargs)
        return
    positional, named = binding.match(args, kwargs)
    rest, options = bound.pop("rest", ()), bound.pop("options", {})
    assert [*positional] == [*bound][: len(args) - len(rest)] + ["rest"] * len(rest)
    assert [*named] == ["options" if name in options else name for name in kwargs]


def test_unexplained_mismatch() -> None:
    """Arguments that don't fit are rejected even if Signature.bind() accepts them.

    Some versions of Python accept a positional-only argument by keyword.
    """

    class AcceptingSignature(inspect.Signature):
        def bind(self, *args: Any, **kwargs: Any) -> Any: ...

    binding = Binding("fn", AcceptingSignature(), {})
    with pytest.raises(TypeError, match=r"^fn\(\): the arguments do not fit its parameters$"):
        binding.match((1,), {})


def test_non_string_keyword() -> None:
    """A keyword that is not a string is rejected."""

    def fn(**options: object) -> None: ...

    binding = Binding("fn", inspect.signature(fn), {"options": "options"})
    with pytest.raises(TypeError, match="must be strings"):
        binding.match((), {1: "x"})
