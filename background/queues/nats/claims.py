"""Who holds which job of the NATS broker: claims, and what only their holder may do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from math import inf
from secrets import token_hex
from typing import NamedTuple

from .._errors import BrokerUnavailableError
from ..abc import Claim, LeaseStatus, Settlement
from .codec import encode
from .effects import Effects
from .jetstream import JetStream
from .job import NatsJob
from .ready_queue import Offer, ReadyQueue
from .records import Changed, Stored
from .timer_wheel import TimerWheel

_LATER = 10.0  # seconds until others are offered a job whose record is of a newer version


class Claims:
    """The claims of one broker."""

    def __init__(
        self, api: JetStream, timers: TimerWheel, ready: ReadyQueue, jobs: Effects
    ) -> None:
        self._api = api
        self._ready = ready
        self._jobs = jobs
        self._leases = HeldLeases(timers)
        self._run = token_hex(8)  # tells this broker's claims from those of all others
        self._numbers = count(1)

    def forget(self, now: float) -> None:
        """Forget what nobody has settled whose lease has ended."""
        self._leases.forget(now)

    def clear(self) -> None:
        self._leases.clear()

    async def claim(self, queues: Sequence[str], most: int, lease: float) -> list[Claim]:
        claims: list[Claim] = []
        try:
            for queue in queues:
                while len(claims) < most:
                    offers = await self._ready.take(queue, most - len(claims))
                    if not offers:
                        break
                    claims += await self._claim(offers, lease)
        except BrokerUnavailableError:
            if not claims:
                raise
        return claims

    async def _claim(self, offers: Sequence[Offer], lease: float) -> list[Claim]:
        token = f"{self._run}-{next(self._numbers)}"
        hints = {each.id: Stored(each.record, each.revision) for each in offers if each.record}
        try:
            changed = await self._jobs.change(
                [each.id for each in offers],
                lambda job, now: job.claim(token, now + lease, now),
                hints=hints,
                covered=True,
            )
        except BaseException:
            self._ready.decline(offers)
            raise
        unread = {id for id, each in changed.items() if each.unreadable}
        self._ready.done(each for each in offers if each.id not in unread)
        self._ready.decline((each for each in offers if each.id in unread), _LATER)
        claimed = {each.id: changed[each.id] for each in offers if changed[each.id].value}
        self._leases.add(token, claimed)
        return [each.job.as_claim() for each in claimed.values() if each.job is not None]

    async def renew(self, claims: Sequence[Claim], lease: float) -> list[LeaseStatus]:
        tokens: defaultdict[str, set[str]] = defaultdict(set)
        for claim in claims:
            tokens[claim.message.id].add(claim.token)

        def renew(job: NatsJob, now: float) -> str:
            """Return the token that is the right one, if it is among those."""
            token = next(filter(job.is_held, tokens[job.message.id]), "")
            if token:
                job.renew(token, now + lease)
            return token

        hints = self._leases.hints(tokens)
        changed = await self._jobs.change(tokens, renew, hints=hints, covered=True)
        self._leases.keep(changed)
        return [_hold(each, changed[each.message.id]) for each in claims]

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        accepted = [False] * len(settlements)
        left: list[tuple[int, Settlement]] = list(enumerate(settlements))
        while left:
            some: dict[str, tuple[int, Settlement]] = {}
            for place, each in reversed(left):
                some[each.id] = place, each
            left = [(place, each) for place, each in left if some[each.id][0] != place]
            changed = await self._settle({id: each for id, (_, each) in some.items()})
            for id, (place, _) in some.items():
                accepted[place] = bool(changed[id].value)
        return accepted

    async def _settle(self, settlements: Mapping[str, Settlement]) -> dict[str, Changed]:
        most = await self._api.max_record()

        def settle(job: NatsJob, now: float) -> bool:
            if not job.settle(settlements[job.message.id], now):
                return False
            if len(encode(job)) > most:
                job.outgrow("its result is too large for its record", now)
            return True

        hints = self._leases.hints(settlements)
        changed = await self._jobs.change(settlements, settle, hints=hints, covered=True)
        self._leases.drop(id for id, each in changed.items() if each.value)
        return changed

    async def save(self, id: str, token: str, result: bytes) -> bool:
        def save(job: NatsJob, now: float) -> bool:
            return job.save(token, result)

        changed = await self._jobs.change([id], save, hints=self._leases.hints([id]), covered=True)
        self._leases.keep(changed)
        return bool(changed[id].value)


def _hold(claim: Claim, changed: Changed) -> LeaseStatus:
    if changed.job is None or changed.value != claim.token:
        return LeaseStatus.LOST
    return LeaseStatus.CANCELLED if changed.job.cancel_requested else LeaseStatus.HELD


class _Lease(NamedTuple):
    token: str
    stored: Stored
    ends: float


class HeldLeases:
    """What is known of the jobs that are claimed here, by their ids."""

    def __init__(self, timers: TimerWheel) -> None:
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
