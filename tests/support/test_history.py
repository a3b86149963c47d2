"""Checks of job histories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from support.processes.history import End, Entry, Fault, History, Log, Notes

ACKNOWLEDGED = Entry(0.0, "test", "acknowledged", "j")
RUN = [
    ACKNOWLEDGED,
    Entry(1.0, "a", "started", "j", 1),
    Entry(2.0, "a", "returned", "j", 1),
    Entry(2.1, "a", "succeeded", "j", 1),
]
TAKEN_OVER = [
    ACKNOWLEDGED,
    Entry(1.0, "a", "started", "j", 1),
    Entry(4.0, "b", "started", "j", 2),
    Entry(5.0, "b", "returned", "j", 2),
    Entry(5.1, "b", "succeeded", "j", 2),
]
KILLED = Fault("a", "killed", 1.5, 1.6)
SUCCEEDED = {"j": End("succeeded", 1)}
SUCCEEDED_LATER = {"j": End("succeeded", 2)}


def test_single_run() -> None:
    """A job that runs once has no duplicates."""
    history = History(RUN, [], SUCCEEDED)
    history.check()
    assert (history.acknowledged, history.duplicates, history.unstarted) == (["j"], 0, 0)


def test_takeover() -> None:
    """A killed worker explains the next attempt, whose delay is measured."""
    history = History(TAKEN_OVER, [KILLED], SUCCEEDED_LATER)
    history.check()
    assert history.duplicates == 1
    assert history.takeover(0.99) == 2.5


def test_release() -> None:
    """A released attempt is not counted, and only some faults allow that."""
    entries = [Entry(*(*vars(entry).values(),)[:4], 1) for entry in TAKEN_OVER]
    released = Fault("a", "shut down", 1.5, 3.0, counts=False)
    History(entries, [released], SUCCEEDED).check()
    with pytest.raises(AssertionError, match="was counted once, ran twice"):
        History(entries, [KILLED], SUCCEEDED).check()


def test_retry() -> None:
    """A retry is no duplicate."""
    entries = [*TAKEN_OVER, Entry(2.0, "a", "retrying", "j", 1)]
    history = History(entries, [], SUCCEEDED_LATER)
    history.check()
    assert history.duplicates == 0


def test_paused_process() -> None:
    """A pause explains the next attempt, and is not counted as a takeover."""
    entries = [*TAKEN_OVER, Entry(6.0, "a", "paused", detail="4.5")]
    history = History(entries, [], SUCCEEDED_LATER)
    history.check()
    assert history.takeovers == []


def test_unstarted_attempts() -> None:
    """Attempts that were counted and never began are reported."""
    history = History(TAKEN_OVER, [KILLED], {"j": End("succeeded", 5)})
    assert history.unstarted == 3


@pytest.mark.parametrize(
    ("entries", "faults", "end", "problem"),
    [
        ([ACKNOWLEDGED], [], End("succeeded", 1), "acknowledged and never run"),
        (TAKEN_OVER, [], End("succeeded", 2), "without a cause"),
        (TAKEN_OVER, [Fault("b", "killed", 1.5, 1.6)], End("succeeded", 2), "without a cause"),
        (TAKEN_OVER, [Fault("a", "killed", 4.5, 4.6)], End("succeeded", 2), "without a cause"),
        (TAKEN_OVER, [Fault("a", "cut", -1.0, -0.5)], End("succeeded", 2), "without a cause"),
        (RUN, [], End("running", 1), "is stuck"),
        (RUN, [], None, "is stuck"),
        (RUN[:2], [], End("succeeded", 1), "never run to its end"),
        ([*RUN, RUN[-1]], [], End("succeeded", 1), "2 settlements were accepted"),
        (
            [*TAKEN_OVER, Entry(6.0, "a", "succeeded", "j", 1)],
            [KILLED],
            End("succeeded", 2),
            "accepted after attempt 2 began",
        ),
        (TAKEN_OVER[:3] + RUN[2:], [KILLED], End("succeeded", 1), "attempt 2 began"),
    ],
)
def test_violations(
    entries: Sequence[Entry], faults: Sequence[Fault], end: End | None, problem: str
) -> None:
    """Each violated invariant is reported."""
    history = History(entries, faults, {} if end is None else {"j": end})
    with pytest.raises(AssertionError, match=problem):
        history.check()


def test_log(tmp_path: Path) -> None:
    """Entries and faults can be written, read and waited for."""
    log = Log(tmp_path / "history")
    with log.fault("a", "killed"):
        log.acknowledged(["j", "k"])
    notes = Notes(log.path, "a")
    notes.add("started", "j", 3, "…")
    notes.close()
    (started,) = log.wait_for_entries(process="a", event="started")
    assert (started.job, started.attempt, started.detail) == ("j", 3, "…")
    assert [entry.job for entry in log.entries()] == ["j", "k", "j"]
    (fault,) = log.faults
    assert fault.since <= log.entries()[0].time <= fault.until <= started.time
    log.close()
