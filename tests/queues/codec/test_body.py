"""Bodies of jobs: their arguments and further fields."""

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


def test_all_fields() -> None:
    """A body with all fields is decoded to the encoded values."""
    options = check({"id": "custom", "meta": {"k": 1}, "timeout": 5, "retry": 2})
    place = Place(id="job.1", depends_on=("a", "b"), previous=[0, [1]])
    sent = message(TERMS, [1], {"b": 2}, options, 1000, place)
    assert (sent.id, sent.depends_on) == ("job.1", ("a", "b"))
    body = decode("body", sent.body, inf)
    assert (body.args, body.kwargs, body.meta) == ([1], {"b": 2}, {"k": 1})
    assert (body.timeout, body.retry, body.previous, body.passes) == (5, 2, [0, [1]], True)
    assert body.nonce


def test_default_fields() -> None:
    """Fields with their defaults are not encoded."""
    sent = message(TERMS, [], {}, check({}), 1000)
    assert sent.body == b'{"args":[]}'
    assert decode("body", sent.body, inf) == decode("body", b"{}", inf) == Body(args=[], kwargs={})


def test_nonce() -> None:
    """Two jobs with the same id have different bodies."""
    first, second = (message(TERMS, [], {}, check({"id": "custom"}), 1000) for _ in range(2))
    assert first.id == second.id
    assert first.body != second.body


def test_unknown_field() -> None:
    """An unknown field, as of a later version, is ignored."""
    assert decode("body", b'{"args":[1],"later":{}}', inf).args == [1]


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
def test_invalid_fields(field: str, value: Any) -> None:
    """The error of an invalid field contains its name."""
    with pytest.raises(InvalidPayloadError, match=f"body: its {field} is not valid"):
        decode("body", json.dumps({field: value}).encode(), inf)


@pytest.mark.parametrize("body", [b"[]", b"1", b'"text"', b"null"])
def test_not_an_object(body: bytes) -> None:
    """A body that is no JSON object is rejected."""
    with pytest.raises(InvalidPayloadError, match="body is not a JSON object"):
        decode("body", body, inf)


def test_size_limit() -> None:
    """A body above the limit is rejected."""
    with pytest.raises(PayloadTooLargeError, match="body: 12 bytes"):
        decode("body", b'{"args":[5]}', 11)


def shapes(numbers: Any = 0) -> Any:
    return st.recursive(st.integers(0, 9), lambda inner: st.lists(inner, max_size=3), max_leaves=9)


@given(shapes())
def test_shapes(shape: Any) -> None:
    """The shape of the previous results is decoded unchanged, and picks them from a list."""
    body = decode("body", json.dumps({"previous": shape}).encode(), inf)
    assert body.previous == shape
    assert pick(shape, [*range(10)]) == shape


def test_shape_depth() -> None:
    """A shape can be as deep as chains and groups, and no deeper."""
    shape: Any = 0
    for _ in range(DEEPEST):
        shape = [shape]
    assert decode("body", json.dumps({"previous": shape}).encode(), inf).previous == shape
    with pytest.raises(InvalidPayloadError):
        decode("body", json.dumps({"previous": [shape]}).encode(), inf)


def test_previous_results() -> None:
    """Previous results are combined in the given shape."""
    assert pick(None, []) is None
    assert pick([1, [0, 1]], ["a", "b"]) == ["b", ["a", "b"]]
    assert previous("parent", [0, 1], [b"[1]", None]) == [[1], None]
    assert previous("parent", None, []) is None


def test_invalid_previous_results() -> None:
    """Missing and undecodable previous results are rejected."""
    with pytest.raises(InvalidPayloadError, match="job parent"):
        previous("parent", [0, 1], [b"1"])
    with pytest.raises(InvalidPayloadError, match="a result for job parent"):
        previous("parent", 0, [b"{"])
