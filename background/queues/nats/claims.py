"""Claims of the NATS broker: claim jobs, and renew, settle and save them under their leases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, count
from math import inf
from typing import NamedTuple

from .._errors import BrokerUnavailableError
from .._names import process_name
from ..abc import Claim, LeaseStatus, Settlement
from .codec import encode
from .effects import UNREADABLE_DELAY, Effects
from .jetstream import JetStream
from .job import NatsJob
from .ready_queue import Offer, ReadyQueue
from .records import Changed, Stored
from .timer_wheel import TimerWheel

_MOST = 1_000  # jobs of one claim; the leases of more could end before the claim returns
_MOST_BYTES = 4_000_000  # records of jobs, after which a claim ends
_LARGE_PAGE = 16  # hints to fetch at once after a claim that ended because of its bytes


class Claims:
    """The claims of one broker.

    No call needs cover timers of its own. A claim that a crash interrupts leaves a hint without
    acknowledgement, which is delivered again. Later calls are covered by the timer of the lease.

    Args:
        api: JetStream.
        timers: The timers of the leases.
        ready: The hints about ready jobs.
        jobs: Changes the jobs.
    """

    def __init__(
        self, api: JetStream, timers: TimerWheel, ready: ReadyQueue, jobs: Effects
    ) -> None:
        self._api = api
        self._ready = ready
        self._jobs = jobs
        self._leases = HeldLeases(timers)
        self._process = process_name()
        self._numbers = count(1)
        self._page = _MOST  # hints to fetch at once

    def drop_expired(self, now: float) -> None:
        """Drop leases that have ended without a settlement."""
        self._leases.drop_expired(now)

    def clear(self) -> None:
        """Drop all leases, without releasing the jobs."""
        self._leases.clear()

    async def claim(self, queues: Sequence[str], most: int, lease: float) -> list[Claim]:
        """Claim jobs, as `Broker.claim` does.

        Jobs that are claimed are returned even if the connection is lost meanwhile.
        """
        most = min(most, _MOST)
        claims: list[Claim] = []
        size = 0
        try:
            for queue in queues:
                while len(claims) < most and size < _MOST_BYTES:
                    offers = await self._ready.take(queue, min(most - len(claims), self._page))
                    if not offers:
                        break
                    fitting = _fitting(offers, _MOST_BYTES - size)
                    size += sum(offer.size for offer in fitting)
                    ends = len(fitting) < len(offers)
                    self._page = _LARGE_PAGE if ends else _MOST
                    self._ready.put_back(queue, offers[len(fitting) :])
                    claims += await self._claim(fitting, lease)
        except BrokerUnavailableError:
            if not claims:
                raise
        return claims

    async def _claim(self, offers: Sequence[Offer], lease: float) -> list[Claim]:
        token = f"{self._process}-{next(self._numbers)}"
        hints = {offer.id: Stored(offer.record, offer.revision) for offer in offers if offer.record}
        try:
            changed = await self._jobs.change(
                [offer.id for offer in offers],
                lambda job, now: job.claim(token, now + lease, now),
                hints=hints,
                covered=True,
            )
        except BaseException:
            self._ready.decline(offers)
            raise
        unreadable = {id for id, change in changed.items() if change.unreadable}
        self._ready.done(offer for offer in offers if offer.id not in unreadable)
        self._ready.decline((offer for offer in offers if offer.id in unreadable), UNREADABLE_DELAY)
        claimed = {offer.id: changed[offer.id] for offer in offers if changed[offer.id].value}
        self._leases.add(claimed)
        return [change.job.as_claim() for change in claimed.values() if change.job is not None]

    async def renew(self, claims: Sequence[Claim], lease: float) -> list[LeaseStatus]:
        """Renew leases, as `Broker.renew` does."""
        tokens: defaultdict[str, set[str]] = defaultdict(set)
        for claim in claims:
            tokens[claim.message.id].add(claim.token)

        def renew(job: NatsJob, now: float) -> str:
            """Renew the lease, and return the token that holds it; empty if none of these does."""
            token = next(filter(job.is_held, tokens[job.message.id]), "")
            if token:
                job.renew(token, now + lease)
            return token

        hints = self._leases.hints(tokens)
        changed = await self._jobs.change(tokens, renew, hints=hints, covered=True)
        self._leases.update(changed)
        return [_status(claim, changed[claim.message.id]) for claim in claims]

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Settle jobs, as `Broker.settle` does."""
        accepted = [False] * len(settlements)
        left: list[tuple[int, Settlement]] = list(enumerate(settlements))
        while left:
            # Settlements of the same job are applied in order: each round has the first of them.
            batch: dict[str, tuple[int, Settlement]] = {}
            for index, settlement in reversed(left):
                batch[settlement.id] = index, settlement
            left = [
                (index, settlement)
                for index, settlement in left
                if batch[settlement.id][0] != index
            ]
            changed = await self._settle({id: settlement for id, (_, settlement) in batch.items()})
            for id, (index, _) in batch.items():
                accepted[index] = bool(changed[id].value)
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
        self._leases.drop(id for id, change in changed.items() if change.value)
        return changed

    async def save(self, id: str, token: str, result: bytes) -> bool:
        """Store an intermediate result, as `Broker.save` does."""

        most = await self._api.max_record()

        def save(job: NatsJob, now: float) -> bool:
            if not job.save(token, result):
                return False
            self._api.check_size(encode(job), most)
            return True

        changed = await self._jobs.change([id], save, hints=self._leases.hints([id]), covered=True)
        self._leases.update(changed)
        return bool(changed[id].value)


