"""The order in which a worker claims from its queues."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from background.queues import Ordered, Weighted
from background.queues._worker.selection import Selection


def test_ordered() -> None:
    """Ordered queues are drawn in their fixed order."""
    ordered = Ordered("b", "a", "c")
    assert ordered.names == ordered.draw() == ("b", "a", "c")
    assert repr(ordered) == "Ordered('b', 'a', 'c')"


def test_weighted() -> None:
    """A queue is drawn first in proportion to its weight."""
    seed = 1
    weighted = Weighted({"high": 3, "low": 1}, random=Random(seed))
    drawn = Counter(weighted.draw() for _ in range(4000))
    assert set(drawn) == {("high", "low"), ("low", "high")}
    assert 2900 < drawn["high", "low"] < 3100, seed
    assert weighted.names == ("high", "low")
    assert repr(weighted) == "Weighted({'high': 3, 'low': 1})"


@pytest.mark.parametrize("unit", [1e-300, 1e-5, 1e-3, 1e17, 1e307])
def test_relative_weights(unit: float) -> None:
    """Only the ratio of the weights matters, not their magnitude."""
    seed = 3
    weighted = Weighted({"low": unit, "high": 3 * unit}, random=Random(seed))
    drawn = Counter(weighted.draw()[0] for _ in range(4000))
    assert 2900 < drawn["high"] < 3100, seed


def test_weighted_second_queue() -> None:
    """The queues after the first one are drawn by their weights, too."""
    seed = 2
    weighted = Weighted({"a": 2, "b": 1, "c": 1}, random=Random(seed))
    drawn = [weighted.draw() for _ in range(6000)]
    assert all(sorted(names) == ["a", "b", "c"] for names in drawn)
    after_b = Counter(names[1] for names in drawn if names[0] == "b")
    assert 1350 < after_b.total() < 1650, seed
    assert 0.62 < after_b["a"] / after_b.total() < 0.72, seed


def test_extreme_weights() -> None:
    """Weights of very different magnitudes can be combined."""
    weighted = Weighted({"a": 1e-300, "b": 1e300})
    assert [weighted.draw() for _ in range(100)] == [("b", "a")] * 100


def test_independent_draws() -> None:
    """Two selections draw independently of each other."""
    draws = [[Weighted({"a": 1, "b": 1}).draw() for _ in range(50)] for _ in range(2)]
    assert draws[0] != draws[1]


@pytest.mark.parametrize("names", [(), ("a", "a"), ("a b",), ("",), (1,), (["a"],), ("x" * 129,)])
def test_invalid_names(names: Any) -> None:
    """Missing, duplicate and invalid queue names are rejected."""
    with pytest.raises(ValueError, match="queues"):
        Ordered(*names)


@pytest.mark.parametrize(
    ("weights", "argument"),
    [
        ({}, "queues"),
        ({"a b": 1}, "queues"),
        ({"a": 0}, "weights"),
        ({"a": -1}, "weights"),
        ({"a": True}, "weights"),
        ({"a": "1"}, "weights"),
        ({"a": None}, "weights"),
        ({"a": float("inf")}, "weights"),
        ({"a": float("nan")}, "weights"),
        ({"a": 10**400}, "weights"),
        (["a"], "weights"),
        ("a", "weights"),
    ],
)
def test_invalid_weights(weights: Any, argument: str) -> None:
    """Weights that are not positive finite numbers are rejected."""
    with pytest.raises(ValueError, match=argument):
        Weighted(weights)


def test_invalid_random() -> None:
    """A source of randomness that is no Random is rejected."""
    with pytest.raises(ValueError, match="random must be of type Random, not int"):
        Weighted({"a": 1}, random=5)  # type: ignore[arg-type]


def test_abstract_selection() -> None:
    """Selection can't be instantiated."""
    with pytest.raises(TypeError):
        Selection()  # type: ignore[abstract]
