"""The errors of durable jobs."""

from __future__ import annotations

import copy
import pickle

import pytest

from background import BackgroundError
from background.queues import JobCancelledError, JobExpiredError, JobFailedError, QueueError

MESSAGES = {
    JobFailedError("7", "ValueError", "broken", "Traceback…"): "job 7 failed: ValueError: broken",
    JobFailedError("7", "KeyboardInterrupt", ""): "job 7 failed: KeyboardInterrupt",
    JobCancelledError("7"): "job 7 was cancelled",
    JobExpiredError("7"): "job 7 expired before it could start",
}


@pytest.mark.parametrize(("error", "message"), MESSAGES.items(), ids=str)
def test_job_errors(error: QueueError, message: str) -> None:
    """Errors of jobs keep their message and attributes when they are copied or pickled."""
    assert str(error) == message
    assert isinstance(error, BackgroundError)
    for copied in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert str(copied) == message
        assert vars(copied) == vars(error)