def _fitting(offers: Sequence[Offer], most: int) -> Sequence[Offer]:
    """Return the first offers, up to the one with which their records have `most` bytes."""
    for index, size in enumerate(accumulate(offer.size for offer in offers)):
        if size >= most:
            return offers[: index + 1]
    return offers


def _status(claim: Claim, changed: Changed) -> LeaseStatus:
    if changed.job is None or changed.value != claim.token:
        return LeaseStatus.LOST
    return LeaseStatus.CANCELLED if changed.job.cancel_requested else LeaseStatus.HELD


class _Lease(NamedTuple):
    stored: Stored
    ends: float


class HeldLeases:
    """The latest records of the jobs that this broker has claimed, and the timers of their leases.

    The records serve as hints, so a claimed job is usually settled without reading its record. A
    timer's message may have the timers of many jobs; it is deleted when all of them are settled.

    Args:
        timers: The timers.
    """

    def __init__(self, timers: TimerWheel) -> None:
        self._timers = timers
        self._leases: dict[str, _Lease] = {}  # by job
        self._covering: dict[int, set[str]] = {}  # by timer message, the jobs it is needed for
        self._covered: dict[str, int] = {}  # by job, its timer message

    def add(self, claimed: Mapping[str, Changed]) -> None:
        """Add jobs that were just claimed."""
        self.update(claimed)
        for id, change in claimed.items():
            self._uncover(id)
            if change.timer:
                self._covering.setdefault(change.timer, set()).add(id)
                self._covered[id] = change.timer

    def update(self, changed: Mapping[str, Changed]) -> None:
        """Remember the latest records of jobs that are still held."""
        for id, change in changed.items():
            if change.job is not None and change.job.token and change.value:
                ends = change.job.lease_ends
                self._leases[id] = _Lease(change.stored, ends or inf)

    def hints(self, ids: Iterable[str]) -> dict[str, Stored]:
        """Return the latest records that are remembered."""
        return {id: self._leases[id].stored for id in ids if id in self._leases}

    def drop(self, ids: Iterable[str]) -> None:
        """Drop jobs that have been settled, and delete the timers of their leases."""
        for id in ids:
            self._leases.pop(id, None)
            self._uncover(id)

    def drop_expired(self, now: float) -> None:
        """Drop jobs whose leases have ended; their timers are deleted when they are processed."""
        for id, lease in list(self._leases.items()):
            if lease.ends <= now:
                del self._leases[id]
                self._covering.get(self._covered.pop(id, 0), set()).discard(id)
        self._covering = {timer: ids for timer, ids in self._covering.items() if ids}

    def clear(self) -> None:
        """Drop all jobs; their timers stay."""
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
