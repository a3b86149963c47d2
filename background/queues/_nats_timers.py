"""When to look at which job again: a wheel of timers that all brokers of a server share.

A timer is a message that names jobs and when something may have to be done with each. Those of the
same stretch of time have the same subject, and stretches are the longer the farther they are away,
so that one small answer of the server tells what there is. Whoever finds some that are due takes
them, by deleting the message; a copy that is due a little later covers the case that it dies of it.

A timer never says what to do: that is in the job's record.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any, NamedTuple

from ._nats_answers import Request
from ._nats_api import Api
from ._nats_clock import Clock
from ._nats_layout import Layout

#: Seconds until somebody else does what somebody has begun and not finished.
COVER = 10.0

#: For timers less than so many seconds away, stretches of so many.
_WIDTHS = ((120, 1), (7_200, 60), (172_800, 3_600), (inf, 86_400))
_FRESH = 0.2  # seconds for which what has been seen of others' timers is good enough
_CHUNK = 500  # jobs in one message


class Timer(NamedTuple):
    """When to look at a job. With a revision: to forget the job, if that is still its latest."""

    at: float
    id: str
    revision: int = 0


class Taken(NamedTuple):
    """Timers that somebody has taken who will see to them, and the message that covers that."""

    timers: list[Timer]
    covers: set[int]


class Timers:
    """The timers of a server."""

    def __init__(self, api: Api, layout: Layout, clock: Clock) -> None:
        self._api = api
        self._layout = layout
        self._clock = clock
        self._seen: dict[str, dict[int, list[Timer]]] = {}  # by subject and sequence
        self._seen_at = -inf
        self.next = -inf  # when there may be something to do, as far as is known

    async def add(self, timers: Iterable[Timer]) -> dict[str, int]:
        """Add timers; return of each job the sequence of its message."""
        now = self._clock.now()
        by_slot: defaultdict[str, list[Timer]] = defaultdict(list)
        for timer in timers:
            by_slot[self._slot(timer.at, now)].append(timer)
            self.next = min(self.next, timer.at)
        parts = [
            (slot, some[start : start + _CHUNK])
            for slot, some in by_slot.items()
            for start in range(0, len(some), _CHUNK)
        ]
        sequences = await self._api.publish_all(
            [Request(slot, json.dumps(part).encode()) for slot, part in parts]
        )
        return {
            timer.id: sequence
            for sequence, (_, part) in zip(sequences, parts, strict=True)
            for timer in part
        }

    def remove(self, sequences: Iterable[int]) -> None:
        """Remove messages, soon, or else they will be found to be about nothing."""
        for sequence in sequences:
            self._api.post_delete(self._layout.timers, sequence)

    def _slot(self, at: float, now: float) -> str:
        width = next(width for below, width in _WIDTHS if at - now < below)
        return self._layout.timer(width, int(at // width))

    async def take(self) -> list[Taken] | None:
        """Take some of the timers that are due; `None` if there are none. Keeps `next` right."""
        now = self._clock.now()
        if now < self.next and now - self._seen_at < _FRESH:
            return None
        subjects = await self._api.subjects(self._layout.timers, self._layout.all_timers)
        self._seen_at = now
        self._seen = {subject: self._seen.get(subject, {}) for subject in subjects}
        later = inf
        due: list[tuple[str, int, list[Timer]]] = []
        for subject in sorted(subjects, key=_start):
            if (start := _start(subject)) > now:
                later = min(later, start)
                continue
            await self._read(subject)
            for sequence, timers in self._seen[subject].items():
                first = min(timer.at for timer in timers)
                # What is in a long stretch is moved to shorter ones as soon as that has begun.
                if first <= now or _width(subject) > 1:
                    due.append((subject, sequence, timers))
                else:
                    later = min(later, first)
        self.next = now if due else later
        return await self._take(due[:_CHUNK], now) if due else None

    async def _read(self, subject: str) -> None:
        """Read the messages of a subject that are new here."""
        seen = self._seen[subject]
        sequence = max(seen, default=0)
        while len(seen) < _CHUNK:
            message = await self._api.get_next(self._layout.timers, subject, sequence + 1)
            if message is None:
                return
            sequence = int(message["seq"])
            seen[sequence] = _timers(message)

    async def _take(self, due: Sequence[tuple[str, int, list[Timer]]], now: float) -> list[Taken]:
        taken: list[Taken] = []
        for subject, sequence, timers in due:
            ours = [timer for timer in timers if timer.at <= now]
            rest = [timer for timer in timers if timer.at > now]
            new = set((await self.add(each._replace(at=now + COVER) for each in ours)).values())
            kept = set((await self.add(rest)).values())
            is_ours = await self._api.delete(self._layout.timers, sequence)
            self._seen[subject].pop(sequence, None)
            if not is_ours:
                self.remove(new | kept)  # somebody else has been faster
            elif ours:
                taken.append(Taken(ours, new))
        return taken


def _start(subject: str) -> float:
    return float(subject.rpartition(".")[2]) * _width(subject)


def _width(subject: str) -> int:
    return int(subject.split(".")[-2])


def _timers(message: dict[str, Any]) -> list[Timer]:
    return [Timer(*each) for each in json.loads(b64decode(message["data"]))]
