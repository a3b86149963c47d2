"""The loops of a worker, which fetch, settle, renew and maintain jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from math import inf
from operator import itemgetter
from typing import Any

import anyio

from ..._eventloop.interruption import ki_protected
from ..._execution.handle import TaskHandle
from ..._lifecycle.host import WorkerHost
from ..._observer import Observer
from .._client import Client
from .._enqueue.handler import Handler
from .._errors import QueueError
from .announcement import worker_stopped
from .attempt import JobAttempt, WorkerContext, current_attempt
from .capacity import Capacity
from .completer import Completer
from .fetcher import Fetcher
from .heartbeat import LeaseRenewer
from .in_flight import InFlight
from .janitor import Janitor
from .preparation import Preparation
from .selection import Selection


@ki_protected
class WorkerLoops:
    """The loops of one worker, and its shutdown.

    Args:
        host: The manager.
        client: The broker and the store of results.
        handlers: The queue's handlers, by name.
        observers: The queue's observers.
        queues: The queues to claim from.
        concurrency: The most jobs at once.
        lease: Seconds for which jobs are claimed.
        max_crashes: A job is dead when this many workers have died while they ran it.
        unknown_for: Seconds for which a job that this worker can't run is released.
        with_baggage: Whether baggage that is stored with a job is attached when it runs.
    """

    def __init__(
        self,
        host: WorkerHost,
        client: Client,
        handlers: Mapping[str, Handler[..., Any, Any]],
        observers: tuple[Observer, ...],
        queues: Selection,
        *,
        concurrency: int,
        lease: float,
        max_crashes: int,
        unknown_for: float,
        with_baggage: bool,
    ) -> None:
        broker = client.broker
        self.queues = queues
        self.concurrency = concurrency
        self.in_flight = InFlight(host.backend.event)
        self.gave_up = False  # whether it was closed while its broker did not answer
        self._host = host
        self._completer = Completer(broker, host.backend.event, client.outages)
        context = WorkerContext(
            host=host,
            client=client,
            settle=self._completer.settle,
            settle_soon=self._completer.settle_soon,
            remove=self._remove,
        )
        capacity = Capacity(self.in_flight, concurrency, lease)
        preparation = Preparation(context, handlers, observers, max_crashes)
        self._fetcher = Fetcher(
            broker,
            context,
            preparation,
            self.in_flight,
            queues,
            capacity,
            lease,
            max_crashes,
            unknown_for,
            with_baggage,
        )
        self._renewer = LeaseRenewer(
            broker, self.in_flight, capacity, lease, host.backend.now, client.outages
        )
        self._janitor = Janitor(broker, lease, client.outages)
        self._unregister: Callable[[], None] = lambda: None
        self._closing: Counter[JobAttempt | None] = Counter()  # calls of close(), by attempt
        self._is_ending = False
        self._is_closed = False
        self._stuck: set[JobAttempt] = set()
        self._clean_until = inf  # until when released attempts are waited for
        self._scopes: set[anyio.CancelScope] = set()

    @property
    def is_closed(self) -> bool:
        """Whether the worker was closed and has no jobs left."""
        return self._is_closed and not self.in_flight

    @property
    def is_claiming(self) -> bool:
        """Whether the worker claims jobs."""
        return self._fetcher.is_fetching

    def start(self) -> None:
        """Begin to claim jobs."""
        self._unregister = self._host.on_stopping(self.stop)
        self._serve("settling", self._completer.run)
        self._serve("leases", self._renewer.run)
        self._serve("maintenance", self._janitor.run)
        self._serve("claiming", self._fetcher.run)
        self._serve("end of the manager", self._watch_manager)

    def _serve(self, name: str, fn: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._host.start_service(name, partial(self._until_closed, fn))

    async def _until_closed(self, fn: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if not self._is_closed:
            with anyio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    await fn()
                finally:
                    self._scopes.discard(scope)

    async def _watch_manager(self) -> None:
        try:
            await self._host.closed()
            if any(attempt.is_settling for attempt in self.in_flight):
                self._give_up()  # the manager has waited for as long as it may
            if not self.in_flight and not self._fetcher.is_fetching:
                self._end_services()
        finally:
            self.in_flight.notify()

    def stop(self) -> None:
        """Stop claiming; claimed jobs continue."""
        self._fetcher.stop()

    def cancel_job(self, id: str) -> None:
        """Cancel the attempt of a job that was cancelled, if this worker runs it."""
        for attempt in self.in_flight:
            if attempt.job.id == id:
                attempt.cancel()

    def leave_until(self, since: float) -> float:
        """Return until when jobs may run, if the queue is left since a time."""
        timeout = self._host.config.leave_timeout
        return inf if timeout is None else since + timeout

    async def close(self, timeout: float | None = None) -> None:
        """Close the worker, as `Worker.close()` describes."""
        until = inf if timeout is None else anyio.current_time() + timeout
        await close_workers([(self, until)])

    # The steps of `close_workers`

    def begin_to_close(self, caller: JobAttempt | None) -> None:
        """Stop claiming, and count the call.

        Args:
            caller: The attempt that the calling code belongs to; it is not waited for.

        Raises:
            QueueError: The caller runs in another event loop or thread.
        """
        if not self._host.backend.is_current():
            raise QueueError("the worker runs in another event loop or thread: close it there")
        self.stop()
        self._closing[caller] += 1
        self.in_flight.notify()

    async def wait_for_jobs(self, caller: JobAttempt | None, until: float) -> None:
        """Wait for the end of attempts; release those that are left at a time."""
        with anyio.CancelScope(deadline=until):
            idle, left = partial(self._idle, caller), partial(self._handles, caller)
            await self._host.wait_and_log(idle, left)
        for attempt in self._remaining(caller):
            attempt.release()
        self._clean_until = anyio.current_time() + self._host.config.cancel_timeout

    async def clean_up(self, caller: JobAttempt | None) -> None:
        """Wait for released attempts and their settlements, and end the loops."""
        with anyio.CancelScope(deadline=self._clean_until) as cleaning_up:
            await self._idle(caller)
            await self._fetcher.ended()
            await self._completer.drain()
        if cleaning_up.cancelled_caught:
            self._give_up()
        self._stuck |= self._remaining(caller)
        self._is_ending = True
        self._end_services()

    def end_closing(self, caller: JobAttempt | None) -> None:
        """Forget a call that `begin_to_close` counted."""
        self._closing[caller] -= 1

    def _give_up(self) -> None:
        """Interrupt calls of a broker that does not answer, because there is no time left."""
        calls = self._fetcher.give_up(), self._completer.give_up()
        self.gave_up |= any(calls)

    def _remaining(self, caller: JobAttempt | None) -> set[JobAttempt]:
        """Return the attempts that a call of `close()` waits for.

        An earlier call has given up those that are stuck.
        """
        left = set(self.in_flight) - self._stuck
        if caller is None:
            return left
        return {attempt for attempt in left if not self._closing[attempt]}

    def _handles(self, caller: JobAttempt | None) -> list[TaskHandle[Any]]:
        """Return the handles of these attempts, oldest first."""
        handles = (attempt.handle for attempt in self._remaining(caller))
        started = [handle for handle in handles if handle is not None]
        return sorted(started, key=lambda handle: handle.submitted_at)

    async def _idle(self, caller: JobAttempt | None) -> None:
        """Wait until no attempt remains, and no job can be claimed any more.

        Once the manager has closed, it does not wait for them.
        """
        while self._remaining(caller) or self._fetcher.is_fetching:
            if self._host.is_closed:
                return
            await self.in_flight.wait_for_change()

    def _remove(self, attempt: JobAttempt) -> None:
        self.in_flight.remove(attempt)
        if self._is_ending:
            self._end_services()

    def _end_services(self) -> None:
        """End the loops when no attempt is left that can be settled."""
        if not self._is_closed and set(self.in_flight) <= self._stuck:
            self._is_closed = True
            self._unregister()
            self._completer.close()
            for scope in list(self._scopes):
                scope.cancel()
            worker_stopped(self.queues)


async def close_workers(workers: Sequence[tuple[WorkerLoops, float]]) -> None:
    """Close workers at the same time.

    Args:
        workers: The workers, and until when their jobs may run, on the event loop's clock.

    Raises:
        QueueError: The caller runs in another event loop or thread.
    """
    caller = current_attempt()
    begun: list[WorkerLoops] = []
    try:
        for worker, _ in workers:
            worker.begin_to_close(caller)
            begun.append(worker)
        # Each wait ends later than the one before, so none delays the release of jobs.
        for worker, until in sorted(workers, key=itemgetter(1)):
            await worker.wait_for_jobs(caller, until)
        for worker in begun:
            await worker.clean_up(caller)
    finally:
        for worker in begun:
            worker.end_closing(caller)
