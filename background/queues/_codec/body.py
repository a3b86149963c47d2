"""The body of a job's message: the data that a worker needs to run the job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..._support.frozen import empty
from .._errors import InvalidPayloadError
from . import json_data

#: The structure of the results of a job's dependencies: the place of one, or a list of structures.
Shape = int | list["Shape"]

DEEPEST = 50  # levels of nested chains and groups


@dataclass(slots=True)
class Body:
    """The body of a job; fields with default values are not encoded.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        meta: The job's metadata.
        trace: The trace context of the enqueuer.
        timeout: Seconds for one attempt.
        retry: A number of attempts.
        previous: The structure of the results of its dependencies.
        passes: Whether other jobs depend on its result.
        members: The ids of all jobs of a chain or group, in the job that represents it.
        nonce: A unique value that distinguishes it from another job with the same id.
    """

    args: list[Any]
    kwargs: dict[str, Any]
    meta: Mapping[str, Any] = field(default_factory=empty)
    trace: Mapping[str, str] = field(default_factory=empty)
    timeout: float | None = None
    retry: int | None = None
    previous: Shape | None = None
    passes: bool = False
    members: Sequence[str] = ()
    nonce: str = ""


def decode(what: str, encoded: bytes, limit: float) -> Body:
    """Decode a body.

    Args:
        what: The name of the body in messages.
        encoded: The encoded body.
        limit: The most bytes.

    Raises:
        InvalidPayloadError: The body is not valid.
        PayloadTooLargeError: The body has more bytes than `limit`.
    """
    data = json_data.decode(what, encoded, limit)
    if not _is_dict(data):
        raise InvalidPayloadError(f"{what} is not a JSON object")
    if len(data) == 1 and _is_list(data.get("args")):  # the most common case
        return Body(data["args"], {})
    fields: dict[str, Any] = {"args": [], "kwargs": {}}
    fields |= {name: data[name] for name in _FITS if name in data}
    for name, value in fields.items():
        if not _FITS[name](value):
            kind = type(value).__qualname__
            raise InvalidPayloadError(f"{what}: its {name} is not valid; it is a {kind}")
    return Body(**fields)


def pick(shape: Shape | None, results: list[Any]) -> Any:
    """Return results in the structure of a shape."""
    if shape is None:
        return None
    return results[shape] if isinstance(shape, int) else [pick(part, results) for part in shape]


def _is_text_by_text(value: Any) -> bool:
    return _is_dict(value) and _are_texts(value.values())


def _is_list_of_texts(value: Any) -> bool:
    return _is_list(value) and _are_texts(value)


def _is_dict(value: Any) -> bool:
    return type(value) is dict


def _is_list(value: Any) -> bool:
    return type(value) is list


def _are_texts(values: Iterable[Any]) -> bool:
    return all(type(value) is str for value in values)


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


def _is_shape(value: Any) -> bool:
    level: list[Any] = [value]
    for _ in range(DEEPEST + 1):
        if not all(_is_list(part) or (type(part) is int and part >= 0) for part in level):
            return False
        level = [inner for part in level if _is_list(part) for inner in part]
    return not level


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "args": _is_list,
    "kwargs": _is_dict,
    "meta": _is_dict,
    "trace": _is_text_by_text,
    "timeout": _is_seconds,
    "retry": lambda value: type(value) is int and value > 0,
    "previous": _is_shape,
    "passes": lambda value: type(value) is bool,
    "members": _is_list_of_texts,
    "nonce": lambda value: type(value) is str,
}
