"""Calls of a broker that are repeated until they succeed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from math import inf
from typing import TypeVar

import anyio
from tenacity.wait import wait_random_exponential

from .._retry import pause_after_failures
from .._support.log import log
from ._errors import BrokerRefusedError, BrokerUnavailableError

T = TypeVar("T")

#: The pauses between two calls.
WAIT = wait_random_exponential(multiplier=0.05, min=0.025, max=2.0)

#: Errors of calls of a server that can't be reached.
EXPECTED = (BrokerUnavailableError, TimeoutError)

_ONGOING = 30.0  # seconds after its latest failed call in which an outage is not logged again


class Outages:
    """The outages of one server that are logged, so that only the first calls that fail are."""

    def __init__(self) -> None:
        self._failed_at: dict[Outage, float] = {}
        self._left: tuple[float, float] | None = None  # the beginning, and the latest failure
        self._succeeded_at = -inf  # when any call succeeded last

    def is_logged(self) -> bool:
        """Return whether the server's outage is logged, and goes on."""
        return any(map(_is_ongoing, self._failed_at.values()))

    def add(self, outage: Outage) -> None:
        """Record that a call failed whose outage is logged."""
        self._failed_at[outage] = anyio.current_time()

    def succeeded(self, outage: Outage) -> None:
        """Record that a call succeeded, so its outage has ended."""
        self._succeeded_at = anyio.current_time()
        self._failed_at.pop(outage, None)

    def is_over(self, outage: Outage) -> bool:
        """Return whether another call has succeeded since the latest failure of an outage."""
        return self._succeeded_at > self._failed_at.get(outage, inf)

    def leave(self, outage: Outage) -> None:
        """Leave it to other calls to log the end of an outage."""
        if (failed_at := self._failed_at.pop(outage, None)) is not None:
            self._left = outage.began, failed_at

    def take_over(self) -> float | None:
        """Return the beginning of an outage whose end is left to other calls, but only once."""
        left, self._left = self._left, None
        return left[0] if left is not None and _is_ongoing(left[1]) else None


def _is_ongoing(failed_at: float) -> bool:
    return anyio.current_time() - failed_at < _ONGOING


class Outage:
    """Logs that calls fail, and that they succeed again; once for each outage and class of error.

    An error that is not expected in an outage is logged with its traceback. One that is expected is
    not logged while other calls have the same outage.

    Args:
        what: A description of the calls, for the log.
        outages: The outages of the server.

    Attributes:
        failures: The number of calls that failed, one after the other.
        began: When the first of them began, on the event loop's clock.
    """

    def __init__(self, what: str, outages: Outages) -> None:
        self.failures = 0
        self.began = 0.0
        self._what = what
        self._outages = outages
        self._logged: set[type[BaseException]] = set()

    def failed(self, error: BaseException, since: float | None = None) -> None:
        """Record that a call failed, which began at `since`, or now."""
        if not self.failures:
            self.began = anyio.current_time() if since is None else since
        self.failures += 1
        kind, is_expected = type(error), isinstance(error, EXPECTED)
        if is_expected and not self._logged and (began := self._outages.take_over()) is not None:
            self.began = began
            self._logged.add(kind)
        if kind not in self._logged and not (is_expected and self._outages.is_logged()):
            self._logged.add(kind)
            text = str(error) or "no answer" if isinstance(error, TimeoutError) else error
            traced = None if is_expected else error
            log(logging.WARNING, "%s: %s; trying again", self._what, text, error=traced)
        if is_expected and kind in self._logged:
            self._outages.add(self)

    def succeeded(self) -> None:
        """Record that a call succeeded."""
        began = self.began if self._logged else self._outages.take_over()
        if began is not None:
            seconds = anyio.current_time() - began
            log(logging.INFO, "%s: works again after %.1f s", self._what, seconds)
        self._outages.succeeded(self)
        self._reset()

    def ended(self) -> None:
        """Record that no more calls are made; others log the end of an outage that goes on."""
        if self._outages.is_over(self):
            self.succeeded()
        self._outages.leave(self)
        self._reset()

    def _reset(self) -> None:
        if self.failures:
            self.failures = 0
            self._logged.clear()


class BrokerBackoff:
    """Repeats calls with growing pauses; logs that they fail, and that they succeed again.

    Args:
        what: A description of the calls, for the log.
        outages: The outages of the server.
    """

    def __init__(self, what: str, outages: Outages) -> None:
        self._outage = Outage(what, outages)

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
        try:
            while True:
                since = anyio.current_time()
                try:
                    result = await fn()
                except Exception as error:
                    if give_up(error):
                        raise
                    self._outage.failed(error, since)
                    await anyio.sleep(pause_after_failures(WAIT, self._outage.failures, error))
                else:
                    self._outage.succeeded()
                    return result
        finally:
            self._outage.ended()


async def wait_for_broker(open: Callable[[], Awaitable[None]], wait: float) -> None:
    """Call `open` until the broker can be reached; log the beginning and the end of the wait.

    Args:
        open: Connects to the broker.
        wait: Seconds after which the error of `open` is raised.

    Raises:
        BrokerRefusedError: The broker can't be used as it is.
        BrokerUnavailableError: The broker can't be reached in time.
        Exception: Another error of `open`.
    """
    began = anyio.current_time()
    failures = 0
    while True:
        try:
            await open()
        except BrokerRefusedError:
            raise
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
