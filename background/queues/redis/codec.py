"""Jobs as they are sent to Redis, and as its scripts answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any

from ..._support.frozen import maker
from .._states import JobState
from ..abc import Claim, Message, Settlement, StoredJob

_MOST_AT_ONCE = 5000  # messages that one script enqueues
_MOST_BYTES = 64_000_000  # of these together

_ARRAY = _STRING = Struct(">BI")

_make_message = maker(Message)
_make_claim = maker(Claim)


def pack_messages(messages: Sequence[Message]) -> list[bytes]:
    """Return what scripts take to enqueue messages: each has so many of them at most.

    Raises `ValueError` for an id or name that would not fit into the line of a text.
    """
    parts: list[bytes] = []
    columns = ids, texts, queues = [list[bytes](), list[bytes](), list[bytes]()]
    size = 0
    for message in messages:
        text, queue = _pack_message(message)
        size += len(text)
        if ids and (size > _MOST_BYTES or len(ids) == _MOST_AT_ONCE):
            parts.append(_pack_columns(columns))
            size = len(text)
        ids.append(message.id.encode())
        texts.append(text)
        queues.append(queue)
    return [*parts, _pack_columns(columns)] if ids else []


def _pack_message(message: Message) -> tuple[bytes, bytes]:
    """Return a text, of a line that scripts can read and the body, and the queue.

    The queue is empty if there is more to do than to put the job there.
    """
    each = message
    if " " in each.id or "\n" in each.id or "\0" in each.id:
        raise ValueError(f"job {each.id!r}: ids and names can't have spaces in them")
    start, queue = _pack_terms(
        each.queue, each.keep, each.handler, each.delay, each.at, each.expires
    )
    if each.needs:
        return b"%b%b\n%b" % (start, ",".join(each.needs).encode(), each.body), b""
    return b"%b\n%b" % (start, each.body), queue


@lru_cache(maxsize=100)
def _pack_terms(
    queue: str,
    keep: float,
    handler: str | None,
    delay: float,
    at: float | None,
    expires: float | None,
) -> tuple[bytes, bytes]:
    """Return the start of a line that many jobs share, and the queue if they are ready at once."""
    line = f"{queue} {keep!r} {handler or ''} {delay!r} {_optional(at)} {_optional(expires)} "
    if line.count(" ") != 6 or "\n" in line or "\0" in line:
        raise ValueError(
            f"queue {queue!r}, handler {handler!r}: ids and names can't have spaces in them"
        )
    ready = handler is not None and delay == 0 and at is None and expires is None
    return line.encode(), queue.encode() if ready else b""


def _optional(value: float | None) -> str:
    return "" if value is None else repr(value)


def _pack_columns(columns: Sequence[list[bytes]]) -> bytes:
    """Return ids, texts and queues as one argument, which costs less than many; clear them.

    It is an array of arrays of strings in MessagePack.
    """
    packed = [_ARRAY.pack(0xDD, len(columns))]
    for column in columns:
        packed.append(_ARRAY.pack(0xDD, len(column)))
        for value in column:
            packed.append(_STRING.pack(0xDB, len(value)))
            packed.append(value)
        column.clear()
    return b"".join(packed)


def unpack_message(data: bytes) -> tuple[Message, float]:
    """Return a message, and when it was enqueued."""
    head, _, body = data.partition(b"\n")
    _, enqueued, id, queue, keep, handler, delay, at, expires, needs = head.decode().split(" ")
    message = _make_message(
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
    return message, float(enqueued)


def pack_settlement(settlement: Settlement) -> tuple[bytes, bytes, bytes]:
    """Return a line, the error, and the result, which is empty if there is none."""
    each = settlement
    error = b"" if each.error is None else json.dumps(dict(each.error)).encode()
    result = b"" if each.result is None else b"=" + each.result
    return f"{each.id} {each.token} {each.state} {each.delay!r}".encode(), error, result


def unpack_claims(data: bytes, token: str) -> list[Claim]:
    claims: list[Claim] = []
    for line, text, _, error, previous in _unpack(data):
        message, enqueued_at = unpack_message(text)
        cause = None if error is None else json.loads(error)
        claim = _make_claim(
            message, token, int(line[1]), int(line[2]), enqueued_at, previous, cause
        )
        claims.append(claim)
    return claims


def unpack_jobs(data: bytes) -> list[StoredJob]:
    jobs: list[StoredJob] = []
    for line, text, result, error, previous in _unpack(data):
        message, enqueued_at = unpack_message(text)
        job = StoredJob(
            message=message,
            state=JobState(line[0].decode()),
            attempt=int(line[1]),
            enqueued_at=enqueued_at,
            started_at=float(line[3]) if line[3] else None,
            finished_at=float(line[4]) if line[4] else None,
            error=None if error is None else json.loads(error),
            result=result,
            previous=previous,
        )
        jobs.append(job)
    return jobs


def _unpack(data: bytes) -> Iterator[tuple[list[bytes], bytes, Any, Any, tuple[Any, ...]]]:
    """Give of each job its line, and what followed that: message, result, error, and previous."""
    end = 0
    while end < len(data):
        start, end = end, data.index(b"\n", end)
        line = data[start:end].split(b" ")
        end += 1
        parts: list[bytes | None] = []
        for each in line[5:]:
            length = int(each)
            parts.append(data[end : end + length] if length >= 0 else None)
            end += max(length, 0)
        message, result, error, *previous = parts
        assert message is not None
        yield line, message, result, error, tuple(previous)
