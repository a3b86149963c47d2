"""What a broker has to do, for those who write one.

A broker keeps jobs and hands them out under leases. All times that it compares are read from its
own clock, where it has one; callers give it seconds from now, or seconds since the epoch for what
is to happen `at` a time. It knows nothing of handlers, policies and arguments: it stores bytes.

Every method may be cancelled at any `await`. What it was about to do has then been done or not, and
the broker goes on working. `BrokerUnavailableError` says the same of a connection that was lost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from enum import Enum
from typing import Any

from .._support.frozen import record
from ._states import JobState


@record
class Message:
    """A job as it is handed to a broker.

    - `id`: no two jobs that the broker knows of have the same.
    - `queue`: a name.
    - `body`: everything that only workers read.
    - `delay`: seconds until it may start; `at`: or when, in seconds since the epoch.
    - `expires`: seconds until it must have been started; `None` is for ever.
    - `keep`: seconds for which it is known after its end.
    - `needs`: ids of jobs, enqueued before it or with it, which have to succeed before it may
      start; its delay begins then. If one of them ends otherwise, it is dead.
    - `handler`: a name; or `None` for a job that succeeds by itself, without a result, as soon as
      what it needs has.
    """

    id: str
    handler: str | None
    queue: str
    body: bytes
    keep: float
    delay: float = 0.0
    at: float | None = None
    expires: float | None = None
    needs: tuple[str, ...] = ()


@record
class Claim:
    """A job under a lease.

    `token` tells this claim from every other one of the same job. `attempt` counts the claims from
    1, without those that were handed back; `crashes` those whose worker never settled. `previous`
    has the results of what it needed, in that order; `error` is what the latest one failed with.
    """

    message: Message
    token: str
    attempt: int
    crashes: int
    enqueued_at: float
    previous: tuple[bytes | None, ...] = ()
    error: Mapping[str, Any] | None = None


@record
class Settlement:
    """What is to become of a claimed job.

    - `state`: `SUCCEEDED`, `DEAD` or `CANCELLED`; or `SCHEDULED` for another attempt after `delay`
      seconds; or `READY` to hand it back at once, as if it had not been claimed.
    - `result`: what a job that succeeded returned, or `None` to keep nothing; of any other what it
      has saved stays.
    - `error`: what the attempt failed with.
    """

    id: str
    token: str
    state: JobState
    delay: float = 0.0
    result: bytes | None = None
    error: Mapping[str, Any] | None = None


class LeaseStatus(Enum):
    """How a claim stands when it is renewed."""

    KEPT = "kept"
    LOST = "lost"  #: to another worker, or with the job itself
    CANCELLED = "cancelled"  #: somebody wants the job cancelled; the claim goes on until it is


@record
class StoredJob:
    """What a broker knows of a job; times are seconds since the epoch, on the broker's clock.

    `previous` has the results of what it needs, in that order, as far as there are any yet.
    """

    message: Message
    state: JobState
    attempt: int
    enqueued_at: float
    started_at: float | None = None
    finished_at: float | None = None
    error: Mapping[str, Any] | None = None
    result: bytes | None = None
    previous: tuple[bytes | None, ...] = ()


@record
class MaintenanceStats:
    """What a pass of maintenance has done, in numbers of jobs."""

    due: int = 0  #: scheduled ones that are ready now
    reclaimed: int = 0  #: whose lease had ended
    expired: int = 0
    forgotten: int = 0  #: whose time to be kept was over


class Broker(ABC):
    """Keeps jobs, and hands each to one worker at a time."""

    @abstractmethod
    async def open(self) -> None:
        """Connect. Raises `BrokerUnavailableError`."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect; may be called at any time, and again."""

    @abstractmethod
    async def enqueue(self, messages: Sequence[Message]) -> list[bool]:
        """Take jobs, all or none; tell of each whether its id was new.

        One whose id is known is left as it is, so a call whose answer was lost can be repeated.
        Raises `ValueError` for a job that needs one which is not known.
        """

    @abstractmethod
    async def claim(self, queues: Sequence[str], most: int, *, lease: float) -> list[Claim]:
        """Hand out up to `most` jobs that are ready, for `lease` seconds.

        The first queue is emptied before the second is looked at, and so on; within a queue the
        oldest go first. Returns at once, with nothing if there is nothing. If it is cancelled, jobs
        may have been claimed that nobody knows of, until their leases end.
        """

    @abstractmethod
    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        """Wait until there may be something to claim, or for `timeout` seconds."""

    @abstractmethod
    async def renew(self, claims: Sequence[Claim], *, lease: float) -> list[LeaseStatus]:
        """Let leases end `lease` seconds from now, and tell of each claim how it stands.

        A lease that has ended is lost, also before anybody else has the job.
        """

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Settle claimed jobs; tell of each whether its lease was still held.

        What was refused has changed nothing.
        """

    @abstractmethod
    async def save(self, id: str, token: str, result: bytes) -> bool:
        """Keep an intermediate result of a claimed job; `False` if its lease was not held."""

    @abstractmethod
    async def cancel(self, id: str) -> JobState | None:
        """Cancel a job that has not started, and have one cancelled that runs.

        Returns the state that it was in, `None` if there is no such job.
        """

    @abstractmethod
    async def requeue(self, id: str) -> bool:
        """Make a job ready that has ended, its attempts counted anew; `False` if it has not."""

    @abstractmethod
    async def get(self, id: str) -> StoredJob | None:
        """Return what is known of a job, as it was at the latest maintenance or later."""

    @abstractmethod
    async def wait(self, id: str, timeout: float) -> StoredJob | None:
        """As `get`, when the job has ended, or after `timeout` seconds."""

    @abstractmethod
    def scan(
        self, *, queue: str | None = None, state: JobState | None = None
    ) -> AsyncIterator[StoredJob]:
        """Go through jobs, oldest first; those that come or go meanwhile may be missed."""

    @abstractmethod
    async def count(self, *, queue: str | None = None, state: JobState | None = None) -> int:
        """Return how many jobs there are."""

    @abstractmethod
    async def purge(self, *, state: JobState | None = None, older_than: float = 0.0) -> int:
        """Forget jobs that ended at least `older_than` seconds ago; return how many."""

    @abstractmethod
    async def maintain(self) -> MaintenanceStats:
        """Do what is due: scheduled jobs, ended leases, expired jobs, and those kept long enough.

        Safe to run in any number of processes, at any time.
        """


class Results(ABC):
    """Keeps results elsewhere than the broker does, for `JobQueue(results=…)`.

    A key is up to 160 letters, digits and any of `_ . : -`. Attempts of a job have different ones,
    unless the number of one comes again, as that of one that was handed back does.
    """

    @abstractmethod
    async def open(self) -> None:
        """Connect. Raises `BrokerUnavailableError`, as does everything else."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect; may be called at any time, and again."""

    @abstractmethod
    async def save(self, key: str, result: bytes, *, keep: float) -> None:
        """Keep a result for `keep` seconds, in place of an earlier one."""

    @abstractmethod
    async def get(self, key: str) -> bytes | None:
        """Return a result that is kept."""

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Forget a result, if there is one."""
