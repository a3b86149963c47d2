"""The interfaces of brokers and of stores of results.

A broker stores jobs, and workers claim them under leases. A broker compares times on its own clock,
if it has one: callers pass seconds from now, or seconds since the epoch for `at`. It does not
interpret handlers, policies and arguments: it stores bytes.

Every method may be cancelled at any `await`. Its change has then happened or not, and the broker
continues to work. `BrokerUnavailableError` means the same for a lost connection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ._states import JobState

__all__ = [
    "MOST_LOST",
    "Broker",
    "Claim",
    "LeaseStatus",
    "LostClaim",
    "MaintenanceStats",
    "Message",
    "Results",
    "Settlement",
    "StoredJob",
]


def __dir__() -> list[str]:
    return __all__


MOST_LOST = 20  #: expired claims that a job remembers


@dataclass(slots=True)
class Message:
    """A job as it is passed to a broker; it never changes.

    Args:
        id: The job's id; unique among the stored jobs. Ids and names have 1 to 128 letters, digits
            and any of `_.:-`.
        handler: The name of the handler. `None` for a job that succeeds without a run, and without
            a result, as soon as the jobs it depends on have succeeded.
        queue: The name of the queue.
        body: Encoded data that only workers read.
        retention: Seconds for which the job is stored after its end.
        dead_retention: The same for a job that is dead.
        delay: Seconds until it may start.
        at: When it may start, in seconds since the epoch; instead of `delay`.
        expires: Seconds until it must have started; `None` for no bound.
        depends_on: The ids of jobs that must succeed before it may start; its delay begins then. If
            one of them ends otherwise, the job is dead. They are enqueued before it or in the same
            call.
    """

    id: str
    handler: str | None
    queue: str
    body: bytes = field(repr=False)
    retention: float
    dead_retention: float
    delay: float = 0.0
    at: float | None = None
    expires: float | None = None
    depends_on: tuple[str, ...] = ()


@dataclass(slots=True)
class Claim:
    """A job under a lease.

    Args:
        message: The job.
        token: Distinguishes this claim from every other claim of the job: the name of the process,
            a hyphen, and a number.
        attempt: The number of claims, from 1, without those that were released.
        crashes: The number of claims whose lease was renewed, and whose worker never settled.
        unconfirmed: The number of claims whose lease expired without a renewal, so that the worker
            may never have received them.
        enqueued_at: When the job was enqueued, in seconds since the epoch.
        previous: The results of the jobs that it depends on, in their order.
        error: The error of the latest failed attempt.
        saved: The latest intermediate result.
    """

    message: Message
    token: str
    attempt: int
    crashes: int
    unconfirmed: int
    enqueued_at: float
    previous: tuple[bytes | None, ...] = field(default=(), repr=False)
    error: Mapping[str, Any] | None = field(default=None, repr=False)
    saved: bytes | None = field(default=None, repr=False)


@dataclass(slots=True)
class LostClaim:
    """A claim whose lease expired.

    Args:
        attempt: The number of the attempt.
        token: The token of the claim.
        started_at: When the job was claimed, in seconds since the epoch.
        ended_at: When the job became ready again.
        confirmed: Whether the lease was renewed, so that it counts as a crash.
    """

    attempt: int
    token: str
    started_at: float
    ended_at: float
    confirmed: bool


@dataclass(slots=True)
class Settlement:
    """The new state of a claimed job.

    Args:
        id: The job's id.
        token: The token of the claim.
        state: `SUCCEEDED`, `DEAD` or `CANCELLED`; `SCHEDULED` for another attempt after `delay`; or
            `READY` to release the job after `delay`, as if it had not been claimed.
        delay: Seconds until the job is ready again.
        result: The result of a job that succeeded, or `None` to store no result. In all other
            states, an intermediate result is retained.
        error: The error of the attempt.
        has_begun: Whether the attempt began. A job that is released before its first attempt began
            expires as before.
    """

    id: str
    token: str
    state: JobState
    delay: float = 0.0
    result: bytes | None = field(default=None, repr=False)
    error: Mapping[str, Any] | None = field(default=None, repr=False)
    has_begun: bool = True


class LeaseStatus(Enum):
    """The status of a claim when its lease is renewed."""

    HELD = "held"
    LOST = "lost"  #: another worker can claim the job, or it is gone
    CANCELLED = "cancelled"  #: the job is to be cancelled; the lease is held until it is


@dataclass(slots=True)
class StoredJob:
    """A job as a broker stores it; times are seconds since the epoch, on the broker's clock.

    Args:
        message: The job.
        state: Its state.
        attempt: The number of its latest attempt; 0 before the first.
        enqueued_at: When it was enqueued.
        started_at: When its latest attempt began.
        finished_at: When it ended.
        error: The error of its latest failed attempt.
        result: Its result, or its latest intermediate result.
        previous: The results of the jobs that it depends on, in their order, as far as they exist.
        token: The token of its latest claim.
        lost: Its latest claims whose leases expired, oldest first, up to 20.
    """

    message: Message
    state: JobState
    attempt: int
    enqueued_at: float
    started_at: float | None = None
    finished_at: float | None = None
    error: Mapping[str, Any] | None = field(default=None, repr=False)
    result: bytes | None = field(default=None, repr=False)
    previous: tuple[bytes | None, ...] = field(default=(), repr=False)
    token: str = ""
    lost: tuple[LostClaim, ...] = ()


@dataclass(slots=True)
class MaintenanceStats:
    """The numbers of jobs that a pass of maintenance changed.

    Args:
        due: Scheduled jobs that became ready.
        reclaimed: Jobs whose lease had ended.
        expired: Jobs that expired.
        deleted: Jobs past their retention.
    """

    due: int = 0
    reclaimed: int = 0
    expired: int = 0
    deleted: int = 0


class Broker(ABC):
    """A store of jobs; one worker at a time can claim a job."""

    @abstractmethod
    async def open(self) -> None:
        """Connect.

        Raises:
            BrokerUnavailableError: The broker can't be reached.
        """

    @abstractmethod
    async def close(self) -> None:
        """Disconnect; may be called at any time and repeatedly."""

    @abstractmethod
    async def enqueue(self, messages: Sequence[Message]) -> list[bool]:
        """Store jobs: all or none, unless the broker's documentation says otherwise.

        A job whose id is stored is not changed, so a call can be repeated if its answer is lost.

        Returns:
            For each job whether its id was new.

        Raises:
            ValueError: A job depends on a job that is not stored.
        """

    @abstractmethod
    async def claim(self, queues: Sequence[str], most: int, *, lease: float) -> list[Claim]:
        """Claim jobs that are ready.

        The first queue is emptied before the second one. Within a queue the oldest jobs are first,
        unless the broker's documentation says otherwise. Returns at once. If it is cancelled, or
        its answer is lost, jobs may stay claimed until their leases end. Large jobs end a claim
        early.

        Args:
            queues: The names of the queues.
            most: The most jobs to claim.
            lease: Seconds for which they are claimed.

        Returns:
            The claims; none if no job is ready.
        """

    @abstractmethod
    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        """Wait until there may be a job to claim, or for `timeout` seconds."""

    @abstractmethod
    async def renew(self, claims: Sequence[Claim], *, lease: float) -> list[LeaseStatus]:
        """Renew leases, which then end `lease` seconds from now, and confirm the claims.

        A lease that has expired is lost, even if no other worker has claimed the job.

        Returns:
            The status of each claim.
        """

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Settle claimed jobs.

        Returns:
            For each job whether its claim held it; a refused settlement changes nothing.
        """

    @abstractmethod
    async def save(self, id: str, token: str, result: bytes) -> bool:
        """Store an intermediate result of a claimed job; return whether its claim held it."""

    @abstractmethod
    async def cancel(self, id: str) -> JobState | None:
        """Cancel a job that has not started, or ask the worker of a running one to cancel it.

        Returns:
            The state before, or `None` if there is no such job.
        """

    async def cancel_many(self, ids: Sequence[str]) -> list[JobState | None]:
        """Cancel jobs in this order, in which a job comes before those that it depends on.

        A job would be dead if one that it depends on were cancelled first. By default, `cancel` is
        called for each job.

        Returns:
            For each job the state before, or `None` if there is no such job.
        """
        return [await self.cancel(id) for id in ids]

    @abstractmethod
    async def requeue(self, id: str) -> bool:
        """Make an ended job ready again, and reset its attempts; return whether it had ended."""

    @abstractmethod
    async def get(self, id: str) -> StoredJob | None:
        """Return a job as it was at the latest maintenance or later.

        Raises:
            QueueError: A newer version of the library has stored it, so it can't be read.
        """

    @abstractmethod
    async def wait(self, id: str, timeout: float) -> StoredJob | None:
        """Return a job like `get`, when it has ended or after `timeout` seconds."""

    @abstractmethod
    def scan(
        self, *, queue: str | None = None, state: JobState | None = None
    ) -> AsyncIterator[StoredJob]:
        """Iterate over jobs, oldest first; concurrent additions may be missed.

        Raises:
            QueueError: A newer version of the library has stored jobs, which can't be read.
        """

    @abstractmethod
    async def count(self, *, queue: str | None = None, state: JobState | None = None) -> int:
        """Return the number of jobs.

        Raises:
            QueueError: A newer version of the library has stored jobs, which can't be read.
        """

    @abstractmethod
    async def purge(self, *, state: JobState | None = None, older_than: float = 0.0) -> int:
        """Delete jobs that ended at least `older_than` seconds ago; return their number."""

    @abstractmethod
    async def advance_schedule(
        self, name: str, expected: float | None, tick: float, *, retention: float
    ) -> float:
        """Store up to which tick a schedule is enqueued, by compare-and-set.

        A call can be repeated if its answer is lost.

        Args:
            name: The schedule's name, like an id.
            expected: The tick that a stored one must equal to be replaced; `None` replaces none. If
                none is stored, `tick` is.
            tick: The new tick, in seconds since the epoch on the caller's clock.
            retention: Seconds for which it is stored unless it is replaced, on the broker's clock.

        Returns:
            The tick that is stored afterwards.
        """

    @abstractmethod
    async def maintain(self) -> MaintenanceStats:
        """Make due jobs ready, reclaim jobs whose leases ended, expire jobs, and delete old ones.

        Any number of processes may call it at any time.
        """


class Results(ABC):
    """A store of results apart from the broker, for `JobQueue(results=…)`.

    A key has up to 160 letters, digits and `_ . : -`. Attempts of a job have different keys, but an
    attempt that was released shares its key with the next one.
    """

    @abstractmethod
    async def open(self) -> None:
        """Connect.

        Raises:
            BrokerUnavailableError: The store can't be reached; other methods raise it, too.
        """

    @abstractmethod
    async def close(self) -> None:
        """Disconnect; may be called at any time and repeatedly."""

    @abstractmethod
    async def save(self, key: str, result: bytes, *, retention: float) -> None:
        """Store a result for `retention` seconds; replace an earlier result."""

    @abstractmethod
    async def get(self, key: str) -> bytes | None:
        """Return a stored result, or `None`.

        Raises:
            InvalidPayloadError: What is stored is no result.
        """

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Delete a result, if there is one."""
