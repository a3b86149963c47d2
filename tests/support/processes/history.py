"""A history of jobs, written by many processes into one file, and what has to be true of it.

Each entry is a line that is written at once, so what a process noted before it was killed is there.
Times are those of the monotonic clock, which all processes of a host share.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

PATIENCE = 30.0  # seconds until a test that waits for entries fails


@dataclass(frozen=True)
class Entry:
    """What happened to a job: who noted it, and in which attempt.

    `what` is "acknowledged" by the broker to who enqueued it, "started" and "returned" for the two
    ends of its function, and then what its worker's observers are told: "succeeded", "retrying",
    "failed", or "cancelled" for the reason in `detail`. Of a worker itself it is "logged"; and
    "paused" when its process stood still for the seconds in `detail`, as where a machine is busy.
    """

    time: float
    who: str
    what: str
    job: str = ""
    attempt: int = 0
    detail: str = ""


@dataclass(frozen=True)
class Fault:
    """What was done to a worker, or to all ("*"), and between which times.

    - `counts`: whether attempts that it ended are counted.
    """

    who: str
    what: str
    since: float
    until: float
    counts: bool = True


class Notes:
    """One process's way to add to the history."""

    def __init__(self, path: Path, who: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._who = who

    def add(self, what: str, job: str = "", attempt: int = 0, detail: str = "") -> None:
        line = json.dumps([time.monotonic(), self._who, what, job, attempt, detail])
        os.write(self._file, f"{line}\n".encode())

    def close(self) -> None:
        os.close(self._file)


class Log:
    """The history as it is being written, with the faults that a test injects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[Fault] = []
        self._notes = Notes(path, "test")
        self._entries: list[Entry] = []
        self._offset = 0  # of what has not been read yet

    def acknowledged(self, jobs: Sequence[str]) -> None:
        for job in jobs:
            self._notes.add("acknowledged", job)

    @contextmanager
    def fault(self, who: str, what: str, *, counts: bool = True) -> Iterator[None]:
        """Note that something is done to a worker while the block lasts."""
        since = time.monotonic()
        try:
            yield
        finally:
            self.faults.append(Fault(who, what, since, time.monotonic(), counts))

    def entries(self) -> list[Entry]:
        """Return what has been noted so far."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if line.endswith(b"\n"):
                    self._offset += len(line)
                    self._entries.append(Entry(*json.loads(line)))
        return self._entries

    def wait_for(self, condition: Callable[[list[Entry]], Any]) -> Any:
        """Read on until a condition is met, and return what it returns."""
        deadline = time.monotonic() + PATIENCE
        while not (met := condition(self.entries())):
            if time.monotonic() > deadline:
                told = "\n".join(map(str, self.entries()[-30:]))
                raise AssertionError(f"what was waited for did not happen; at last:\n{told}")
            time.sleep(0.005)
        return met

    def wait_for_entries(self, count: int = 1, **wanted: Any) -> list[Entry]:
        """Wait until there are so many entries with these values."""

        def found(entries: list[Entry]) -> list[Entry]:
            chosen = [
                each
                for each in entries
                if all(getattr(each, name) == value for name, value in wanted.items())
            ]
            return chosen if len(chosen) >= count else []

        chosen: list[Entry] = self.wait_for(found)
        return chosen

    def close(self) -> None:
        self._notes.close()


@dataclass(frozen=True)
class End:
    """How the broker says that a job has ended."""

    state: str
    attempt: int


def _pauses(entries: Sequence[Entry]) -> Iterator[Fault]:
    for each in entries:
        if each.what == "paused":
            yield Fault(each.who, "paused", each.time - float(each.detail), each.time)


class History:
    """A history that is over.

    - `ends`: the jobs that the broker knows.
    - `slack`: seconds after a fault in which it may still show.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        faults: Sequence[Fault],
        ends: Mapping[str, End],
        *,
        slack: float = 1.0,
    ) -> None:
        self._faults = [*faults, *_pauses(entries)]
        self._ends = ends
        self._slack = slack
        self._by_job: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            if entry.job:
                self._by_job[entry.job].append(entry)
        self.acknowledged = self._jobs("acknowledged")
        self.lost = sorted(job for job in self.acknowledged if not self._of(job, "started"))
        self.takeovers: list[float] = []  # seconds from faults to the next attempts
        self.duplicates = 0  # runs of a job beyond its first, retries not included
        self.refused = 0  # runs whose settlement came too late, or which were cancelled for that
        self.late_accepted: list[str] = []  # settled by a worker that had lost the lease
        self.problems: list[str] = []
        for job in sorted(self._by_job):
            self._check(job)

    def _jobs(self, what: str) -> list[str]:
        return sorted(job for job in self._by_job if self._of(job, what))

    def _of(self, job: str, what: str) -> list[Entry]:
        return [each for each in self._by_job[job] if each.what == what]

    def _check(self, job: str) -> None:
        starts = sorted(self._of(job, "started"), key=lambda each: (each.attempt, each.time))
        retried = {each.attempt for each in self._of(job, "retrying")}
        for earlier, later in pairwise(starts):
            if earlier.attempt not in retried:
                self._check_takeover(job, earlier, later)
        self.refused += sum("lease" in each.detail for each in self._of(job, "cancelled"))
        self._check_end(job, starts)

    def _check_takeover(self, job: str, earlier: Entry, later: Entry) -> None:
        self.duplicates += 1
        fault = self._explanation(earlier, later)
        if fault is None:
            self.problems.append(f"{job}: attempt {later} follows {earlier} without a cause")
            return
        if later.attempt == earlier.attempt and fault.counts:
            self.problems.append(f"{job}: attempt {earlier.attempt} was counted once, ran twice")
        if fault.what != "paused":
            self.takeovers.append(max(0.0, later.time - fault.since))

    def _explanation(self, earlier: Entry, later: Entry) -> Fault | None:
        """Return the latest fault that can be why an attempt was not the last."""
        faults = [
            each
            for each in self._faults
            if each.who in (earlier.who, "*")
            and each.since <= max(earlier.time, later.time)
            and each.until + self._slack >= earlier.time
        ]
        return max(faults, key=lambda each: (each.what != "paused", each.since), default=None)

    def _check_end(self, job: str, starts: Sequence[Entry]) -> None:
        end = self._ends.get(job)
        told = self._of(job, "succeeded")
        latest = max((each.attempt for each in starts), default=0)
        if len(told) > 1:
            self.problems.append(f"{job}: {len(told)} settlements were accepted")
        for each in told:
            if each.attempt < latest:
                self.late_accepted.append(job)
                self.problems.append(f"{job}: {each} was accepted after attempt {latest} began")
        if end is None or end.state not in ("succeeded", "dead", "cancelled", "expired"):
            self.problems.append(f"{job}: is stuck as {end}")
        elif end.state == "succeeded":
            if not any(each.attempt == end.attempt for each in self._of(job, "returned")):
                self.problems.append(f"{job}: {end} was never run to its end")
            if latest > end.attempt:
                self.problems.append(f"{job}: attempt {latest} began, but {end} is the last")

    @property
    def unstarted(self) -> int:
        """Attempts that were counted and never began, as their worker was lost before."""
        return sum(
            max(0, end.attempt - len({each.attempt for each in self._of(job, "started")}))
            for job, end in self._ends.items()
        )

    def takeover(self, part: float) -> float:
        """Return the time within which such a part of all takeovers was done."""
        ordered = sorted(self.takeovers)
        return ordered[ceil(part * len(ordered)) - 1] if ordered else 0.0

    def check(self) -> None:
        """Raise `AssertionError` for what should never be."""
        assert not self.lost, f"acknowledged and never run: {self.lost}"
        assert not self.problems, "\n".join(self.problems)
