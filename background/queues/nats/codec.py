"""The encoding of job records.

A record is a line of JSON, followed by binary values: the body, the result, and the results of the
jobs that this job depends on. The line lists their sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from .._errors import BrokerUnavailableError
from .._names import is_name
from .._states import JobState
from .._unreadable import DECODING_ERRORS, check_message, check_number, check_outcome, check_type
from ..abc import LostClaim, Message
from .job import NatsJob

#: The version of the format that this library writes, and the latest that it reads. A release that
#: changes the format first reads the new one, and the next release writes it.
WRITES, READS = 1, 1

#: Attributes that are omitted from a record if they have these values.
_DEFAULTS: Mapping[str, Any] = {
    "attempt": 0,
    "crashes": 0,
    "unconfirmed": 0,
    "confirmed": False,
    "token": "",
    "lease_ends": None,
    "due": None,
    "expires_at": None,
    "cancel_requested": False,
    "started_at": None,
    "finished_at": None,
    "error": None,
    "number": None,
}


class UnreadableRecordError(BrokerUnavailableError):
    """A record is damaged, or was written by a newer version of the library."""


class NewerRecordError(UnreadableRecordError):
    """A record was written by a newer version of the library."""


def encode(job: NatsJob) -> bytes:
    """Return the record of a job.

    Equal jobs have equal records, so records can be compared to find out whether a job has changed.
    """
    message = job.message
    blobs = [message.body, job.result, *job.previous]
    fields: dict[str, Any] = {
        "v": WRITES,
        "id": message.id,
        "handler": message.handler,
        "queue": message.queue,
        "state": job.state.value,
        "enqueued_at": job.enqueued_at,
        "retention": message.retention,
        "dead_retention": message.dead_retention,
        "delay": message.delay,
        "at": message.at,
        "expires": message.expires,
        "sizes": [None if blob is None else len(blob) for blob in blobs],
    }
    for name, default in _DEFAULTS.items():
        if (value := getattr(job, name)) != default:
            fields[name] = value
    if message.depends_on:
        fields["depends_on"], fields["unmet"] = message.depends_on, job.unmet
    if job.lost:
        fields["lost"] = [astuple(claim) for claim in job.lost]
    if job.dependants:
        fields["dependants"] = job.dependants
    line = json.dumps(fields, separators=(",", ":"), default=dict).encode()
    return b"".join([line, b"\n", *filter(None, blobs)])


def decode(record: bytes, revision: int) -> NatsJob:
    """Return the job of a record.

    Args:
        record: The record.
        revision: Its revision.

    Raises:
        NewerRecordError: It has a version of the format from a newer version of the library.
        UnreadableRecordError: It is damaged.
    """
    try:
        line, _, rest = record.partition(b"\n")
        fields = json.loads(line)
        version = fields["v"]
        if type(version) is not int or version < 1:
            raise ValueError(f"version {version!r}")
        if version > READS:
            raise NewerRecordError(
                f"there are jobs of version {version}, from a newer version of this library, which "
                f"runs them; this one supports versions up to {READS}"
            )
        job = _job(fields, _split(rest, fields["sizes"]), revision)
        _check(job)
    except DECODING_ERRORS as error:
        raise UnreadableRecordError(
            f"the job's record at revision {revision} can't be read: {error}"
        ) from None
    return job


def _job(fields: dict[str, Any], blobs: list[bytes | None], revision: int) -> NatsJob:
    body, result, *previous = blobs
    message = Message(
        id=fields["id"],
        handler=fields["handler"],
        queue=fields["queue"],
        body=body or b"",
        retention=fields["retention"],
        dead_retention=fields["dead_retention"],
        delay=fields["delay"],
        at=fields["at"],
        expires=fields["expires"],
        depends_on=tuple(fields.get("depends_on", ())),
    )
    job = NatsJob(message, fields["enqueued_at"])
    job.state = JobState(fields["state"])
    for name, default in _DEFAULTS.items():
        setattr(job, name, fields.get(name, default))
    job.revision = revision
    job.result, job.previous = result, previous
    job.unmet = fields.get("unmet", [])
    job.lost = [LostClaim(*claim) for claim in fields.get("lost", ())]
    job.dependants = fields.get("dependants", [])
    return job


def _check(job: NatsJob) -> None:
    """Check the types of the fields that the state machine uses.

    Raises:
        ValueError: A field has a wrong type.
    """
    check_message(job.message)
    for number in (job.attempt, job.crashes, job.unconfirmed, job.enqueued_at):
        check_number(number)
    for time in (job.lease_ends, job.due, job.expires_at, job.started_at, job.finished_at):
        check_number(time or 0.0)
    check_outcome(job.error, job.result, *job.previous)
    names = (job.message.id, job.message.queue, *job.message.depends_on, *job.dependants)
    check_type("token", job.token, str)
    if not all(map(is_name, names)):
        raise ValueError("a name is not valid")
    if not set(job.unmet) <= set(range(len(job.previous))):
        raise ValueError("it has not as many dependencies as it waits for")


def _split(rest: bytes, sizes: Sequence[int | None]) -> list[bytes | None]:
    blobs: list[bytes | None] = []
    start = 0
    for size in sizes:
        if size is None:
            blobs.append(None)
        else:
            blobs.append(rest[start : start + size])
            start += size
    return blobs
