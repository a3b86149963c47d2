"""The errors of durable jobs."""

from __future__ import annotations

import copy
import pickle

import pytest

from background import BackgroundError
from background.queues import JobCancelledError, JobExpiredError, JobFailedError, QueueError

TEXTS = {
    JobFailedError("7", "ValueError", "broken", "Traceback…"): "job 7 failed: ValueError: broken",
    JobFailedError("7", "KeyboardInterrupt", ""): "job 7 failed: KeyboardInterrupt",
    JobCancelledError("7"): "job 7 was cancelled",
    JobExpiredError("7"): "job 7 expired before it could start",
}


@pytest.mark.parametrize(("error", "text"), TEXTS.items(), ids=str)
def test_errors_that_tell_of_a_job(error: QueueError, text: str) -> None:
    assert str(error) == text
    assert isinstance(error, BackgroundError)
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert str(again) == text
        assert vars(again) == vars(error)
