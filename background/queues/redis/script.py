"""The Lua scripts of the Redis broker, and the encoding of their calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files

#: The keys, all in one slot of a cluster. Every script declares all of them.
#:
#: - jobs: records of jobs by id; a job that is ready when it is enqueued has none until it changes.
#: - messages: the constant part of jobs, by id.
#: - results, errors: by id.
#: - order: ids by number.
#: - ready: members of queue, number and id, in this order.
#: - changing: ids of jobs that have not ended, by the time of their next change.
#: - kept: ids of jobs that have ended, by the end of their retention.
#: - dependants: members of dependency, dependant and place.
#: - previous: the results of a job's dependencies, by id and place.
#: - counts: numbers of jobs, by queue and state.
#: - number: the number of the latest job.
#: - idle: queues with waiters.
#: - version: the version of this format.
#: - damaged: jobs that could not be read, by id; their messages by id and `message`.
#: - schedules: the latest tick of each schedule, and when it is deleted.
#: - repair: the state of the pass that compares jobs with the indexes, or when the next one begins.
KEYS = (
    *("jobs", "messages", "results", "errors", "order", "ready", "changing", "kept"),
    *("dependants", "previous", "counts", "number", "idle", "version", "damaged"),
    *("schedules", "repair"),
)

#: The version of the format that this library writes, and the latest that it reads. A release that
#: changes the format first reads the new one, and the next release writes it: two releases that
#: follow each other can run at the same time.
WRITES, READS = 1, 1

#: The fields of a record, in order. `AT` is the time of the next change: the job is due, it or its
#: lease expires, or its retention ends.
FIELDS = (
    *("STATE", "QUEUE", "NUMBER", "RETENTION", "DEAD_RETENTION", "ATTEMPT", "CRASHES"),
    *("UNCONFIRMED", "CONFIRMED", "TOKEN", "LOST"),
    *("STARTED", "FINISHED", "DUE", "EXPIRES", "AT", "BLOCKED", "CANCELLED", "AWAITED", "JOIN"),
    *("DEPENDENCIES", "HAS_DEPENDANTS", "RESULT", "ERROR"),
)

_FOLDER = files("background.queues.redis").joinpath("lua")


class Script:
    """The text of a script, and its digest.

    `ARGV[1]` of every script is the channel of the notifications. The answer is a single string,
    which clients read fastest.

    Args:
        *names: The names of its files, after the files that all scripts share.
    """

    def __init__(self, *names: str) -> None:
        parts = ("records", "indexes", "transitions", *names)
        text = "".join(_FOLDER.joinpath(f"{name}.lua").read_text("utf-8") for name in parts)
        text = re.sub(r"\s*--[^\n]*", "", text)  # comments
        text = re.sub(r"\bKEYS\.(\w+)", lambda name: f"KEYS[{KEYS.index(name[1]) + 1}]", text)
        text = re.sub(r"\[([A-Z_]+)\]", lambda name: f"[{FIELDS.index(name[1]) + 1}]", text)
        text = text.replace("#job == FIELDS", f"#job == {len(FIELDS)}")
        self.text = text.encode()
        self.digest = sha1(self.text, usedforsecurity=False).hexdigest().encode()


CHECK = Script("check")
ENQUEUE = Script("enqueue")
CLAIM = Script("claim")
RENEW = Script("renew")
SETTLE = Script("settle")
SAVE = Script("save")
CANCEL = Script("cancel")
REQUEUE = Script("requeue")
OPEN = Script("open")
RIGHTS = Script("rights")
PRESENT = Script("present")
NEXT_WORK = Script("next_work")
GET = Script("get")
AWAIT = Script("await")
SCAN = Script("page", "scan")
PURGE = Script("page", "purge")
MAINTAIN = Script("maintain")
REPAIR = Script("repair")
RELEASE = Script("release")
ADVANCE_SCHEDULE = Script("advance_schedule")


def pack(values: Sequence[bytes]) -> bytes:
    """Encode values in the server's protocol."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(value), value) for value in values])


def encoded(*values: object) -> list[bytes]:
    """Return values as text, for scripts and commands."""
    return [str(value).encode() for value in values]


def command(*values: bytes) -> bytes:
    """Encode a command in the server's protocol."""
    return b"*%d\r\n%b" % (len(values), pack(values))


class Caller:
    """Encodes calls of scripts with the keys of one prefix.

    Args:
        prefix: The prefix of all keys.
        channel: The channel of the notifications.
    """

    def __init__(self, prefix: str, channel: str) -> None:
        keys = [f"{{{prefix}}}:{name}".encode() for name in KEYS]
        self._keys = pack([str(len(KEYS)).encode(), *keys, channel.encode()])
        self._count = len(KEYS) + 4
        #: The command that returns all counts.
        self.counts = command(b"HGETALL", f"{{{prefix}}}:counts".encode())

    def by_digest(self, script: Script, values: Sequence[bytes]) -> bytes:
        """Return a call of a script that the server has cached."""
        return self._call(pack([b"EVALSHA", script.digest]), values)

    def by_text(self, script: Script, values: Sequence[bytes]) -> bytes:
        """Return a call of a script that the server may not have cached."""
        return self._call(pack([b"EVAL", script.text]), values)

    def _call(self, start: bytes, values: Sequence[bytes]) -> bytes:
        count = b"*%d\r\n" % (self._count + len(values))
        return b"".join((count, start, self._keys, pack(values)))
