"""A narrow adapter to tenacity: its strategies, driven by this library's own loop.

tenacity's loop keeps statistics in the policy, hands cancellation to predicates and costs much on
a first success. Here a policy is only read, so any number of tasks may share one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from inspect import isawaitable
from typing import Any

import anyio
from anyio.lowlevel import checkpoint
from tenacity import (
    AsyncRetrying,
    RetryAction,
    RetryCallState,
    RetryError,
    TryAgain,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)
from tenacity.before import before_nothing
from tenacity.wait import wait_base

from ._errors import InvalidTaskError

Retry = AsyncRetrying | int | None

_TENACITYS_OWN_SLEEP = AsyncRetrying().sleep


@lru_cache
def _policy_of(attempts: int) -> AsyncRetrying:
    wait = wait_random_exponential(multiplier=0.2, min=0.1, max=30)
    return AsyncRetrying(stop=stop_after_attempt(attempts), wait=wait)


def make_policy(retry: Retry) -> AsyncRetrying | None:
    """Return the policy that `retry` stands for; `None` means a single attempt.

    Raises `InvalidTaskError` for anything but an `AsyncRetrying`, a whole number of attempts or `None`.
    """
    if isinstance(retry, AsyncRetrying):
        return retry if retry.enabled else None
    if retry is None:
        return None
    if isinstance(retry, bool) or not isinstance(retry, int) or retry < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidTaskError(
            "retry must be a tenacity.AsyncRetrying, a number of attempts of at least 1, or None, "
            f"not {retry!r}"
        )
    return _policy_of(retry)


def pause_after_failures(wait: wait_base, failures: int, error: BaseException) -> float:
    """Return the seconds that `wait` asks for after so many failures in a row."""
    state = RetryCallState(AsyncRetrying(wait=wait), None, (), {})
    state.attempt_number = failures
    state.set_exception((type(error), error, error.__traceback__))
    return float(wait(state))


def judges_success(policy: AsyncRetrying) -> bool:
    """Tell whether the policy wants to hear of attempts that do not fail."""
    fails_only = (
        isinstance(policy.retry, retry_if_exception)
        and type(policy.retry).__call__ is retry_if_exception.__call__
    )
    return not fails_only or policy.before is not before_nothing


class Attempts:
    """The attempts of one call under one policy, in the order that tenacity documents."""

    __slots__ = ("_accepted", "_clock", "_error", "_policy", "_state")

    def __init__(
        self,
        policy: AsyncRetrying,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        started: float,
        clock: Callable[[], float],
        number: int = 1,
    ) -> None:
        self._policy = policy
        self._state = RetryCallState(policy, fn, args, dict(kwargs))
        self._state.start_time = started
        self._state.attempt_number = number
        self._clock = clock
        self._accepted = False
        self._error: Exception | None = None

    @property
    def outcome(self) -> Any:
        """What tenacity calls the outcome of the latest attempt."""
        return self._state.outcome

    async def before(self) -> None:
        """Call the policy's `before` hook."""
        await _call(self._policy.before, self._state)

    async def failed(self, error: Exception) -> float | None:
        """Return the seconds until the next attempt, or `None` if there is to be none."""
        self._error = error
        self._state.set_exception((type(error), error, error.__traceback__))
        return await self._judge(always=isinstance(error, TryAgain))

    async def returned(self, value: Any) -> float | None:
        """As `failed`, for an attempt that returned `value`, which the policy may refuse."""
        self._error = None
        self._state.set_result(value)
        return await self._judge(always=False)

    async def _judge(self, *, always: bool) -> float | None:
        policy, state = self._policy, self._state
        state.outcome_timestamp = self._clock()
        if not always and not await _call(policy.retry, state):
            self._accepted = True
            return None
        await _call(policy.after, state)
        state.upcoming_sleep = max(0.0, float(await _call(policy.wait, state)))
        if await _call(policy.stop, state):
            return None
        state.next_action = RetryAction(state.upcoming_sleep)
        state.idle_for += state.upcoming_sleep
        await _call(policy.before_sleep, state)
        return state.upcoming_sleep

    async def pause(self, delay: float) -> None:
        """Sleep before the next attempt, the policy's own way if it has one."""
        if self._policy.sleep is _TENACITYS_OWN_SLEEP:
            await anyio.sleep(delay)
        else:
            await _call(self._policy.sleep, delay)
            await checkpoint()  # it may not have waited at all

    def again(self) -> None:
        """Go on to the next attempt."""
        self._state.prepare_for_next_attempt()

    async def conclude(self) -> Any:
        """Return or raise what the last attempt comes to.

        An attempt's own error is raised as it is, so `reraise` changes nothing. A refused result
        raises the policy's `retry_error_cls`, as does an error where that class was chosen.
        """
        policy, error = self._policy, self._error
        outcome = self._state.outcome
        assert outcome is not None
        if self._accepted:
            if error is not None:
                raise error
            return outcome.result()
        if policy.retry_error_callback is not None:
            return await _call(policy.retry_error_callback, self._state)
        if error is not None and (policy.retry_error_cls is RetryError or policy.reraise):
            raise error  # not by RetryError.reraise(), which takes an error that is false for none
        raise policy.retry_error_cls(outcome) from error


async def _call(strategy: Callable[[Any], Any] | None, argument: Any) -> Any:
    if strategy is None:
        return None
    answer = strategy(argument)
    return await answer if isawaitable(answer) else answer
