"""How the NATS broker lays out jobs on a server: names, subjects, and every setting of a stream.

`{prefix}` begins all of them. Records of jobs are a key-value bucket that other tools can read.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any

_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_SECOND = 1_000_000_000  # durations are in nanoseconds

#: Seconds after which what somebody has fetched, and died of before it was claimed, is handed to
#: another. Who is slower than that claims in vain, but harms nobody.
ACK_WAIT = 1.0
#: Seconds for which nobody may have asked for jobs of a queue until its consumers go; they hold
#: nothing, and are made again when somebody asks.
UNUSED = 86_400
#: Stands in a timer for all jobs, and for all once more: no job has such an id.
EVERY, EVERY_AGAIN = "*", "**"


def encode(name: str) -> str:
    """Return a name as one token of a subject, which may hold neither `.` nor `:`."""
    return name.replace(".", "=d").replace(":", "=c")


class Layout:
    """Names on the server. Raises `ValueError` for a prefix that can't begin them."""

    def __init__(self, prefix: str, replicas: int, storage: str) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ValueError(f"prefix must be 1 to 64 letters, digits, _ and -, not {prefix!r}")
        if isinstance(replicas, bool) or replicas not in (1, 2, 3, 4, 5):
            raise ValueError(f"replicas must be 1 to 5, not {replicas!r}")
        if storage not in ("file", "memory"):
            raise ValueError(f'storage is "file" or "memory", not {storage!r}')
        self.prefix = prefix
        bucket = f"{prefix}-jobs"
        self.jobs = f"KV_{bucket}"
        self.ready = f"{prefix}-ready"
        self.timers = f"{prefix}-timers"
        self._job = f"$KV.{bucket}."
        common = {
            "num_replicas": replicas,
            "storage": storage,
            "discard": "new",
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": 0,
            "max_msgs_per_subject": 1,
            "duplicate_window": 120 * _SECOND,  # the server's own; nothing depends on it
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
                "subjects": [f"{prefix}.ready.>"],
                "retention": "workqueue",
                "discard": "old",
            },
            self.timers: {
                **common,
                "subjects": [f"{prefix}.timers.>", f"{prefix}.clock"],
                "retention": "limits",
                "max_msgs_per_subject": -1,
            },
        }

    def job(self, id: str) -> str:
        """The subject of a job's record."""
        return self._job + encode(id)

    def ready_job(self, queue: str, id: str, *, again: bool) -> str:
        """The subject that says that a job is ready, for the first time or `again`."""
        return f"{self.prefix}.ready.{encode(queue)}.{_band(again)}.{encode(id)}"

    def any_ready_job(self, queue: str, id: str) -> str:
        return f"{self.prefix}.ready.{encode(queue)}.*.{encode(id)}"

    def consumer(self, queue: str, *, again: bool) -> tuple[str, dict[str, Any]]:
        """The name and the settings of what hands out a queue's jobs."""
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
            "inactive_threshold": UNUSED * _SECOND,
        }

    def woken(self, queue: str) -> str:
        """Told of whenever there is more in a queue; kept nowhere."""
        return f"{self.prefix}.woken.{encode(queue)}"

    def ended(self, id: str) -> str:
        """Told of when a job has ended; kept nowhere."""
        return f"{self.prefix}.ended.{encode(id)}"

    def timer(self, width: int, number: int) -> str:
        return f"{self.prefix}.timers.{width}.{number}"

    @property
    def all_timers(self) -> str:
        return f"{self.prefix}.timers.>"

    @property
    def clock(self) -> str:
        return f"{self.prefix}.clock"


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Say which settings are others than they have to be; servers leave out those that are 0."""
    return [
        f"{name} is {found.get(name)!r} instead of {value!r}"
        for name, value in wanted.items()
        if found.get(name) != value and (value or found.get(name))
    ]


def _band(again: bool) -> str:
    return "again" if again else "new"


def _short(name: str) -> str:
    """Return a name that a server can use for a folder."""
    if len(name) <= 128:
        return name
    return f"{name[:96]}=h{sha256(name.encode()).hexdigest()[:30]}"
