"""In which order queues are looked into."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from background.queues import Ordered, Weighted
from background.queues._worker.selection import Selection


def test_ordered_queues_keep_their_order() -> None:
    ordered = Ordered("b", "a", "c")
    assert ordered.names == ordered.draw() == ("b", "a", "c")
    assert repr(ordered) == "Ordered('b', 'a', 'c')"


def test_weights_are_how_often_a_queue_comes_first() -> None:
    seed = 1
    weighted = Weighted({"high": 3, "low": 1}, random=Random(seed))
    drawn = Counter(weighted.draw() for _ in range(4000))
    assert set(drawn) == {("high", "low"), ("low", "high")}
    assert 2900 < drawn["high", "low"] < 3100, seed
    assert weighted.names == ("high", "low")
    assert repr(weighted) == "Weighted({'high': 3, 'low': 1})"


@pytest.mark.parametrize("unit", [1e-300, 1e-5, 1e-3, 1e17, 1e307])
def test_weights_count_by_what_they_are_to_each_other(unit: float) -> None:
    seed = 3
    weighted = Weighted({"low": unit, "high": 3 * unit}, random=Random(seed))
    drawn = Counter(weighted.draw()[0] for _ in range(4000))
    assert 2900 < drawn["high"] < 3100, seed


def test_the_rest_is_drawn_by_weight_too() -> None:
    seed = 2
    weighted = Weighted({"a": 2, "b": 1, "c": 1}, random=Random(seed))
    drawn = [weighted.draw() for _ in range(6000)]
    assert all(sorted(each) == ["a", "b", "c"] for each in drawn)
    after_b = Counter(each[1] for each in drawn if each[0] == "b")
    assert 1350 < after_b.total() < 1650, seed
    assert 0.62 < after_b["a"] / after_b.total() < 0.72, seed


def test_extreme_weights_work() -> None:
    weighted = Weighted({"a": 1e-300, "b": 1e300})
    assert [weighted.draw() for _ in range(100)] == [("b", "a")] * 100


def test_workers_draw_apart_from_each_other() -> None:
    draws = [[Weighted({"a": 1, "b": 1}).draw() for _ in range(50)] for _ in range(2)]
    assert draws[0] != draws[1]


@pytest.mark.parametrize("names", [(), ("a", "a"), ("a b",), ("",), (1,), (["a"],), ("x" * 129,)])
def test_names_that_cannot_be_those_of_queues(names: Any) -> None:
    with pytest.raises(ValueError, match="queues"):
        Ordered(*names)


@pytest.mark.parametrize(
    ("weights", "named"),
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
def test_weights_that_cannot_work(weights: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Weighted(weights)


def test_chance_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="random must be of type Random, not 5"):
        Weighted({"a": 1}, random=5)  # type: ignore[arg-type]


def test_a_selection_is_not_made_by_itself() -> None:
    with pytest.raises(TypeError):
        Selection()  # type: ignore[abstract]
