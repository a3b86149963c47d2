"""Plain data as JSON, limited in size, without values that JSON would change."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from .._errors import InvalidPayloadError, PayloadTooLargeError

_PLAIN = (str, bool, int, type(None))

_TOGETHER = 100  # values that are encoded with one call
_MARK = "\x1e"  # a value between two of them
_MARKED = ',"\\u001e",'


def encode(what: str, value: Any, limit: int, *, checked: bool = False) -> bytes:
    """Encode plain data as JSON; tuples become lists.

    Args:
        what: The name of the value in messages.
        value: The data.
        limit: The most bytes.
        checked: Whether the data was checked before, by `check` or by a `Signature`.

    Raises:
        InvalidPayloadError: The value is not plain data.
        PayloadTooLargeError: The value has more bytes than `limit`.
    """
    if not checked:
        check(what, value)
    try:
        encoded = _to_text(value).encode()
    except (RecursionError, TypeError, UnicodeEncodeError, ValueError) as error:
        raise InvalidPayloadError(f"{what} can't be sent as JSON: {error}") from None
    if len(encoded) > limit:
        raise PayloadTooLargeError(f"{what}: {len(encoded):,} bytes, and max_payload is {limit:,}")
    return encoded


def encode_each(what: str, values: Iterable[Any], limit: int) -> list[bytes]:
    """Encode many lists or mappings that were checked before.

    A call of the encoder takes longer than the encoding of a small value, so values share calls.

    Args:
        what: The name of a value in messages.
        values: The lists or mappings.
        limit: The most bytes of one value.

    Raises:
        InvalidPayloadError: A value is not plain data.
        PayloadTooLargeError: A value has more bytes than `limit`.
    """
    encoded: list[bytes] = []
    left = iter(values)
    while chunk := list(islice(left, _TOGETHER)):
        try:
            together = _encode_together(chunk)
            fits = len(together) == len(chunk) and max(map(len, together)) <= limit
        except (RecursionError, TypeError, ValueError):
            together, fits = [], False
        if not fits:
            together = [encode(what, value, limit, checked=True) for value in chunk]
        encoded += together
    return encoded


def _encode_together(values: Sequence[Any]) -> list[bytes]:
    """Encode values with one call; the result has more items if a value contains the mark."""
    marked = [item for value in values for item in (value, _MARK)]
    return [text.encode() for text in _to_text(marked)[1 : -len(_MARKED)].split(_MARKED)]


def decode(what: str, encoded: bytes, limit: float) -> Any:
    """Decode JSON.

    Args:
        what: The name of the value in messages.
        encoded: The JSON text.
        limit: The most bytes.

    Raises:
        InvalidPayloadError: The text is not JSON.
        PayloadTooLargeError: The text has more bytes than `limit`.
    """
    if len(encoded) > limit:
        raise PayloadTooLargeError(f"{what}: {len(encoded):,} bytes, and max_payload is {limit:,}")
    try:
        text = encoded.decode().strip(" \t\r\n")
        value, end = _from_text(text)
        if end < len(text):
            raise ValueError(f"extra data at character {end}")
        if "\\u" in text:
            _to_text(value).encode()  # refuses lone surrogates, which can't be encoded again
        return value
    except (RecursionError, UnicodeDecodeError, ValueError) as error:
        raise InvalidPayloadError(f"{what} is not JSON: {error}") from None


_to_text: Callable[[Any], str] = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
).encode


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


_from_text: Callable[[str], tuple[Any, int]] = json.JSONDecoder(
    parse_constant=_refuse, parse_float=_finite
).raw_decode


def check(what: str, value: Any, hint: str = "") -> None:
    """Check that a value is plain data, which is decoded to the same value.

    Args:
        what: The name of the value in messages.
        value: The value.
        hint: The advice at the end of messages about other types.

    Raises:
        InvalidPayloadError: The value is not plain data.
    """
    left: list[Any] = [value]
    seen: set[int] = set()
    while left:
        part = left.pop()
        kind = part.__class__
        if kind is float:
            if not math.isfinite(part):
                raise InvalidPayloadError(f"{what} holds {part!r}, which JSON can't express")
        elif kind in (list, tuple, dict):
            if id(part) in seen:
                continue  # checked already; the encoder refuses a value that contains itself
            seen.add(id(part))
            if kind is dict:
                _check_keys(what, part, hint)
                left.extend(part.values())
            else:
                left.extend(part)
        elif kind not in _PLAIN:
            raise InvalidPayloadError(
                f"{what} holds a {kind.__qualname__}: only str, int, float, bool, None, and lists "
                f"and dicts of them can be sent{hint}"
            )


def _check_keys(what: str, value: dict[Any, Any], hint: str) -> None:
    for key in value:
        if type(key) is not str:
            raise InvalidPayloadError(
                f"{what} holds a dict with a key of type {type(key).__qualname__}, which is not a "
                f"str{hint}"
            )
