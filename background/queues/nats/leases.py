"""The claims that one broker has handed out: their latest records, and the timers of their leases.

All of it is only there to spare questions to the server, which decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import NamedTuple

from .records import Changed, Stored
from .timer_wheel import Timers


class _Lease(NamedTuple):
    token: str
    stored: Stored
    ends: float


class Leases:
    """What is known of the jobs that are claimed here, by their ids."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._leases: dict[str, _Lease] = {}
        self._covering: dict[int, set[str]] = {}  # of a timer's message the jobs it is there for
        self._covered: dict[str, int] = {}

    def add(self, token: str, claimed: Mapping[str, Changed]) -> None:
        self.keep(claimed)
        for id, each in claimed.items():
            self._uncover(id)
            if each.timer:
                self._covering.setdefault(each.timer, set()).add(id)
                self._covered[id] = each.timer

    def keep(self, changed: Mapping[str, Changed]) -> None:
        """Take note of the latest records of jobs that are still held."""
        for id, each in changed.items():
            if each.job is not None and each.job.token and each.value:
                ends = each.job.lease_ends
                self._leases[id] = _Lease(each.job.token, each.stored, ends or inf)

    def hints(self, ids: Iterable[str]) -> dict[str, Stored]:
        return {id: self._leases[id].stored for id in ids if id in self._leases}

    def drop(self, ids: Iterable[str]) -> None:
        """Forget jobs that have been settled, and what looks after them."""
        for id in ids:
            self._leases.pop(id, None)
            self._uncover(id)

    def forget(self, now: float) -> None:
        """Forget those whose leases ended without anybody settling the job."""
        for id, each in list(self._leases.items()):
            if each.ends <= now:
                del self._leases[id]
                self._covering.get(self._covered.pop(id, 0), set()).discard(id)
        self._covering = {timer: ids for timer, ids in self._covering.items() if ids}

    def clear(self) -> None:
        self._leases.clear()
        self._covering.clear()
        self._covered.clear()

    def _uncover(self, id: str) -> None:
        timer = self._covered.pop(id, 0)
        if timer:
            self._covering[timer].discard(id)
            if not self._covering[timer]:
                del self._covering[timer]
                self._timers.remove([timer])
