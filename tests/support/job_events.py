"""Events of a job's attempts."""

from __future__ import annotations

from background.testing import RecordingObserver


def events_of_attempts(recorder: RecordingObserver, id: str) -> list[str]:
    """Return the names of the events of a job's attempts.

    "enqueued" is left out: it may be reported after a worker has claimed the job.
    """
    return [name for name in recorder.names(id) if name != "enqueued"]
