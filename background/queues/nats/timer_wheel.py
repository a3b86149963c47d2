"""A timer wheel in a stream, shared by all brokers of one prefix.

A timer says when a job's record must be checked: when the job is due or expires, when a lease ends,
when the retention has passed, or when a change that a crash has interrupted must be completed. It
never says what to do, because the record does.

The slot `{prefix}.timers.{width}.{number}` has the timers of `width` seconds. A process takes the
timers in a message by deleting it, after it has stored covers: copies that are due a little later,
for another process if this one crashes. docs/design/nats.md explains both.
"""

from __future__ import annotations

import json
import logging
import re
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any, NamedTuple

from ..._support.log import log
from .._names import is_name
from .._unreadable import DECODING_ERRORS
from .clock import ServerClock
from .jetstream import JetStream
from .layout import ALL_JOBS, ALL_JOBS_AGAIN, Layout
from .requests import Request

#: Seconds until another process completes an interrupted change, and the minimum of that for short
#: leases. If it were shorter, two processes would often do the same work.
COVER, _MIN_COVER = 2.0, 0.25

#: Timers that are less than this many seconds away are stored in slots of this width.
_WIDTHS = ((120, 1), (7_200, 60), (172_800, 3_600), (inf, 86_400))
_FRESH = 0.2  # seconds for which the wheel is not read again if no known timer is due
_SLOT = re.compile(r".*\.timers\.[1-9]\d{0,6}\.\d{1,11}", re.ASCII)  # other subjects are ignored
END_OF_TIME = 1e11  #: later timers are stored, but never read
_CHUNK = 500  # timers in one message; also messages of a slot that are read ahead
_AT_A_TIME = 1_000  # timers after which no more messages are taken at once


class JobTimer(NamedTuple):
    """A time at which a job must be checked.

    Args:
        at: The time, in seconds since the epoch, on the server's clock.
        id: The job's id, `ALL_JOBS` or `ALL_JOBS_AGAIN`.
        revision: If not 0, the record is deleted instead, if this is still its revision.
        cover: Seconds until another process takes the timer if the one that took it crashes.
    """

    at: float
    id: str
    revision: int = 0
    cover: float = COVER


class Taken(NamedTuple):
    """Timers that this process must process, and the sequences of their covers."""

    timers: list[JobTimer]
    covers: set[int]


def of_lease(at: float, id: str, now: float) -> JobTimer:
    """Return a timer for the end of a lease."""
    return JobTimer(at, id, cover=max(_MIN_COVER, min(COVER, at - now)))


#: A subject, and the timers in a message on it.
_Part = tuple[str, list[JobTimer]]


