"""What travels with a job beside its arguments."""

from __future__ import annotations

import json
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from background.queues import InvalidPayloadError, PayloadTooLargeError
from background.queues._client import previous
from background.queues._codec.body import DEEPEST, Body, decode, pick
from background.queues._enqueue.messages import Place, Terms, message
from background.queues._enqueue.options import check

TERMS = Terms(name="h", queue="q", retention=60, dead_retention=60)


def test_a_body_with_everything() -> None:
    options = check({"id": "mine", "meta": {"k": 1}, "timeout": 5, "retry": 2})
    place = Place(id="it.1", depends_on=("a", "b"), previous=[0, [1]])
    sent = message(TERMS, [1], {"b": 2}, options, 1000, place)
    assert (sent.id, sent.depends_on) == ("it.1", ("a", "b"))
    body = decode("it", sent.body, inf)
    assert (body.args, body.kwargs, body.meta) == ([1], {"b": 2}, {"k": 1})
    assert (body.timeout, body.retry, body.previous, body.passes) == (5, 2, [0, [1]], True)
    assert body.nonce


def test_a_body_with_nothing() -> None:
    sent = message(TERMS, [], {}, check({}), 1000)
    assert sent.body == b'{"args":[]}'
    assert decode("it", sent.body, inf) == decode("it", b"{}", inf) == Body(args=[], kwargs={})


def test_jobs_with_one_id_are_told_apart() -> None:
    one, other = (message(TERMS, [], {}, check({"id": "mine"}), 1000) for _ in range(2))
    assert one.id == other.id
    assert one.body != other.body


def test_what_later_versions_add_is_left_alone() -> None:
    assert decode("it", b'{"args":[1],"later":{}}', inf).args == [1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("args", {}),
        ("kwargs", []),
        ("meta", None),
        ("meta", [1]),
        ("trace", {"a": 1}),
        ("trace", []),
        ("timeout", 0),
        ("timeout", True),
        ("timeout", None),
        ("retry", 0),
        ("retry", 1.0),
        ("retry", False),
        ("previous", None),
        ("previous", "0"),
        ("previous", True),
        ("previous", [0, ["1"]]),
        ("previous", -1),
        ("previous", [0, [-1]]),
        ("passes", 1),
        ("members", [1]),
        ("members", "a"),
        ("nonce", 1),
    ],
)
def test_a_field_of_another_type_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidPayloadError, match=f"it: its {field} can't be"):
        decode("it", json.dumps({field: value}).encode(), inf)


@pytest.mark.parametrize("body", [b"[]", b"1", b'"text"', b"null"])
def test_a_body_is_an_object(body: bytes) -> None:
    with pytest.raises(InvalidPayloadError, match="it is not a JSON object"):
        decode("it", body, inf)


def test_a_body_has_a_limit() -> None:
    with pytest.raises(PayloadTooLargeError, match="it: 12 bytes"):
        decode("it", b'{"args":[5]}', 11)


def shapes(numbers: Any = 0) -> Any:
    return st.recursive(st.integers(0, 9), lambda inner: st.lists(inner, max_size=3), max_leaves=9)


@given(shapes())
def test_shapes_travel(shape: Any) -> None:
    body = decode("it", json.dumps({"previous": shape}).encode(), inf)
    assert body.previous == shape
    assert pick(shape, [*range(10)]) == shape


def test_shapes_are_as_deep_as_composites() -> None:
    shape: Any = 0
    for _ in range(DEEPEST):
        shape = [shape]
    assert decode("it", json.dumps({"previous": shape}).encode(), inf).previous == shape
    with pytest.raises(InvalidPayloadError):
        decode("it", json.dumps({"previous": [shape]}).encode(), inf)


def test_results_are_put_together() -> None:
    assert pick(None, []) is None
    assert pick([1, [0, 1]], ["a", "b"]) == ["b", ["a", "b"]]
    assert previous("it", [0, 1], [b"[1]", None]) == [[1], None]
    assert previous("it", None, []) is None


def test_results_that_are_missing_or_broken() -> None:
    with pytest.raises(InvalidPayloadError, match="job it"):
        previous("it", [0, 1], [b"1"])
    with pytest.raises(InvalidPayloadError, match="a result for job it"):
        previous("it", 0, [b"{"])
