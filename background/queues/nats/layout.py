"""Names, subjects and stream settings of the NATS broker.

All names begin with the broker's prefix. There are four streams:

- `KV_{prefix}-jobs` is the key-value bucket `{prefix}-jobs`, with one record for each job. Other
  NATS tools can read it.
- `{prefix}-ready` is a work queue, with one hint for each ready job.
- `{prefix}-timers` has one subject for each slot of the timer wheel, and `{prefix}.clock`.
- `KV_{prefix}-schedules` is the key-value bucket of the latest ticks of schedules.

Notifications are published on `{prefix}.woken.{queue}` and `{prefix}.ended.{id}`, which no stream
stores.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any

_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_SECOND = 1_000_000_000  # JetStream's durations are in nanoseconds

#: Seconds after which a hint that was fetched but not acknowledged is delivered again, because the
#: process that fetched it may have crashed. If it is only slow, two processes try to claim the job,
#: and compare-and-set lets one of them succeed.
ACK_WAIT = 1.0
#: Seconds without a request after which the server deletes a queue's consumers. Nothing is lost
#: with them; they are created again when they are needed.
_CONSUMER_IDLE = 86_400
#: Stand for all jobs in a timer, in place of a job's id; no job has such an id. `ALL_JOBS` makes a
#: process restore the hints and timers that are missing, and set a timer of `ALL_JOBS_AGAIN` for a
#: second pass.
ALL_JOBS, ALL_JOBS_AGAIN = "*", "**"


def encode(name: str) -> str:
    """Return the name of a job or queue as one token of a subject.

    `.` would separate tokens, and `:` is not allowed in the keys of a bucket.
    """
    return name.replace(".", "=d").replace(":", "=c")


def decode(token: str) -> str:
    """Return the name that `encode` made a token of."""
    return token.replace("=d", ".").replace("=c", ":")


def name_in(subject: str) -> str:
    """Return the name in the last token of a subject."""
    return decode(subject.rpartition(".")[2])


class Layout:
    """Names and settings of everything that the broker stores on a server.

    Args:
        prefix: The beginning of all names: 1 to 64 letters, digits, `_` and `-`.
        replicas: The number of servers in a cluster that store each stream; 1 to 5.
        storage: `"file"` or `"memory"`.

    Raises:
        ValueError: An argument is not valid.
    """

    def __init__(self, prefix: str, replicas: int = 1, storage: str = "file") -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ValueError(f"prefix must be 1 to 64 letters, digits, _ and -, not {prefix!r}")
        if isinstance(replicas, bool) or replicas not in (1, 2, 3, 4, 5):
            raise ValueError(f"replicas must be 1 to 5, not {replicas!r}")
        if storage not in ("file", "memory"):
            raise ValueError(f'storage must be "file" or "memory", not {storage!r}')
        self.prefix = prefix
        bucket = f"{prefix}-jobs"
        self.jobs = f"KV_{bucket}"
        self.ready = f"{prefix}-ready"
        self.timers = f"{prefix}-timers"
        self.schedules = f"KV_{prefix}-schedules"
        self._job = f"$KV.{bucket}."
        common = {
            "num_replicas": replicas,
            "storage": storage,
            "discard": "new",
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": 0,
            "max_msgs_per_subject": 1,
            "duplicate_window": 120 * _SECOND,  # the server's default; no message has a Nats-Msg-Id
        }
        #: The settings of each stream.
        self.streams: dict[str, dict[str, Any]] = {
            self.jobs: {
                **common,
                "subjects": [f"{self._job}>"],
                "retention": "limits",
                "allow_rollup_hdrs": True,
                "deny_delete": False,
            },
            self.ready: {
                **common,
                "subjects": [self.all_ready_jobs],
                "retention": "workqueue",
                "discard": "old",
            },
            self.timers: {
                **common,
                "subjects": [self.all_timers, self.clock],
                "retention": "limits",
                "max_msgs_per_subject": -1,
            },
            self.schedules: {
                **common,
                "subjects": [self.schedule(">")],
                "retention": "limits",
                "allow_rollup_hdrs": True,
                "deny_delete": False,
            },
        }

    def job(self, id: str) -> str:
        """Return the subject of a job's record."""
        return self._job + encode(id)

    def schedule(self, name: str) -> str:
        """Return the subject of a schedule's latest tick."""
        return f"$KV.{self.prefix}-schedules.{encode(name)}"

    def ready_job(self, queue: str, id: str, *, again: bool) -> str:
        """Return the subject of a job's hint in the band `again` or `new`."""
        return f"{self.prefix}.ready.{encode(queue)}.{_band(again)}.{encode(id)}"

    def any_ready_job(self, queue: str, id: str) -> str:
        """Return a pattern for the subjects of a job's hints in both bands."""
        return f"{self.prefix}.ready.{encode(queue)}.*.{encode(id)}"

    @property
    def all_ready_jobs(self) -> str:
        """A pattern for the subjects of all hints."""
        return f"{self.prefix}.ready.>"

    def consumer(self, queue: str, *, again: bool) -> tuple[str, dict[str, Any]]:
        """Return the name and the settings of the consumer for one band of a queue's hints."""
        name = f"{_band(again)}-{_short(encode(queue))}"
        return name, {
            "durable_name": name,
            "filter_subject": f"{self.prefix}.ready.{encode(queue)}.{_band(again)}.*",
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT * _SECOND),
            "deliver_policy": "all",
            "replay_policy": "instant",
            "max_deliver": -1,
            "max_ack_pending": 20_000,
            "inactive_threshold": _CONSUMER_IDLE * _SECOND,
        }

    def woken(self, queue: str) -> str:
        """Return the subject of notifications that a queue has more ready jobs."""
        return f"{self.prefix}.woken.{encode(queue)}"

    def ended(self, id: str) -> str:
        """Return the subject of notifications that a job has ended."""
        return f"{self.prefix}.ended.{encode(id)}"

    def timer(self, width: int, number: int) -> str:
        """Return the subject of a slot of the timer wheel.

        Args:
            width: The slot's length, in seconds.
            number: The slot's start, as a multiple of `width` since the epoch.
        """
        return f"{self.prefix}.timers.{width}.{number}"

    @property
    def all_timers(self) -> str:
        """A pattern for the subjects of all slots."""
        return f"{self.prefix}.timers.>"

    @property
    def clock(self) -> str:
        """The subject of the messages whose timestamps show the server's time."""
        return f"{self.prefix}.clock"


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Describe the settings that differ from the wanted ones.

    A setting that is not found has its zero value, because servers omit these.
    """
    return [
        f"{name} is {found.get(name)!r} instead of {value!r}"
        for name, value in wanted.items()
        if found.get(name) != value and (value or found.get(name))
    ]


def _band(again: bool) -> str:
    return "again" if again else "new"


def _short(name: str) -> str:
    """Return a name that is short enough for a folder on the server."""
    if len(name) <= 128:
        return name
    return f"{name[:96]}=h{sha256(name.encode()).hexdigest()[:30]}"
