"""What observers are told of a job's attempts."""

from __future__ import annotations

from background.testing import RecordingObserver


def told_of(recorder: RecordingObserver, id: str) -> list[str]:
    """Return the names of the events of a job's attempts.

    That it was enqueued may be told when a worker has it already.
    """
    return [name for name in recorder.names(id) if name != "enqueued"]
