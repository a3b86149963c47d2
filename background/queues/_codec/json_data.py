"""Plain data as JSON, within a limit, and nothing that JSON would change."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from .._errors import InvalidPayloadError, PayloadTooLargeError

_PLAIN = (str, bool, int, type(None))

_TOGETHER = 100  # values that are encoded with one call
_MARK = "\x1e"  # stands between them
_MARKED = ',"\\u001e",'


def encode(what: str, value: Any, limit: int, *, checked: bool = False) -> bytes:
    """Return plain data as JSON; tuples become lists.

    Args:
        what: Names the value in messages.
        value: The data.
        limit: The most bytes.
        checked: Whether the data was checked already, because all of it comes from `Signature`.

    Raises:
        InvalidPayloadError: The value is no plain data.
        PayloadTooLargeError: It has more bytes than `limit`.
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
    """Return many lists or mappings as JSON that were checked already; raises what `encode` does.

    A call of the encoder takes longer than the encoding of a small value, so many share a call.
    """
    encoded: list[bytes] = []
    left = iter(values)
    while some := list(islice(left, _TOGETHER)):
        try:
            together = _encode_together(some)
            fits = len(together) == len(some) and max(map(len, together)) <= limit
        except (RecursionError, TypeError, ValueError):
            together, fits = [], False
        encoded += together if fits else [encode(what, each, limit, checked=True) for each in some]
    return encoded


def _encode_together(values: Sequence[Any]) -> list[bytes]:
    """Encode values with one call; the result has another length if the mark is in a value."""
    marked = [each for value in values for each in (value, _MARK)]
    return [each.encode() for each in _to_text(marked)[1 : -len(_MARKED)].split(_MARKED)]


def decode(what: str, encoded: bytes, limit: float) -> Any:
    """Return what `encode` was given.

    Raises:
        InvalidPayloadError: It is no JSON.
        PayloadTooLargeError: It has more bytes than `limit`.
    """
    if len(encoded) > limit:
        raise PayloadTooLargeError(f"{what}: {len(encoded):,} bytes, and max_payload is {limit:,}")
    try:
        text = encoded.decode().strip(" \t\r\n")
        value, end = _from_text(text)
        if end < len(text):
            raise ValueError(f"there is more behind its end, at character {end}")
        if "\\u" in text:
            _to_text(value).encode()  # refuses lone surrogates, which no worker could encode
        return value
    except (RecursionError, UnicodeDecodeError, ValueError) as error:
        raise InvalidPayloadError(f"{what} is not JSON: {error}") from None


_to_text: Callable[[Any], str] = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
).encode


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


_from_text: Callable[[str], tuple[Any, int]] = json.JSONDecoder(
    parse_constant=_refuse, parse_float=_finite
).raw_decode


def check(what: str, value: Any, hint: str = "") -> None:
    """Refuse what is not plain data, or would come back as something else.

    Args:
        what: Names the value in messages.
        value: The value.
        hint: What to do about a value of another type.

    Raises:
        InvalidPayloadError: The value is no plain data.
    """
    left: list[Any] = [value]
    seen: set[int] = set()
    while left:
        each = left.pop()
        kind = each.__class__
        if kind is float:
            if not math.isfinite(each):
                raise InvalidPayloadError(f"{what} holds {each!r}, which JSON can't express")
        elif kind in (list, tuple, dict):
            if id(each) in seen:
                continue  # checked already; the encoder refuses a value that contains itself
            seen.add(id(each))
            if kind is dict:
                _check_keys(what, each, hint)
                left.extend(each.values())
            else:
                left.extend(each)
        elif kind not in _PLAIN:
            raise InvalidPayloadError(
                f"{what} holds a {kind.__qualname__}: only str, int, float, bool, None, and lists "
                f"and dicts of them can be sent{hint}"
            )


def _check_keys(what: str, value: dict[Any, Any], hint: str) -> None:
    for key in value:
        if type(key) is not str:
            raise InvalidPayloadError(
                f"{what} holds a dict with the key {key!r}, which is no str{hint}"
            )
