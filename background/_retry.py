"""A narrow adapter to tenacity: its strategies, driven by this library's own loop.

tenacity's loop keeps statistics in the policy, passes cancellation to predicates, and takes longer
than a short task. Here a policy is only read, so any number of tasks may share one.
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
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_never,
    wait_random_exponential,
)
from tenacity.before import before_nothing
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from ._errors import InvalidTaskError
from ._support import validation
from ._support.redacted import kind_of

#: The values of the `retry` option: a policy, a number of attempts, or `None`.
Retry = AsyncRetrying | int | None

_TENACITYS_OWN_SLEEP = AsyncRetrying().sleep


def _default_wait() -> wait_base:
    return wait_random_exponential(multiplier=0.2, min=0.1, max=30)


@lru_cache
def _policy_of(attempts: int) -> AsyncRetrying:
    return AsyncRetrying(stop=stop_after_attempt(attempts), wait=_default_wait())


def make_policy(retry: Retry) -> AsyncRetrying | None:
    """Return the policy that `retry` stands for; `None` for a single attempt.

    Raises:
        InvalidTaskError: `retry` is neither a policy nor a number of attempts.
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


def retry_on(
    *exceptions: type[Exception], attempts: int | None = 10, timeout: float | None = 45.0
) -> AsyncRetrying:
    """Make a policy that retries certain exceptions, with exponential, jittered waits.

    Args:
        *exceptions: The exceptions to retry.
        attempts: The most attempts, or `None` for any number.
        timeout: Seconds since the first attempt after which there are no retries, or `None`.

    Returns:
        The policy.

    Raises:
        ValueError: An argument is not valid; the message names it.

    Example:
        ```python
        manager.options(retry=retry_on(ConnectionError, attempts=5)).run(fetch, "/b")
        ```
    """
    if not exceptions or not all(
        isinstance(kind, type) and issubclass(kind, Exception)  # pyright: ignore[reportUnnecessaryIsInstance]
        for kind in exceptions
    ):
        shown = ", ".join(
            kind.__qualname__ if isinstance(kind, type) else f"a value of type {kind_of(kind)}"  # pyright: ignore[reportUnnecessaryIsInstance]
            for kind in exceptions
        )
        raise ValueError(f"exceptions must be classes of exceptions, not {shown or 'none'}")
    validation.optional(validation.count, "attempts", attempts)
    validation.optional(validation.seconds, "timeout", timeout, above=0)
    stop: stop_base = stop_never
    if attempts is not None:
        stop = stop_after_attempt(attempts)
    if timeout is not None:
        stop = stop_after_delay(timeout) if attempts is None else stop | stop_after_delay(timeout)
    return AsyncRetrying(retry=retry_if_exception_type(exceptions), stop=stop, wait=_default_wait())


def pause_after_failures(wait: wait_base, failures: int, error: BaseException) -> float:
    """Return the seconds that `wait` asks for after a number of failures in a row."""
    state = RetryCallState(AsyncRetrying(wait=wait), None, (), {})
    state.attempt_number = failures
    state.set_exception((type(error), error, error.__traceback__))
    return float(wait(state))


def needs_every_attempt(policy: AsyncRetrying) -> bool:
    """Return whether the policy must also be called for successful attempts."""
    fails_only = (
        isinstance(policy.retry, retry_if_exception)
        and type(policy.retry).__call__ is retry_if_exception.__call__
    )
    return not fails_only or policy.before is not before_nothing


class Attempts:
    """The attempts of one call under one policy, in the order that tenacity documents.

    Args:
        policy: The policy.
        fn: The function, for the policy's callbacks.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        started: When the first attempt began, on `clock`.
        clock: Returns seconds.
        number: The number of the current attempt, from 1.
    """

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
        """The outcome of the latest attempt, as tenacity represents it."""
        return self._state.outcome

    async def before(self) -> None:
        """Call the policy's `before` hook."""
        await _call(self._policy.before, self._state)

    async def failed(self, error: Exception) -> float | None:
        """Return the seconds until the next attempt, or `None` if none follows."""
        self._error = error
        self._state.set_exception((type(error), error, error.__traceback__))
        return await self._judge(always=isinstance(error, TryAgain))

    async def returned(self, value: Any) -> float | None:
        """Return the seconds until the next attempt if the value is refused, otherwise `None`."""
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
        """Sleep before the next attempt, with the policy's own function if it has one."""
        if self._policy.sleep is _TENACITYS_OWN_SLEEP:
            await anyio.sleep(delay)
        else:
            await _call(self._policy.sleep, delay)
            await checkpoint()  # the function may have returned without waiting

    def again(self) -> None:
        """Prepare the next attempt."""
        self._state.prepare_for_next_attempt()

    async def conclude(self) -> Any:
        """Return or raise the outcome of the last attempt.

        An attempt's own error is raised as it is, so `reraise` changes nothing. A refused result
        raises the policy's `retry_error_cls`; so does an error if another class was chosen.
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
            raise error  # RetryError.reraise() ignores an error whose truth value is false
        raise policy.retry_error_cls(outcome) from error


async def _call(strategy: Callable[[Any], Any] | None, argument: Any) -> Any:
    if strategy is None:
        return None
    answer = strategy(argument)
    return await answer if isawaitable(answer) else answer
