"""Plain data, encoded as JSON."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from background.queues import InvalidPayloadError, PayloadTooLargeError, QueueError
from background.queues._codec.json_data import decode, encode, encode_each

LIMIT = 1_000_000

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("ab\0é"), inner),
)


@given(plain)
def test_roundtrip(value: Any) -> None:
    """Plain data is decoded to equal values of the same types."""
    again = decode("args", encode("args", value, LIMIT), LIMIT)
    assert again == value
    assert repr(again) == repr(value)  # 1 == 1.0 == True would hide a changed type


def test_tuples() -> None:
    """Tuples are decoded as lists."""
    assert decode("args", encode("args", ((1, (2,)), []), LIMIT), LIMIT) == [[1, [2]], []]


def test_repeated_object() -> None:
    """An object that occurs twice is no circular reference."""
    inner = [1]
    assert encode("args", [inner, inner], LIMIT) == b"[[1],[1]]"


def test_text() -> None:
    """Text is encoded as UTF-8, without escapes."""
    assert encode("args", ["žluť"], LIMIT) == '["žluť"]'.encode()


class Colour(StrEnum):
    RED = "red"


class Text(str):
    pass


class FakeStr:
    __class__ = str  # type: ignore[assignment]


def circle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def deep(depth: int) -> Any:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


REFUSED: dict[str, tuple[Any, str]] = {
    "an object": ([object()], "args holds a object: only str, int"),
    "bytes": (b"1", "args holds a bytes"),
    "a set": ([{1}], "args holds a set"),
    "an enum, which would come back as str": (Colour.RED, "args holds a Colour"),
    "a subclass, which would come back as its base": ([Text("1")], "args holds a Text"),
    "a key that would come back as str": ({1: 2}, "args holds a dict with a key of type int"),
    "not a number": ([math.nan], "args holds nan"),
    "infinity": ([[-math.inf]], "args holds -inf"),
    "an object that claims to be a str": (
        [FakeStr()],
        "args can't be sent as JSON: Object of type str is not",
    ),
    "a circle": (circle(), "args can't be sent as JSON: Circular reference"),
    "too deep": (deep(100_000), "args can't be sent as JSON: maximum recursion depth"),
    "half a character": (["\ud800"], "args can't be sent as JSON: 'utf-8' codec can't encode"),
    "a number of too many digits": (10**5000, "args can't be sent as JSON: Exceeds the limit"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED)
def test_rejected_values(value: Any, message: str) -> None:
    """Values that JSON can't express, or would change, are rejected."""
    with pytest.raises(InvalidPayloadError) as caught:
        encode("args", value, LIMIT)
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, (QueueError, ValueError))


def test_checked_values() -> None:
    """With checked=True, the encoder still rejects values that JSON can't express."""
    assert encode("args", [1, "a"], LIMIT, checked=True) == b'[1,"a"]'
    for value in (math.nan, object(), circle(), deep(100_000), "\ud800", 10**5000):
        with pytest.raises(InvalidPayloadError, match=r"^args can't be sent as JSON: "):
            encode("args", [value], LIMIT, checked=True)


@given(st.lists(plain | st.just("\x1e") | st.just([0, "\x1e", 0]), max_size=250))
def test_batch(values: list[Any]) -> None:
    """A batch is encoded like its single values, even if they contain the batch's separator."""
    assert encode_each("args", iter(values), LIMIT) == [encode("args", v, LIMIT) for v in values]


def test_batch_with_rejected_value() -> None:
    """A batch with a value that JSON can't express is rejected."""
    for value in (math.nan, object(), circle(), deep(100_000), "\ud800", 10**5000):
        with pytest.raises(InvalidPayloadError, match=r"^args can't be sent as JSON: "):
            encode_each("args", [1, [value], 2], LIMIT)


def test_batch_size_limit() -> None:
    """The limit applies to the single values of a batch."""
    assert encode_each("args", ["x" * 8] * 200, 10) == [b'"xxxxxxxx"'] * 200
    with pytest.raises(PayloadTooLargeError, match=r"^args: 11 bytes, and max_payload is 10$"):
        encode_each("args", [*["x" * 8] * 150, "x" * 9], 10)


def test_escapes() -> None:
    """Escaped characters are decoded."""
    assert decode("args", b'"\\u017e\\ud83d\\ude00"', LIMIT) == "ž😀"


def test_whitespace() -> None:
    """Whitespace around a value is ignored."""
    assert decode("args", b' \r\n\t{"a": [1]}\n ', LIMIT) == {"a": [1]}


CORRUPT: dict[str, bytes] = {
    "nothing": b"",
    "cut off": b'{"args":[1,2',
    "more": b"1 2",
    "more after it": b'{"a": 1}]',
    "space of another kind": "\u00a01".encode(),
    "no text": b"\xff\xfe",
    "not a number": b"[NaN]",
    "infinity": b"-Infinity",
    "infinity in digits": b"[-1e999]",
    "half a character": b'{"\\ud800": 1}',
    "a number of too many digits": b"1" * 5000,
    "too deep": b"[" * 100_000 + b"]" * 100_000,
}


@pytest.mark.parametrize("encoded", CORRUPT.values(), ids=CORRUPT)
def test_invalid_json(encoded: bytes) -> None:
    """Bytes that are not strict JSON are rejected."""
    with pytest.raises(InvalidPayloadError, match=r"^result is not JSON: "):
        decode("result", encoded, LIMIT)


def test_size_limit() -> None:
    """Data of exactly the limit is encoded and decoded, and larger data is rejected."""
    value = "x" * 8
    encoded = encode("args", value, 10)
    assert len(encoded) == 10
    assert decode("args", encoded, 10) == value
    message = "^args: 10 bytes, and max_payload is 9$"
    with pytest.raises(PayloadTooLargeError, match=message):
        encode("args", value, 9)
    with pytest.raises(PayloadTooLargeError, match=message):
        decode("args", encoded, 9)
