"""How a job to be enqueued becomes a broker's message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..._support import clock
from ..._support.frozen import maker, record
from .._codec import json_data
from .._codec.body import Shape
from .._codec.trace import inject
from .._names import new_id, new_ids
from ..abc import Message
from .options import Options

_make = maker(Message)


@record
class Terms:
    """What is agreed for all jobs of a handler, in seconds where it is a time.

    - `keep`: for which a job is known after its end.
    - `expires`: until it must have been started.
    """

    name: str
    queue: str
    keep: float
    expires: float | None = None


@record
class Place:
    """Where in a composite a job is: what it needs, and how the results of that go together."""

    id: str
    needs: tuple[str, ...]
    previous: Shape | None


def messages(
    terms: Terms,
    calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]],
    options: Options,
    max_payload: int,
) -> list[Message]:
    """Return the messages of jobs, of each of which the arguments are known to be plain data.

    Raises `InvalidPayloadError` and `PayloadTooLargeError`, and `ValueError` for what would expire before it
    is due.
    """
    shared = _shared(options)
    bodies = (_body(args, kwargs, shared) for args, kwargs in calls)
    encoded = json_data.encode_each(f"job {terms.name}", bodies, max_payload)
    queue, expires = options.queue or terms.queue, _expires(terms, options)
    return [
        _make(id, terms.name, queue, body, terms.keep, options.delay, options.at, expires)
        for id, body in zip(new_ids(len(encoded)), encoded, strict=True)
    ]


def message(
    terms: Terms,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Options,
    max_payload: int,
    place: Place | None = None,
) -> Message:
    """Return the message of one job; else as `messages`."""
    body = _body(args, kwargs, _shared(options))
    if options.id is not None:  # another job could have it
        body["nonce"] = new_id()
    if place is not None:
        body["passes"] = True
        if place.previous is not None:
            body["previous"] = place.previous
    return _make(
        (options.id or new_id()) if place is None else place.id,
        terms.name,
        options.queue or terms.queue,
        json_data.encode(f"job {terms.name}", body, max_payload, checked=True),
        terms.keep,
        options.delay,
        options.at,
        _expires(terms, options),
        () if place is None else place.needs,
    )


def _expires(terms: Terms, options: Options) -> float | None:
    expires = terms.expires if options.expires is None else options.expires
    if expires is not None:
        delay = options.delay if options.at is None else options.at - clock.wall()
        if expires <= delay:
            raise ValueError(
                f"expires must be more than the delay: what may start after {delay:g} s can't be "
                f"started within {expires:g} s"
            )
    return expires


def _body(
    args: Sequence[Any], kwargs: Mapping[str, Any], shared: Mapping[str, Any]
) -> dict[str, Any]:
    return {"args": args, "kwargs": kwargs, **shared} if kwargs else {"args": args, **shared}


def _shared(options: Options) -> dict[str, Any]:
    """Return what is the same in the bodies of all jobs of a call."""
    shared: dict[str, Any] = {}
    if trace := inject():
        shared["trace"] = trace
    if options.meta:
        shared["meta"] = meta = dict(options.meta)
        json_data.check("meta", meta)
    if options.timeout is not None:
        shared["timeout"] = options.timeout
    if options.retry is not None:
        shared["retry"] = options.retry
    return shared


def end(
    id: str,
    queue: str,
    keep: float,
    needs: tuple[str, ...],
    previous: Shape,
    members: Sequence[str],
    max_payload: int,
) -> Message:
    """Return the message of the job without a handler that is a composite's end."""
    body = {"previous": previous, "members": members, "nonce": new_id()}
    return Message(
        id=id,
        handler=None,
        queue=queue,
        body=json_data.encode(f"composite {id}", body, max_payload),
        keep=keep,
        needs=needs,
    )
