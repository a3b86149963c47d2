"""When to look at which job again: a wheel of timers that all brokers of a server share.

A timer is a message that names jobs and when something may have to be done with each. Those of the
same stretch of time have the same subject, and stretches are the longer the farther they are away,
so that one small answer of the server tells what there is. Whoever finds some that are due takes
them, by deleting the message; a copy that is due a little later covers the case that it dies of it,
no later than a lease is long: then others would have to wait for longer than they have been told.

A timer never says what to do: that is in the job's record.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any, NamedTuple

from .clock import ServerClock
from .jetstream import JetStream
from .layout import Layout
from .requests import Request

#: Seconds until somebody else does what somebody has begun and not finished, and at the least, as
#: doing it twice at a time is in vain.
COVER, _LEAST_COVER = 2.0, 0.25

#: For timers less than so many seconds away, stretches of so many.
_WIDTHS = ((120, 1), (7_200, 60), (172_800, 3_600), (inf, 86_400))
_FRESH = 0.2  # seconds for which what has been seen of others' timers is good enough
_CHUNK = 500  # jobs in one message
_AT_A_TIME = 1_000  # jobs that are looked at, at least


class JobTimer(NamedTuple):
    """When to look at a job. With a revision: to forget the job, if that is still its latest.

    `cover` is after how many seconds somebody else has to do what who takes it dies of.
    """

    at: float
    id: str
    revision: int = 0
    cover: float = COVER


class Taken(NamedTuple):
    """Timers that somebody has taken who will see to them, and the messages that cover that."""

    timers: list[JobTimer]
    covers: set[int]


def of_lease(at: float, id: str, now: float) -> JobTimer:
    """Return a timer for the end of a lease."""
    return JobTimer(at, id, cover=max(_LEAST_COVER, min(COVER, at - now)))


#: A subject, and the timers in a message to it.
_Part = tuple[str, list[JobTimer]]


class TimerWheel:
    """The timers of a server."""

    def __init__(self, api: JetStream, layout: Layout, clock: ServerClock) -> None:
        self._api = api
        self._layout = layout
        self._clock = clock
        self._seen: dict[str, dict[int, list[JobTimer]]] = {}  # by subject and sequence
        self._seen_at = -inf
        self.next = -inf  # when there may be something to do, as far as is known

    def forget(self) -> None:
        """Rely on nothing that was seen before."""
        self._seen, self._seen_at, self.next = {}, -inf, -inf

    async def add(self, timers: Iterable[JobTimer]) -> dict[str, int]:
        """Add timers; return of each job the sequence of its message."""
        parts = self._parts(timers, self._clock.now())
        sequences = await self._publish(parts)
        return {
            timer.id: sequence
            for sequence, (_, part) in zip(sequences, parts, strict=True)
            for timer in part
        }

    def _parts(self, timers: Iterable[JobTimer], now: float) -> list[_Part]:
        """Return timers as they go into messages, with the subject of each."""
        by_slot: defaultdict[str, list[JobTimer]] = defaultdict(list)
        for timer in timers:
            by_slot[self._slot(timer.at, now)].append(timer)
            self.next = min(self.next, timer.at)
        return [
            (slot, some[start : start + _CHUNK])
            for slot, some in by_slot.items()
            for start in range(0, len(some), _CHUNK)
        ]

    async def _publish(self, parts: Sequence[_Part]) -> list[int]:
        return await self._api.publish_all(
            [Request(slot, json.dumps(part).encode()) for slot, part in parts]
        )

    def remove(self, sequences: Iterable[int]) -> None:
        """Remove messages, soon, or else they will be found to be about nothing."""
        for sequence in sequences:
            self._api.post_delete(self._layout.timers, sequence)

    def _slot(self, at: float, now: float) -> str:
        width = next(width for below, width in _WIDTHS if at - now < below)
        return self._layout.timer(width, int(at // width))

    async def take(self) -> Taken | None:
        """Take some of the timers that are due; `None` if there are none. Keeps `next` right."""
        now = self._clock.now()
        if now < self.next and abs(now - self._seen_at) < _FRESH:  # a clock may be set back
            return None
        subjects = await self._api.subjects(self._layout.timers, self._layout.all_timers)
        self._seen_at = now
        self._seen = {subject: self._seen.get(subject, {}) for subject in subjects}
        later = inf
        due: list[tuple[str, int, list[JobTimer]]] = []
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
        return await self._take(_some(due), now) if due else None

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

    async def _take(self, due: Sequence[tuple[str, int, list[JobTimer]]], now: float) -> Taken:
        ours = [[timer for timer in timers if timer.at <= now] for _, _, timers in due]
        covering = [each._replace(at=now + each.cover) for some in ours for each in some]
        covers = self._parts(covering, now)
        rest = [
            (place, part)
            for place, (_, _, timers) in enumerate(due)
            for part in self._parts((timer for timer in timers if timer.at > now), now)
        ]
        new = await self._publish([*covers, *(part for _, part in rest)])
        sequences = [sequence for _, sequence, _ in due]
        deleted = await self._api.delete_all(self._layout.timers, sequences)
        for subject, sequence, _ in due:
            self._seen[subject].pop(sequence, None)
        kept = zip(new[len(covers) :], rest, strict=True)
        # Of those that are not deleted here, somebody else has been faster.
        self.remove(sequence for sequence, (place, _) in kept if not deleted[place])
        taken = [each for place, some in enumerate(ours) if deleted[place] for each in some]
        return Taken(taken, set(new[: len(covers)]))


def _some(
    due: Sequence[tuple[str, int, list[JobTimer]]],
) -> Sequence[tuple[str, int, list[JobTimer]]]:
    """Return as many as one can see to at a time, long before those are who cover it."""
    jobs = 0
    for place, (_, _, timers) in enumerate(due):
        jobs += len(timers)
        if jobs >= _AT_A_TIME:
            return due[: place + 1]
    return due


def _start(subject: str) -> float:
    return float(subject.rpartition(".")[2]) * _width(subject)


def _width(subject: str) -> int:
    return int(subject.split(".")[-2])


def _timers(message: dict[str, Any]) -> list[JobTimer]:
    return [JobTimer(*each) for each in json.loads(b64decode(message["data"]))]
