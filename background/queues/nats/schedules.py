"""The latest ticks of schedules, in a key-value bucket of their own."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from math import inf
from typing import Any

from .._unreadable import DECODING_ERRORS, is_tick, report_tick
from .clock import ServerClock
from .jetstream import JetStream
from .layout import Layout


class Schedules:
    """The latest ticks of schedules, which are only changed by compare-and-set.

    Args:
        api: JetStream.
        layout: The names of the stream and its subjects.
        clock: The server's clock.
    """

    def __init__(self, api: JetStream, layout: Layout, clock: ServerClock) -> None:
        self._api = api
        self._layout = layout
        self._clock = clock

    async def advance(
        self, name: str, expected: float | None, tick: float, retention: float
    ) -> float:
        """Store a tick if the expected one is stored; return the one that is stored afterwards.

        A stored one that can't be read is replaced, as if there was none.
        """
        subject = self._layout.schedule(name)
        entry: bytes | None = None
        while True:
            now = self._clock.now()
            (message,) = await self._api.get_last(self._layout.schedules, [subject])
            revision = 0
            if message is None:
                await self._delete_old(now)
            elif _data(message) == entry:
                return float(tick)  # the write was executed, but its answer was lost
            else:
                revision = message["seq"]
                stored, until = _entry(message)
                if not is_tick(stored):
                    report_tick(name, _data(message))
                elif until > now and stored != expected:
                    return stored
            entry = json.dumps([float(tick), now + retention]).encode()
            (done,) = await self._api.replace([(subject, entry, revision)])
            if done is not None:
                return float(tick)

    async def _delete_old(self, now: float) -> None:
        """Delete the ticks of schedules past their retention; new names are rare."""
        stream = self._layout.schedules
        subjects = await self._api.subjects(stream, self._layout.schedule("*"))
        messages = [found for found in await self._api.get_last(stream, subjects) if found]
        old = [found["seq"] for found in messages if _entry(found)[1] <= now]
        await self._api.delete_all(stream, old)


def _data(message: Mapping[str, Any]) -> bytes:
    return b64decode(message.get("data", ""))


def _entry(message: Mapping[str, Any]) -> tuple[float, float]:
    """Return a tick and the end of its retention; both are infinite if they can't be read."""
    try:
        tick, until = json.loads(_data(message))
        return float(tick), float(until)
    except DECODING_ERRORS:
        return inf, inf
