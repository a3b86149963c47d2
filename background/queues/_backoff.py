"""What the log says while a broker can't be reached: that, and when it is over."""

from __future__ import annotations

import logging
import random

import anyio

from .._support.log import log
from ._errors import BrokerUnavailableError

_PAUSES = (0.05, 2.0)  # seconds before the broker is asked again: at first, and at most


class Outage:
    """The times in a row that something that needs a broker has failed."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._pause = 0.0

    async def failed(self, error: Exception) -> None:
        """Take note of a failure, and wait before the next try: longer each time."""
        known = isinstance(error, BrokerUnavailableError)
        if not self._pause or not known:
            traced = None if known else error
            log(logging.WARNING, "%s: %s; trying again", self._what, error, error=traced)
        first, most = _PAUSES
        self._pause = min(2 * self._pause or first, most)
        await anyio.sleep(self._pause * random.uniform(0.5, 1))

    def over(self) -> None:
        """Take note that it has worked."""
        if self._pause:
            self._pause = 0.0
            log(logging.INFO, "%s: works again", self._what)
