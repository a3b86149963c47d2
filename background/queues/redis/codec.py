"""The encoding of jobs in the arguments and answers of the Redis scripts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from struct import Struct
from typing import Any

from .._states import JobState
from .._unreadable import DECODING_ERRORS, check_outcome, unreadable_job
from ..abc import Claim, LostClaim, Message, Settlement, StoredJob

_MOST_AT_ONCE = 5000  # in one script
_MOST_BYTES = 64_000_000  # of the messages in one script

_ARRAY = _STRING = Struct(">BI")


def pack_messages(messages: Sequence[Message]) -> list[bytes]:
    """Encode messages to enqueue.

    Returns:
        The arguments of one or more scripts.

    Raises:
        ValueError: An id or a name has a space, a line break or a null character.
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
    """Encode one message.

    Returns:
        A text and a queue. The text is a line that scripts read, and the body. The queue is that of
        a job that is ready at once; it is empty for a job with a delay, an expiry or dependencies,
        and for a job without a handler.
    """
    id = message.id
    if " " in id or "," in id or "\n" in id or "\0" in id:
        raise ValueError(f"job {id!r}: ids can't contain spaces, commas, line breaks or null bytes")
    start, queue = _pack_terms(
        message.queue,
        message.retention,
        message.dead_retention,
        message.handler,
        message.delay,
        message.at,
        message.expires,
    )
    if message.depends_on:
        return b"%b%b\n%b" % (start, ",".join(message.depends_on).encode(), message.body), b""
    return b"%b\n%b" % (start, message.body), queue


@lru_cache(maxsize=100)
def _pack_terms(
    queue: str,
    retention: float,
    dead_retention: float,
    handler: str | None,
    delay: float,
    at: float | None,
    expires: float | None,
) -> tuple[bytes, bytes]:
    """Return the start of a message's line, and the queue if its job is ready at once.

    Jobs of one handler usually share both, so they are cached.
    """
    terms = f"{queue} {retention!r} {dead_retention!r} {handler or ''}"
    line = f"{terms} {delay!r} {_optional(at)} {_optional(expires)} "
    if line.count(" ") != 7 or "\n" in line or "\0" in line:
        raise ValueError(
            f"queue {queue!r}, handler {handler!r}: ids and names can't contain spaces"
        )
    ready = handler is not None and delay == 0 and at is None and expires is None
    return line.encode(), queue.encode() if ready else b""


def _optional(value: float | None) -> str:
    return "" if value is None else repr(value)


def _pack_columns(columns: Sequence[list[bytes]]) -> bytes:
    """Encode ids, texts and queues as one argument, and clear the columns.

    The argument is a MessagePack array of arrays of strings; one argument is faster than many.
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
    """Return a message, and the time when it was enqueued."""
    head, _, body = data.partition(b"\n")
    _, enqueued, id, queue, *times, depends_on = head.decode().split(" ")
    retention, dead_retention, handler, delay, at, expires = times
    message = Message(
        id,
        handler or None,
        queue,
        body,
        float(retention),
        float(dead_retention),
        float(delay),
        float(at) if at else None,
        float(expires) if expires else None,
        tuple(depends_on.split(",")) if depends_on else (),
    )
    return message, float(enqueued)


def pack_settlement(settlement: Settlement) -> tuple[bytes, bytes, bytes]:
    """Return a line that the script reads, the error, and the result; both may be empty."""
    error = b"" if settlement.error is None else json.dumps(dict(settlement.error)).encode()
    result = b"" if settlement.result is None else b"=" + settlement.result
    terms = f"{settlement.state} {settlement.delay!r} {int(settlement.has_begun)}"
    line = f"{settlement.id} {settlement.token} {terms}"
    return line.encode(), error, result


def unpack_claims(data: bytes, token: str) -> tuple[list[Claim], dict[str, Exception]]:
    """Decode the claims in a script's answer.

    Returns:
        The claims, and by id the errors of claimed jobs that can't be read.
    """
    claims: list[Claim] = []
    unreadable: dict[str, Exception] = {}
    for line, text, saved, error, _, previous in _unpack(data):
        try:
            message, enqueued_at = unpack_message(text)
            cause = None if error is None else json.loads(error)
            check_outcome(cause)
        except DECODING_ERRORS as failure:
            unreadable[line[7].decode(errors="replace")] = failure
            continue
        attempt, crashes, unconfirmed = map(int, line[1:4])
        claims.append(
            Claim(
                message, token, attempt, crashes, unconfirmed, enqueued_at, previous, cause, saved
            )
        )
    return claims, unreadable


def unpack_counts(data: Sequence[bytes]) -> Iterator[tuple[str, str, int]]:
    """Yield the queue, state and number of each count; skip those that can't be read."""
    for field, number in zip(data[::2], data[1::2], strict=True):
        queue, _, state = field.decode(errors="replace").rpartition(" ")
        with suppress(ValueError):
            yield queue, JobState(state), int(number)


def unpack_jobs(data: bytes) -> list[StoredJob]:
    """Decode the jobs in a script's answer; a job that can't be read is shown as dead."""
    jobs: list[StoredJob] = []
    for line, text, result, error, lost, previous in _unpack(data):
        try:
            message, enqueued_at = unpack_message(text)
            cause = None if error is None else json.loads(error)
            check_outcome(cause)
            job = StoredJob(
                message=message,
                state=JobState(line[0].decode()),
                attempt=int(line[1]),
                enqueued_at=enqueued_at,
                started_at=float(line[5]) if line[5] else None,
                finished_at=float(line[6]) if line[6] else None,
                error=cause,
                result=result,
                previous=previous,
                token=line[4].decode(),
                lost=() if lost is None else tuple(LostClaim(*claim) for claim in json.loads(lost)),
            )
        except DECODING_ERRORS as failure:
            job = unreadable_job(line[7].decode(errors="replace"), text, failure)
        jobs.append(job)
    return jobs


def _unpack(data: bytes) -> Iterator[tuple[list[bytes], bytes, Any, Any, Any, tuple[Any, ...]]]:
    """Yield the line, message, result, error, lost claims and previous results of each job."""
    end = 0
    while end < len(data):
        start, end = end, data.index(b"\n", end)
        line = data[start:end].split(b" ")
        end += 1
        parts: list[bytes | None] = []
        for field in line[8:]:
            length = int(field)
            parts.append(data[end : end + length] if length >= 0 else None)
            end += max(length, 0)
        message, result, error, lost, *previous = parts
        assert message is not None
        yield line, message, result, error, lost, tuple(previous)
