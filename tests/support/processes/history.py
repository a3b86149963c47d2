"""A history of jobs that many processes write to one file, and its invariants.

Each entry is one line in a single write, so entries written before a kill are not lost. Times are
those of the monotonic clock, which all processes of a host share.
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
    """An event of a job or of a worker.

    Args:
        time: When the process wrote the entry.
        process: The name of the process.
        event: For jobs: "acknowledged" when the broker has stored the job, "started" and
            "returned" at the start and end of its function, and then the name of an observer
            event: "succeeded", "retrying", "failed", or "cancelled". For workers: "ready",
            "shutdown requested", "logged", "memory", "crashed", and "paused" when the process was
            stopped for the seconds in `detail`, for instance on a busy machine.
        job: The job's id.
        attempt: The job's attempt.
        detail: A reason, an error or a log message.
    """

    time: float
    process: str
    event: str
    job: str = ""
    attempt: int = 0
    detail: str = ""


@dataclass(frozen=True)
class Fault:
    """A fault that was injected into a worker, or into all of them ("*").

    Args:
        process: The name of the worker.
        kind: The kind of fault.
        since: When it began.
        until: When it ended.
        counts: Whether attempts that it interrupted are counted.
    """

    process: str
    kind: str
    since: float
    until: float
    counts: bool = True


class Notes:
    """Writes the entries of one process."""

    def __init__(self, path: Path, process: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._process = process

    def add(self, event: str, job: str = "", attempt: int = 0, detail: str = "") -> None:
        line = json.dumps([time.monotonic(), self._process, event, job, attempt, detail])
        os.write(self._file, f"{line}\n".encode())

    def close(self) -> None:
        os.close(self._file)


class Log:
    """A history that is still being written, with the faults that a test injects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[Fault] = []
        self._notes = Notes(path, "test")
        self._entries: list[Entry] = []
        self._offset = 0  # of the first unread byte

    def acknowledged(self, jobs: Sequence[str]) -> None:
        for job in jobs:
            self._notes.add("acknowledged", job)

    @contextmanager
    def fault(self, process: str, kind: str, *, counts: bool = True) -> Iterator[None]:
        """Record a fault of a worker that lasts as long as the block."""
        since = time.monotonic()
        try:
            yield
        finally:
            self.faults.append(Fault(process, kind, since, time.monotonic(), counts))

    def entries(self) -> list[Entry]:
        """Return the entries written so far."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if line.endswith(b"\n"):
                    self._offset += len(line)
                    self._entries.append(Entry(*json.loads(line)))
        return self._entries

    def wait_for(self, condition: Callable[[list[Entry]], Any]) -> Any:
        """Read entries until the condition returns a true value, and return that value."""
        deadline = time.monotonic() + PATIENCE
        while not (value := condition(self.entries())):
            if time.monotonic() > deadline:
                latest = "\n".join(map(str, self.entries()[-30:]))
                raise AssertionError(f"timed out; the latest entries:\n{latest}")
            time.sleep(0.005)
        return value

    def wait_for_entries(self, count: int = 1, **wanted: Any) -> list[Entry]:
        """Wait for `count` entries with these values, and return all that match."""

        def find(entries: list[Entry]) -> list[Entry]:
            matching = [
                entry
                for entry in entries
                if all(getattr(entry, name) == value for name, value in wanted.items())
            ]
            return matching if len(matching) >= count else []

        matching: list[Entry] = self.wait_for(find)
        return matching

    def close(self) -> None:
        self._notes.close()


@dataclass(frozen=True)
class End:
    """A job's state and attempt in the broker."""

    state: str
    attempt: int


def _pauses(entries: Sequence[Entry]) -> Iterator[Fault]:
    for entry in entries:
        if entry.event == "paused":
            yield Fault(entry.process, "paused", entry.time - float(entry.detail), entry.time)


class History:
    """A complete history.

    Args:
        entries: All entries.
        faults: The faults that were injected.
        ends: The jobs in the broker, by id.
        slack: Seconds after a fault in which it may still have effects.
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
        self.takeovers: list[float] = []  # seconds from a fault to the next attempt
        self.duplicates = 0  # repeated runs of a job, without retries
        self.refused = 0  # runs cancelled or refused a settlement because the lease was lost
        self.late_accepted: list[str] = []  # jobs settled by a worker that had lost the lease
        self.problems: list[str] = []
        for job in sorted(self._by_job):
            self._check(job)

    def _jobs(self, event: str) -> list[str]:
        return sorted(job for job in self._by_job if self._of(job, event))

    def _of(self, job: str, event: str) -> list[Entry]:
        return [entry for entry in self._by_job[job] if entry.event == event]

    def _check(self, job: str) -> None:
        starts = sorted(self._of(job, "started"), key=lambda entry: (entry.attempt, entry.time))
        retried = {entry.attempt for entry in self._of(job, "retrying")}
        for earlier, later in pairwise(starts):
            if earlier.attempt not in retried:
                self._check_takeover(job, earlier, later)
        self.refused += sum("lease" in entry.detail for entry in self._of(job, "cancelled"))
        self._check_end(job, starts)

    def _check_takeover(self, job: str, earlier: Entry, later: Entry) -> None:
        self.duplicates += 1
        fault = self._explanation(earlier, later)
        if fault is None:
            self.problems.append(f"{job}: attempt {later} follows {earlier} without a cause")
            return
        if later.attempt == earlier.attempt and fault.counts:
            self.problems.append(f"{job}: attempt {earlier.attempt} was counted once, ran twice")
        if fault.kind != "paused":
            self.takeovers.append(max(0.0, later.time - fault.since))

    def _explanation(self, earlier: Entry, later: Entry) -> Fault | None:
        """Return the latest fault that may have interrupted the earlier attempt."""
        faults = [
            fault
            for fault in self._faults
            if fault.process in (earlier.process, "*")
            and fault.since <= max(earlier.time, later.time)
            and fault.until + self._slack >= earlier.time
        ]
        return max(faults, key=lambda fault: (fault.kind != "paused", fault.since), default=None)

    def _check_end(self, job: str, starts: Sequence[Entry]) -> None:
        end = self._ends.get(job)
        settlements = self._of(job, "succeeded")
        latest = max((entry.attempt for entry in starts), default=0)
        if len(settlements) > 1:
            self.problems.append(f"{job}: {len(settlements)} settlements were accepted")
        for entry in settlements:
            if entry.attempt < latest:
                self.late_accepted.append(job)
                self.problems.append(f"{job}: {entry} was accepted after attempt {latest} began")
        if end is None or end.state not in ("succeeded", "dead", "cancelled", "expired"):
            self.problems.append(f"{job}: is stuck as {end}")
        elif end.state == "succeeded":
            if not any(entry.attempt == end.attempt for entry in self._of(job, "returned")):
                self.problems.append(f"{job}: {end} was never run to its end")
            if latest > end.attempt:
                self.problems.append(f"{job}: attempt {latest} began, but {end} is the last")

    @property
    def unstarted(self) -> int:
        """Number of counted attempts that never began because their worker was lost."""
        return sum(
            max(0, end.attempt - len({entry.attempt for entry in self._of(job, "started")}))
            for job, end in self._ends.items()
        )

    def takeover(self, fraction: float) -> float:
        """Return the seconds within which this fraction of the takeovers happened."""
        ordered = sorted(self.takeovers)
        return ordered[ceil(fraction * len(ordered)) - 1] if ordered else 0.0

    def check(self) -> None:
        """Raise `AssertionError` if an invariant is violated."""
        assert not self.lost, f"acknowledged and never run: {self.lost}"
        assert not self.problems, "\n".join(self.problems)
