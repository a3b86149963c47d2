"""Jobs as they are sent to Redis, and as its scripts answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from .._record import maker
from ._states import JobState
from .abc import Claim, Message, Settlement, StoredJob

_MOST_AT_ONCE = 5000  # messages that one script enqueues
_MOST_BYTES = 64_000_000  # of these together

_make_message = maker(Message)
_make_claim = maker(Claim)


def pack_message(message: Message) -> bytes:
    """Return a line that scripts can read, followed by the body.

    Raises `ValueError` for an id or name that would not fit into the line.
    """
    head = (
        f"{message.id} {message.queue} {message.handler or ''} {message.keep!r} {message.delay!r}"
        f" {_optional(message.at)} {_optional(message.expires)} {','.join(message.needs)}"
    )
    if head.count(" ") != 7 or "\n" in head or "\0" in head:
        raise ValueError(f"job {message.id!r}: ids and names can't have spaces in them")
    return b"%b\n%b" % (head.encode(), message.body)


def _optional(value: float | None) -> str:
    return "" if value is None else repr(value)


def in_parts(packed: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Divide messages so that no script takes too many."""
    first = size = 0
    for place, each in enumerate(packed):
        size += len(each)
        if place > first and (size > _MOST_BYTES or place == first + _MOST_AT_ONCE):
            yield packed[first:place]
            first, size = place, len(each)
    if packed:
        yield packed[first:]


def unpack_message(data: bytes) -> Message:
    head, _, body = data.partition(b"\n")
    id, queue, handler, keep, delay, at, expires, needs = head.decode().split(" ")
    return _make_message(
        id,
        handler or None,
        queue,
        body,
        float(keep),
        float(delay),
        float(at) if at else None,
        float(expires) if expires else None,
        tuple(needs.split(",")) if needs else (),
    )


def pack_settlement(settlement: Settlement) -> tuple[bytes, bytes, bytes]:
    """Return a line, the error, and the result, which is empty if there is none."""
    each = settlement
    error = b"" if each.error is None else json.dumps(dict(each.error)).encode()
    result = b"" if each.result is None else b"=" + each.result
    return f"{each.id} {each.token} {each.state} {each.delay!r}".encode(), error, result


def unpack_claims(data: bytes, token: str) -> list[Claim]:
    return [
        _make_claim(
            unpack_message(message),
            token,
            int(line[1]),
            int(line[2]),
            float(line[3]),
            previous,
            None if error is None else json.loads(error),
        )
        for line, message, _, error, previous in _unpack(data)
    ]


def unpack_jobs(data: bytes) -> list[StoredJob]:
    return [
        StoredJob(
            message=unpack_message(message),
            state=JobState(line[0].decode()),
            attempt=int(line[1]),
            enqueued_at=float(line[3]),
            started_at=float(line[4]) if line[4] else None,
            finished_at=float(line[5]) if line[5] else None,
            error=None if error is None else json.loads(error),
            result=result,
            previous=previous,
        )
        for line, message, result, error, previous in _unpack(data)
    ]


def _unpack(data: bytes) -> Iterator[tuple[list[bytes], bytes, Any, Any, tuple[Any, ...]]]:
    """Give of each job its line, and what followed that: message, result, error, and previous."""
    end = 0
    while end < len(data):
        start, end = end, data.index(b"\n", end)
        line = data[start:end].split(b" ")
        end += 1
        parts: list[bytes | None] = []
        for each in line[6:]:
            length = int(each)
            parts.append(data[end : end + length] if length >= 0 else None)
            end += max(length, 0)
        message, result, error, *previous = parts
        assert message is not None
        yield line, message, result, error, tuple(previous)