class TimerWheel:
    """The timers of one prefix.

    Args:
        api: JetStream.
        layout: The names of the stream and its subjects.
        clock: The server's clock.

    Attributes:
        next: The time before which this process knows no timer to be due.
    """

    def __init__(self, api: JetStream, layout: Layout, clock: ServerClock) -> None:
        self._api = api
        self._layout = layout
        self._clock = clock
        self._seen: dict[str, dict[int, list[JobTimer]]] = {}  # by subject and sequence
        self._seen_at = -inf
        self.next = -inf

    def reset(self) -> None:
        """Drop what was read from the server."""
        self._seen, self._seen_at, self.next = {}, -inf, -inf

    async def add(self, timers: Iterable[JobTimer]) -> dict[str, int]:
        """Store timers; return by job the sequence of the message that has its timer."""
        parts = self._parts(timers, self._clock.now())
        sequences = await self._publish(parts)
        return {
            timer.id: sequence
            for sequence, (_, part) in zip(sequences, parts, strict=True)
            for timer in part
        }

    def _parts(self, timers: Iterable[JobTimer], now: float) -> list[_Part]:
        """Group timers into messages."""
        by_slot: defaultdict[str, list[JobTimer]] = defaultdict(list)
        for timer in timers:
            by_slot[self._slot(timer.at, now)].append(timer)
            self.next = min(self.next, timer.at)
        return [
            (slot, in_slot[start : start + _CHUNK])
            for slot, in_slot in by_slot.items()
            for start in range(0, len(in_slot), _CHUNK)
        ]

    async def _publish(self, parts: Sequence[_Part]) -> list[int]:
        return await self._api.publish_all(
            [Request(slot, json.dumps(part).encode()) for slot, part in parts]
        )

    def remove(self, sequences: Iterable[int]) -> None:
        """Delete messages, without waiting; a timer that stays only causes a needless check."""
        for sequence in sequences:
            self._api.post_delete(self._layout.timers, sequence)

    def _slot(self, at: float, now: float) -> str:
        width = next(width for below, width in _WIDTHS if at - now < below)
        return self._layout.timer(width, int(at // width))

    async def take(self) -> Taken | None:
        """Take a batch of the timers that are due, and update `next`.

        Returns:
            The timers, or `None` if no timer is due.
        """
        now = self._clock.now()
        if now < self.next and abs(now - self._seen_at) < _FRESH:  # a clock may be set back
            return None
        stored = await self._api.subjects(self._layout.timers, self._layout.all_timers)
        subjects = [subject for subject in stored if _SLOT.fullmatch(subject)]
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
                # All timers of a wide slot move to narrower ones as soon as it has begun.
                if first <= now or _width(subject) > 1:
                    due.append((subject, sequence, timers))
                else:
                    later = min(later, first)
        self.next = now if due else later
        return await self._take(_batch(due), now) if due else None

    async def _read(self, subject: str) -> None:
        """Read the messages of a slot that were not read before."""
        seen = self._seen[subject]
        sequence = max(seen, default=0)
        while len(seen) < _CHUNK:
            message = await self._api.get_next(self._layout.timers, subject, sequence + 1)
            if message is None:
                return
            sequence = int(message["seq"])
            try:
                seen[sequence] = timers_of(b64decode(message["data"]))
            except DECODING_ERRORS as error:
                await self._set_aside(sequence, message, error)

    async def _set_aside(self, sequence: int, message: dict[str, Any], error: Exception) -> None:
        """Delete a message that another program has stored, and restore missing timers."""
        log(
            logging.ERROR,
            "a message on %s is deleted, because it has no timers: %s: %.200r",
            message.get("subject"),
            error,
            message.get("data"),
        )
        await self.add([JobTimer(self._clock.now(), ALL_JOBS)])
        self._api.post_delete(self._layout.timers, sequence)

    async def _take(self, batch: Sequence[tuple[str, int, list[JobTimer]]], now: float) -> Taken:
        """Take messages: store covers, and the timers that are not due yet, then delete them."""
        due = [[timer for timer in timers if timer.at <= now] for _, _, timers in batch]
        copies = [timer._replace(at=now + timer.cover) for timers in due for timer in timers]
        covers = self._parts(copies, now)
        rest = [
            (index, part)
            for index, (_, _, timers) in enumerate(batch)
            for part in self._parts((timer for timer in timers if timer.at > now), now)
        ]
        stored = await self._publish([*covers, *(part for _, part in rest)])
        sequences = [sequence for _, sequence, _ in batch]
        deleted = await self._api.delete_all(self._layout.timers, sequences)
        for subject, sequence, _ in batch:
            self._seen[subject].pop(sequence, None)
        moved = zip(stored[len(covers) :], rest, strict=True)
        # A message that could not be deleted was taken by another process, which has moved its
        # timers, too.
        self.remove(sequence for sequence, (index, _) in moved if not deleted[index])
        taken = [timer for index, timers in enumerate(due) if deleted[index] for timer in timers]
        return Taken(taken, set(stored[: len(covers)]))


def _batch(
    due: Sequence[tuple[str, int, list[JobTimer]]],
) -> Sequence[tuple[str, int, list[JobTimer]]]:
    """Return the first messages, no more than can be processed long before their covers are due."""
    count = 0
    for index, (_, _, timers) in enumerate(due):
        count += len(timers)
        if count >= _AT_A_TIME:
            return due[: index + 1]
    return due


def _start(subject: str) -> float:
    return float(subject.rpartition(".")[2]) * _width(subject)


def _width(subject: str) -> int:
    return int(subject.split(".")[-2])


def timers_of(message: bytes) -> list[JobTimer]:
    """Return the timers in a message.

    Raises:
        Exception: One of `DECODING_ERRORS`, if it has none, or other values.
    """
    timers = [_timer(*fields) for fields in json.loads(message)]
    if not timers:
        raise ValueError("it is empty")
    return timers


def _timer(at: object, id: object, revision: object = 0, cover: object = COVER) -> JobTimer:
    match at, id, revision, cover:
        case int() | float(), str(), int(), int() | float() if (
            abs(at) < END_OF_TIME
            and (id in (ALL_JOBS, ALL_JOBS_AGAIN) or is_name(id))
            and 0 <= cover <= COVER
        ):
            return JobTimer(at, id, revision, cover)
        case _:
            raise ValueError("it has other values")
