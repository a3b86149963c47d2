"""How the Redis broker's scripts are made and called, and what they find in which place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha1

from .common import COMMON
from .records import RECORDS

#: The keys, all in one slot of a cluster; every script names all of them.
#: - jobs: what changes of each job, by id, once anything has; messages: what does not; results and
#:   errors.
#: - order: ids by number; ready: queue, number and id, in that order.
#: - changing: ids of jobs that have not ended by when time changes them; kept: of those that have.
#: - needs: which job waits for which; previous: the results of what a job needs.
#: - counts: by queue and state; number: of the latest job; idle: queues that somebody waits for.
#: - version: of all this.
KEYS = (
    *("jobs", "messages", "results", "errors", "order", "ready", "changing", "kept"),
    *("needs", "previous", "counts", "number", "idle", "version"),
)

#: Of what is stored; to be raised when older programs can't go on with it.
VERSION = 1

#: The fields of a record, by place. `at` is when time changes it: it is due, or expires, its lease
#: ends, or it is forgotten.
FIELDS = (
    *("STATE", "QUEUE", "NUMBER", "KEEP", "ATTEMPT", "CRASHES", "TOKEN", "STARTED"),
    *("FINISHED", "DUE", "EXPIRES", "AT", "BLOCKED", "CANCELLED", "AWAITED", "JOIN", "NEEDS"),
    *("NEEDED", "RESULT", "ERROR"),
)

#: Begins what has to go on though memory is short, as it is what makes room: once a script has
#: written anything, the server lets it write on.
AT_ANY_COST = "call('ZREM', KEYS.changing, '')\n"

#: Makes up for what time has done, or a part of it.
ADVANCE = "advance(100)\n"


class Script:
    """A script, and how it is called by its digest."""

    def __init__(self, *parts: str) -> None:
        text = "".join((RECORDS, COMMON, *parts))
        text = re.sub(r"\bKEYS\.(\w+)", lambda name: f"KEYS[{KEYS.index(name[1]) + 1}]", text)
        text = re.sub(r"\[([A-Z]+)\]", lambda name: f"[{FIELDS.index(name[1]) + 1}]", text)
        self.text = text.encode()
        self.digest = sha1(self.text, usedforsecurity=False).hexdigest().encode()


def pack(values: Sequence[bytes]) -> bytes:
    """Return values as they are sent to the server."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(value), value) for value in values])


def encoded(*values: object) -> list[bytes]:
    """Return values as texts that scripts and commands take."""
    return [str(value).encode() for value in values]


def command(*values: bytes) -> bytes:
    return b"*%d\r\n%b" % (len(values), pack(values))


class Caller:
    """Makes calls of scripts for the keys of one prefix."""

    def __init__(self, prefix: str, channel: str) -> None:
        keys = [f"{{{prefix}}}:{name}".encode() for name in KEYS]
        self._keys = pack([str(len(KEYS)).encode(), *keys, channel.encode()])
        self._count = len(KEYS) + 4
        #: Asks for all counts.
        self.counts = command(b"HGETALL", f"{{{prefix}}}:counts".encode())

    def by_digest(self, script: Script, values: Sequence[bytes]) -> bytes:
        return self._call(pack([b"EVALSHA", script.digest]), values)

    def by_text(self, script: Script, values: Sequence[bytes]) -> bytes:
        return self._call(pack([b"EVAL", script.text]), values)

    def _call(self, start: bytes, values: Sequence[bytes]) -> bytes:
        count = b"*%d\r\n" % (self._count + len(values))
        return b"".join((count, start, self._keys, pack(values)))
