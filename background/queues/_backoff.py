"""Calls of a broker that are repeated until they succeed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from tenacity.wait import wait_random_exponential

from .._retry import pause_after_failures
from .._support.log import log
from ._errors import BrokerUnavailableError

T = TypeVar("T")

#: The pauses between two calls.
WAIT = wait_random_exponential(multiplier=0.05, min=0.025, max=2.0)


class Outage:
    """Logs that calls fail, and that they succeed again; once for each outage and class of error.

    An error that is not expected in an outage is logged with its traceback.

    Args:
        what: A description of the calls, for the log.
    """

    def __init__(self, what: str) -> None:
        self.failures = 0
        self._what = what
        self._logged: set[type[BaseException]] = set()

    def failed(self, error: BaseException) -> None:
        """Record that a call failed."""
        self.failures += 1
        if type(error) not in self._logged:
            self._logged.add(type(error))
            traced = None if isinstance(error, (BrokerUnavailableError, TimeoutError)) else error
            text = str(error) or "no answer" if isinstance(error, TimeoutError) else error
            log(logging.WARNING, "%s: %s; trying again", self._what, text, error=traced)

    def succeeded(self) -> None:
        """Record that a call succeeded."""
        if self.failures:
            self.failures = 0
            self._logged.clear()
            log(logging.INFO, "%s: works again", self._what)


class BrokerBackoff:
    """Repeats calls with growing pauses; logs that they fail, and that they succeed again.

    Args:
        what: A description of the calls, for the log.
    """

    def __init__(self, what: str) -> None:
        self._outage = Outage(what)

    async def call(
        self,
        fn: Callable[[], Awaitable[T]],
        give_up: Callable[[Exception], bool] = lambda error: False,
    ) -> T:
        """Call `fn` until it succeeds, and return its result.

        Args:
            fn: The call.
            give_up: Returns whether to raise an error instead of calling again.

        Raises:
            Exception: The error of `fn`, if `give_up` returned `True` for it.
        """
        while True:
            try:
                result = await fn()
            except Exception as error:
                if give_up(error):
                    raise
                self._outage.failed(error)
                await anyio.sleep(pause_after_failures(WAIT, self._outage.failures, error))
            else:
                self._outage.succeeded()
                return result


async def wait_for_broker(open: Callable[[], Awaitable[None]], wait: float) -> None:
    """Call `open` until the broker can be reached; log the beginning and the end of the wait.

    Args:
        open: Connects to the broker.
        wait: Seconds after which the error of `open` is raised.

    Raises:
        BrokerUnavailableError: The broker can't be reached in time.
        Exception: Another error of `open`.
    """
    began = anyio.current_time()
    failures = 0
    while True:
        try:
            await open()
        except BrokerUnavailableError as error:
            left = began + wait - anyio.current_time()
            if left <= 0:
                raise
            failures += 1
            if failures == 1:
                log(logging.WARNING, "waiting up to %g s for the broker: %s", wait, error)
            pause = min(left, pause_after_failures(WAIT, failures, error))
        else:
            break
        await anyio.sleep(pause)
    if failures:
        log(logging.INFO, "the broker can be reached after %.1f s", anyio.current_time() - began)
