"""The creation of a broker's messages for new jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..._support import clock
from .._codec import json_data
from .._codec.body import Shape
from .._codec.trace import inject
from .._names import new_id, new_ids
from ..abc import Message
from .options import CheckedOptions


@dataclass(slots=True, eq=False)
class Terms:
    """The settings of all jobs of a handler.

    Args:
        name: The handler's name.
        queue: The name of the queue.
        retention: Seconds for which a job is stored after its end.
        dead_retention: The same for a dead job.
        expires: Seconds until a job must have started.
        with_baggage: Whether the baggage of the enqueuer is stored with a job.
    """

    name: str
    queue: str
    retention: float
    dead_retention: float
    expires: float | None = None
    with_baggage: bool = False


@dataclass(slots=True, eq=False)
class Place:
    """A job's place in a chain or group.

    Args:
        id: The job's id.
        depends_on: The ids of the jobs that it depends on.
        previous: The structure of their results.
    """

    id: str
    depends_on: tuple[str, ...]
    previous: Shape | None


def messages(
    terms: Terms,
    calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]],
    options: CheckedOptions,
    max_payload: int,
) -> list[Message]:
    """Return the messages of jobs whose arguments are plain data.

    Raises:
        InvalidPayloadError: A body can't be encoded.
        PayloadTooLargeError: A body is larger than `max_payload`.
        ValueError: The jobs would expire before they are due.
    """
    shared = _shared(terms, options)
    bodies = (_body(args, kwargs, shared) for args, kwargs in calls)
    encoded = json_data.encode_each(f"job {terms.name}", bodies, max_payload)
    queue, expires = options.queue or terms.queue, _expires(terms, options)
    return [
        Message(
            id,
            terms.name,
            queue,
            body,
            terms.retention,
            terms.dead_retention,
            options.delay,
            options.at,
            expires,
        )
        for id, body in zip(new_ids(len(encoded)), encoded, strict=True)
    ]


def message(
    terms: Terms,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: CheckedOptions,
    max_payload: int,
    place: Place | None = None,
) -> Message:
    """Return the message of one job; raise the errors of `messages`."""
    body = _body(args, kwargs, _shared(terms, options))
    if options.id is not None:  # the id may be in use
        body["nonce"] = new_id()
    if place is not None:
        body["passes"] = True
        if place.previous is not None:
            body["previous"] = place.previous
    return Message(
        (options.id or new_id()) if place is None else place.id,
        terms.name,
        options.queue or terms.queue,
        json_data.encode(f"job {terms.name}", body, max_payload, checked=True),
        terms.retention,
        terms.dead_retention,
        options.delay,
        options.at,
        _expires(terms, options),
        () if place is None else place.depends_on,
    )


def _expires(terms: Terms, options: CheckedOptions) -> float | None:
    expires = terms.expires if options.expires is None else options.expires
    if expires is not None:
        delay = options.delay if options.at is None else options.at - clock.wall()
        if expires <= delay:
            raise ValueError(
                f"expires must be more than the delay: a job that may start after {delay:g} s "
                f"can't start within {expires:g} s"
            )
    return expires


def _body(
    args: Sequence[Any], kwargs: Mapping[str, Any], shared: Mapping[str, Any]
) -> dict[str, Any]:
    return {"args": args, "kwargs": kwargs, **shared} if kwargs else {"args": args, **shared}


def _shared(terms: Terms, options: CheckedOptions) -> dict[str, Any]:
    """Return the fields that the bodies of all jobs of a call share."""
    shared: dict[str, Any] = {}
    if trace := inject(with_baggage=terms.with_baggage):
        shared["trace"] = trace
    if options.meta:
        shared["meta"] = meta = dict(options.meta)
        json_data.check("meta", meta)
    if options.timeout is not None:
        shared["timeout"] = options.timeout
    if options.retry is not None:
        shared["retry"] = options.retry
    return shared


def last_message(
    terms: Terms,
    id: str,
    depends_on: tuple[str, ...],
    previous: Shape,
    members: Sequence[str],
    max_payload: int,
) -> Message:
    """Return the message of the job without a handler that represents a chain or group."""
    body = {"previous": previous, "members": members, "nonce": new_id()}
    return Message(
        id=id,
        handler=None,
        queue=terms.queue,
        body=json_data.encode(f"chain or group {id}", body, max_payload),
        retention=terms.retention,
        dead_retention=terms.dead_retention,
        depends_on=depends_on,
    )
