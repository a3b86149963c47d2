"""Stored jobs and ticks that can't be read, because something else has changed them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeGuard

from .._support.log import log
from ._states import JobState
from .abc import Claim, Message, StoredJob

#: The errors of decoding what is stored.
DECODING_ERRORS = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)

#: Ticks must be earlier, so that they are in the range of `datetime` in every time zone: the last
#: days of the year 9999. `advance_schedule.lua` has the same number.
_END_OF_TICKS = 253_402_128_000.0


def check_message(message: Message) -> Message:
    """Return a message whose fields have the right types.

    Raises:
        ValueError: A field has a wrong type.
    """
    check_type("id", message.id, str)
    check_type("queue", message.queue, str)
    check_type("body", message.body, bytes)
    check_type("handler", message.handler or "", str)
    numbers = (message.retention, message.dead_retention, message.delay)
    for number in (*numbers, message.at or 0.0, message.expires or 0.0):
        check_number(number)
    return message


def check_claim(claim: Claim) -> Claim:
    """Return a claim whose fields have the right types.

    Raises:
        ValueError: A field has a wrong type.
    """
    check_message(claim.message)
    for number in (claim.attempt, claim.crashes, claim.unconfirmed, claim.enqueued_at):
        check_number(number)
    check_outcome(claim.error, claim.saved, *claim.previous)
    return claim


def check_type(field: str, value: object, expected: type) -> None:
    """Check the type of a stored value.

    Raises:
        ValueError: It is another one.
    """
    if not isinstance(value, expected):
        raise ValueError(f"its {field} is of the type {type(value).__name__}")


def check_number(value: object) -> None:
    """Check that a stored value is a number.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, (int, float)):
        raise ValueError(f"a number is expected where it has a {type(value).__name__}")


def check_outcome(error: object, *results: object) -> None:
    """Check that a stored error is a mapping, and that results are bytes, if they exist.

    Raises:
        ValueError: One of them is not.
    """
    check_type("error", {} if error is None else error, Mapping)
    for result in results:
        check_type("result", b"" if result is None else result, bytes)


def describe(reason: BaseException) -> dict[str, Any]:
    """Return the error of a job that can't be read."""
    text = f"what is stored can't be read: {reason}"
    return {"type": "background.queues.InvalidPayloadError", "message": text}


def unreadable_job(id: str, stored: bytes, reason: BaseException) -> StoredJob:
    """Return what is shown for a job that can't be read.

    Args:
        id: The job's id.
        stored: What is stored.
        reason: The error.
    """
    message = Message(id, "", "", stored, retention=0.0, dead_retention=0.0)
    return StoredJob(message, JobState.DEAD, 0, 0.0, error=describe(reason))


def report(id: object, reason: BaseException) -> None:
    """Log that a job can't be read, and is therefore dead."""
    log(logging.ERROR, "job %s can't be read and is dead: %s", id, reason)


def is_tick(value: object) -> TypeGuard[float]:
    """Return whether a stored value is a time from 1970 to 9999."""
    return isinstance(value, (int, float)) and 0 <= value < _END_OF_TICKS


def report_tick(name: str, stored: object) -> None:
    """Log that the tick of a schedule can't be read, and is replaced by another one."""
    log(
        logging.ERROR,
        "schedule %s: its latest tick is stored as %.100s, which can't be read; it begins again",
        *(name, stored),
    )
