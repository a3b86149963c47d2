"""Records of the NATS broker's jobs, as bytes.

A record is a line of JSON, followed by the bytes whose lengths that line tells: the body, the
result, and the results of what it needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .._errors import BrokerUnavailableError
from .._states import JobState
from ..abc import Message
from .job import NatsJob

_VERSION = 1

#: What a record has of these only where it differs.
_PLAIN: Mapping[str, Any] = {
    "attempt": 0,
    "crashes": 0,
    "token": "",
    "lease_ends": None,
    "due": None,
    "expires_at": None,
    "cancelled": False,
    "started_at": None,
    "finished_at": None,
    "error": None,
    "number": None,
}


class UnreadableRecordError(BrokerUnavailableError):
    """A record is of a newer version of the library, or damaged."""


def encode(job: NatsJob) -> bytes:
    """Return a job's record; the same for the same job."""
    message = job.message
    blobs = [message.body, job.result, *job.previous]
    known: dict[str, Any] = {
        "v": _VERSION,
        "id": message.id,
        "handler": message.handler,
        "queue": message.queue,
        "state": job.state.value,
        "enqueued_at": job.enqueued_at,
        "keep": message.keep,
        "delay": message.delay,
        "at": message.at,
        "expires": message.expires,
        "sizes": [None if blob is None else len(blob) for blob in blobs],
    }
    for name, plain in _PLAIN.items():
        if (value := getattr(job, name)) != plain:
            known[name] = value
    if message.needs:
        known["needs"], known["unmet"] = message.needs, sorted(job.unmet)
    if job.dependants:
        known["dependants"] = job.dependants
    line = json.dumps(known, separators=(",", ":"), default=dict).encode()
    return b"".join([line, b"\n", *filter(None, blobs)])


def decode(record: bytes, revision: int) -> NatsJob:
    """Return the job of a record. Raises `UnreadableRecordError`."""
    try:
        line, _, rest = record.partition(b"\n")
        known = json.loads(line)
        if known["v"] != _VERSION:
            raise ValueError(f"version {known['v']!r}")
        return _job(known, _cut(rest, known["sizes"]), revision)
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableRecordError(
            f"the job's record at revision {revision} can't be read by this version of the "
            f"library: {error}"
        ) from None


def _job(known: dict[str, Any], blobs: list[bytes | None], revision: int) -> NatsJob:
    body, result, *previous = blobs
    job = NatsJob(
        Message(
            id=known["id"],
            handler=known["handler"],
            queue=known["queue"],
            body=body or b"",
            keep=known["keep"],
            delay=known["delay"],
            at=known["at"],
            expires=known["expires"],
            needs=tuple(known.get("needs", ())),
        ),
        known["enqueued_at"],
    )
    job.state = JobState(known["state"])
    for name, plain in _PLAIN.items():
        setattr(job, name, known.get(name, plain))
    job.revision = revision
    job.result, job.previous = result, previous
    job.unmet = set(known.get("unmet", ()))
    job.dependants = known.get("dependants", [])
    return job


def _cut(rest: bytes, sizes: Sequence[int | None]) -> list[bytes | None]:
    blobs: list[bytes | None] = []
    start = 0
    for size in sizes:
        if size is None:
            blobs.append(None)
        else:
            blobs.append(rest[start : start + size])
            start += size
    return blobs
