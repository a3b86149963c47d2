"""A broker with injected faults that counts its calls."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
from anyio.lowlevel import checkpoint

from background.queues import BrokerUnavailableError, JobState
from background.queues.abc import (
    Broker,
    Claim,
    LeaseStatus,
    MaintenanceStats,
    Message,
    Results,
    Settlement,
    StoredJob,
)

T = TypeVar("T")


class FaultyBroker(Broker):
    """Forwards all calls to an open broker, and injects faults.

    Attributes:
        calls: Number of calls by method.
        claims: All claims, in order.
        settled: Number of claims that were settled.
        most: Most jobs that were claimed or requested at the same time.
        down: Methods that raise `BrokerUnavailableError` as long as they are in this set.
    """

    def __init__(self, real: Broker) -> None:
        self.real = real
        self.calls: Counter[str] = Counter()
        self.claims: list[Claim] = []
        self.settled = 0
        self.most = 0
        self.down: set[str] = set()
        self._faults: dict[str, deque[Exception]] = {}
        self._lost: Counter[str] = Counter()
        self._held: dict[str, anyio.Event] = {}
        self._changed = anyio.Event()

    def fail(self, *names: str, error: Exception | None = None, times: int = 1) -> None:
        """Let the next `times` calls of the methods raise `error`.

        Args:
            names: The methods.
            error: Default: `BrokerUnavailableError`.
            times: Number of calls.
        """
        for name in names:
            faults = self._faults.setdefault(name, deque())
            faults.extend([error or BrokerUnavailableError(f"{name}: no broker")] * times)

    def lose(self, name: str, times: int = 1) -> None:
        """Let the next `times` calls of a method take effect, and then raise."""
        self._lost[name] += times

    def hold(self, name: str) -> anyio.Event:
        """Block a method until the returned event is set."""
        self._held[name] = anyio.Event()
        return self._held[name]

    async def called(self, name: str, times: int = 1) -> None:
        """Wait until a method has been called `times` times in total."""
        while self.calls[name] < times:
            await self._changed.wait()

    async def has_settled(self, jobs: int) -> None:
        """Wait until `jobs` settlements were accepted in total."""
        while self.settled < jobs:
            await self._changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def _call(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        self.calls[name] += 1
        self._notify()
        if name in self._held:
            await self._held[name].wait()
        if name in self.down:
            await checkpoint()
            raise BrokerUnavailableError(f"{name}: no broker")
        if self._faults.get(name):
            await checkpoint()
            raise self._faults[name].popleft()
        answer = await call()
        if self._lost[name]:
            self._lost[name] -= 1
            raise BrokerUnavailableError(f"{name}: the answer was lost")
        return answer

    async def open(self) -> None:
        """Do not open the real broker: several queues share it."""
        await self._call("open", checkpoint)

    async def close(self) -> None:
        """Do not close the real broker: its owner closes it."""
        await self._call("close", checkpoint)

    async def enqueue(self, messages: Sequence[Message]) -> list[bool]:
        return await self._call("enqueue", lambda: self.real.enqueue(messages))

    async def claim(self, queues: Sequence[str], most: int, *, lease: float) -> list[Claim]:
        self.most = max(self.most, len(self.claims) - self.settled + most)
        claims = await self._call("claim", lambda: self.real.claim(queues, most, lease=lease))
        self.claims += claims
        return claims

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        await self._call("wait_for_work", lambda: self.real.wait_for_work(queues, timeout))

    async def renew(self, claims: Sequence[Claim], *, lease: float) -> list[LeaseStatus]:
        return await self._call("renew", lambda: self.real.renew(claims, lease=lease))

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        answers = await self._call("settle", lambda: self.real.settle(settlements))
        self.settled += sum(answers)
        self._notify()
        return answers

    async def save(self, id: str, token: str, result: bytes) -> bool:
        return await self._call("save", lambda: self.real.save(id, token, result))

    async def cancel(self, id: str) -> JobState | None:
        return await self._call("cancel", lambda: self.real.cancel(id))

    async def requeue(self, id: str) -> bool:
        return await self._call("requeue", lambda: self.real.requeue(id))

    async def get(self, id: str) -> StoredJob | None:
        return await self._call("get", lambda: self.real.get(id))

    async def wait(self, id: str, timeout: float) -> StoredJob | None:
        return await self._call("wait", lambda: self.real.wait(id, timeout))

    async def scan(
        self, *, queue: str | None = None, state: JobState | None = None
    ) -> AsyncIterator[StoredJob]:
        async for job in self.real.scan(queue=queue, state=state):
            yield job

    async def count(self, *, queue: str | None = None, state: JobState | None = None) -> int:
        return await self._call("count", lambda: self.real.count(queue=queue, state=state))

    async def purge(self, *, state: JobState | None = None, older_than: float = 0.0) -> int:
        return await self._call(
            "purge", lambda: self.real.purge(state=state, older_than=older_than)
        )

    async def advance_schedule(
        self, name: str, expected: float | None, tick: float, *, retention: float
    ) -> float:
        return await self._call(
            "advance_schedule",
            lambda: self.real.advance_schedule(name, expected, tick, retention=retention),
        )

    async def maintain(self) -> MaintenanceStats:
        return await self._call("maintain", lambda: self.real.maintain())


class MemoryResults(Results):
    """Results in a dictionary; unavailable while `down` is true."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.retention: dict[str, float] = {}
        self.is_open = False
        self.down = False

    async def _reach(self) -> None:
        await checkpoint()
        if self.down or not self.is_open:
            raise BrokerUnavailableError("no results store")

    async def open(self) -> None:
        self.is_open = True
        try:
            await self._reach()
        except BrokerUnavailableError:
            self.is_open = False
            raise

    async def close(self) -> None:
        await checkpoint()
        self.is_open = False

    async def save(self, key: str, result: bytes, *, retention: float) -> None:
        await self._reach()
        self.kept[key] = result
        self.retention[key] = retention

    async def get(self, key: str) -> bytes | None:
        await self._reach()
        return self.kept.get(key)

    async def delete(self, key: str) -> None:
        await self._reach()
        self.kept.pop(key, None)
