"""The retry policies of jobs."""

from __future__ import annotations

from functools import lru_cache
from random import uniform

from tenacity import AsyncRetrying, RetryCallState, stop_after_attempt
from tenacity.wait import wait_base, wait_exponential

from ..._retry import Retry, make_policy

_JITTER = 0.2


class JobWait(wait_base):
    """The waits of a job whose policy is a number of attempts: 5 s to an hour, each ± 20 %.

    They are longer than those of tasks, because a waiting job occupies no process, and because five
    attempts should outlast a deploy, or the restart of a database.
    """

    def __init__(self) -> None:
        self._exponential = wait_exponential(multiplier=5, exp_base=4, max=3600)

    def __call__(self, retry_state: RetryCallState) -> float:
        return self._exponential(retry_state) * uniform(1 - _JITTER, 1 + _JITTER)


@lru_cache
def _policy_of(attempts: int) -> AsyncRetrying:
    return AsyncRetrying(stop=stop_after_attempt(attempts), wait=JobWait())


def job_policy(retry: Retry) -> AsyncRetrying | None:
    """Return the policy that the checked `retry` of a job, a handler or a manager stands for."""
    if retry is None:  # as for most jobs
        return None
    return _policy_of(retry) if isinstance(retry, int) else make_policy(retry)
