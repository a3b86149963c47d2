"""Arguments find their parameters as in a call."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from background.queues._codec.signatures import Binding


def a_function(
    only: list[bool], both: list[bool], named: list[bool], rest: bool, others: bool
) -> Any:
    """Make a function of parameters of which each has a default or has not."""
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
    if others:
        parts.append("**others")
    names: dict[str, Any] = {}
    exec(f"def fn({', '.join(parts)}): return locals()", names)
    return names["fn"]


few = st.lists(st.booleans(), max_size=2)
functions = st.builds(a_function, few, few, few, st.booleans(), st.booleans())


@settings(derandomize=True, max_examples=400, deadline=None)
@given(
    functions,
    st.lists(st.just("x"), max_size=5),
    st.dictionaries(st.sampled_from([*"abcdef", "rest", "others", ""]), st.just("x"), max_size=4),
)
def test_it_binds_as_python_does(fn: Any, args: list[str], kwargs: dict[str, str]) -> None:
    signature = inspect.signature(fn)
    binding = Binding("fn", signature, {name: name for name in signature.parameters})
    try:
        bound = fn(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError, match=r"^fn\(\): ."):
            binding.match(args, kwargs)
        return
    positional, named = binding.match(args, kwargs)
    rest, others = bound.pop("rest", ()), bound.pop("others", {})
    assert [*positional] == [*bound][: len(args) - len(rest)] + ["rest"] * len(rest)
    assert [*named] == ["others" if name in others else name for name in kwargs]


def test_what_python_does_not_explain_is_refused_too() -> None:
    """As is the case with some versions and a positional argument that was given by keyword."""

    class Blind(inspect.Signature):
        def bind(self, *args: Any, **kwargs: Any) -> Any: ...

    binding = Binding("fn", Blind(), {})
    with pytest.raises(TypeError, match=r"^fn\(\): the arguments do not fit its parameters$"):
        binding.match((1,), {})


def test_keywords_are_text() -> None:
    def fn(**others: object) -> None: ...

    binding = Binding("fn", inspect.signature(fn), {"others": "others"})
    with pytest.raises(TypeError, match="must be strings"):
        binding.match((), {1: "x"})
