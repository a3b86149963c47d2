"""The Lua scripts of the Redis broker, and how they are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files

#: The keys, all in one slot of a cluster; every script declares all of them.
#: - jobs: by id, the part of a job that changes, once it has changed; messages: the part that does
#:   not; results; errors.
#: - order: ids by number; ready: members of queue, number and id, in that order.
#: - changing: ids of jobs that have not ended, by when time changes them; kept: of those that have.
#: - dependants: which job depends on which; previous: the results that a job depends on.
#: - counts: by queue and state; number: of the latest job; idle: queues that have waiters.
#: - version: of this format.
KEYS = (
    *("jobs", "messages", "results", "errors", "order", "ready", "changing", "kept"),
    *("dependants", "previous", "counts", "number", "idle", "version"),
)

#: The version of the format; it is raised when older programs can't use the new one.
VERSION = 1

#: The fields of a record, by place. `at` is when time changes the job: it is due, it expires, its
#: lease ends, or it is past its retention.
FIELDS = (
    *("STATE", "QUEUE", "NUMBER", "RETENTION", "DEAD_RETENTION", "ATTEMPT", "CRASHES", "TOKEN"),
    *("STARTED", "FINISHED", "DUE", "EXPIRES", "AT", "BLOCKED", "CANCELLED", "AWAITED", "JOIN"),
    *("DEPENDENCIES", "HAS_DEPENDANTS", "RESULT", "ERROR"),
)

_FOLDER = files("background.queues.redis").joinpath("lua")


class Script:
    """A script, and the digest by which the server knows it.

    `ARGV[1]` of every script is the channel on which waiters listen. The answer is one string,
    because a client reads that fastest.

    Args:
        *names: The names of the files that it consists of, after those that all scripts begin with.
    """

    def __init__(self, *names: str) -> None:
        parts = ("records", "transitions", *names)
        text = "".join(_FOLDER.joinpath(f"{name}.lua").read_text("utf-8") for name in parts)
        text = re.sub(r"\s*--[^\n]*", "", text)
        text = re.sub(r"\bKEYS\.(\w+)", lambda name: f"KEYS[{KEYS.index(name[1]) + 1}]", text)
        text = re.sub(r"\[([A-Z_]+)\]", lambda name: f"[{FIELDS.index(name[1]) + 1}]", text)
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
NEXT_WORK = Script("next_work")
GET = Script("get")
AWAIT = Script("await")
SCAN = Script("page", "scan")
PURGE = Script("page", "purge")
MAINTAIN = Script("maintain")


def pack(values: Sequence[bytes]) -> bytes:
    """Return values in the server's protocol."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(value), value) for value in values])


def encoded(*values: object) -> list[bytes]:
    """Return values as the texts that scripts and commands take."""
    return [str(value).encode() for value in values]


def command(*values: bytes) -> bytes:
    """Return a command in the server's protocol."""
    return b"*%d\r\n%b" % (len(values), pack(values))


class Caller:
    """Makes the calls of scripts, for the keys of one prefix.

    Args:
        prefix: How the names of all keys begin, in braces.
        channel: The channel on which waiters listen.
    """

    def __init__(self, prefix: str, channel: str) -> None:
        keys = [f"{{{prefix}}}:{name}".encode() for name in KEYS]
        self._keys = pack([str(len(KEYS)).encode(), *keys, channel.encode()])
        self._count = len(KEYS) + 4
        #: The command that returns all counts.
        self.counts = command(b"HGETALL", f"{{{prefix}}}:counts".encode())

    def by_digest(self, script: Script, values: Sequence[bytes]) -> bytes:
        """Return a call of a script that the server knows."""
        return self._call(pack([b"EVALSHA", script.digest]), values)

    def by_text(self, script: Script, values: Sequence[bytes]) -> bytes:
        """Return a call of a script that the server may not know."""
        return self._call(pack([b"EVAL", script.text]), values)

    def _call(self, start: bytes, values: Sequence[bytes]) -> bytes:
        count = b"*%d\r\n" % (self._count + len(values))
        return b"".join((count, start, self._keys, pack(values)))
