"""The workers of a queue, and the loops of its schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio

from ..._errors import LoopsStoppedError
from ..._eventloop.interruption import run_shielded
from ..._execution.handle import TaskHandle
from ..._manager import Manager, host_of
from ..._observer import Observer
from ..._states import ManagerState
from ..._task import Task
from .._client import Client
from .._enqueue.enqueuer import Enqueuer
from .._enqueue.handler import Handler
from .announcement import worker_started
from .loops import WorkerLoops, close_workers
from .selection import Selection
from .worker import Worker

#: Describes the loop of a schedule, separately for each manager.
DescribeLoop = Callable[[], Task[None]]


class WorkerPool:
    """The workers and the schedules of a queue, in any number of managers.

    Args:
        client: The broker and the store of results.
        enqueuer: Notifies the managers' observers of enqueued jobs.
        handlers: The queue's handlers, by name.
        observers: The queue's observers.
        lease: Seconds for which jobs are claimed.
        max_crashes: A job is dead when this many workers have died while they ran it.
        unknown_for: Seconds for which a job that a worker can't run is released.
        with_baggage: Whether baggage that is stored with a job is attached when it runs.
    """

    def __init__(
        self,
        client: Client,
        enqueuer: Enqueuer,
        handlers: Mapping[str, Handler[..., Any, Any]],
        observers: tuple[Observer, ...],
        *,
        lease: float,
        max_crashes: int,
        unknown_for: float,
        with_baggage: bool,
    ) -> None:
        self._client = client
        self._enqueuer = enqueuer
        self._handlers = handlers
        self._observers = observers
        self._lease = lease
        self._max_crashes = max_crashes
        self._unknown_for = unknown_for
        self._with_baggage = with_baggage
        self._workers: list[WorkerLoops] = []
        self._managers: list[Manager] = []
        self._schedules: list[TaskHandle[None]] = []

    def start(
        self,
        manager: Manager,
        queues: Selection,
        concurrency: int,
        schedules: Sequence[DescribeLoop],
    ) -> Worker:
        """Start a worker, and for a new manager the loops of the schedules.

        Raises:
            ManagerNotRunningError: The manager was not entered.
            LoopsStoppedError: The manager shuts down.
        """
        host = host_of(manager, "start")
        host.require_running()
        worker = WorkerLoops(
            host,
            self._client,
            self._handlers,
            self._observers,
            queues,
            concurrency=concurrency,
            lease=self._lease,
            max_crashes=self._max_crashes,
            unknown_for=self._unknown_for,
            with_baggage=self._with_baggage,
        )
        worker_started(
            self._client.broker,
            queues,
            self._handlers,
            concurrency=concurrency,
            lease=self._lease,
            schedules=len(schedules),
        )
        worker.start()
        self._workers = [started for started in self._workers if not started.is_closed]
        self._workers.append(worker)
        if manager not in self._managers:
            running = [used for used in self._managers if used.state is not ManagerState.CLOSED]
            self._managers = [*running, manager]
            self._schedules = [loop for loop in self._schedules if not loop.done]
            self._enqueuer.join(host)
            self._schedules += (manager.run_task(describe()) for describe in schedules)
        return Worker(worker)

    def add_schedule(self, describe: DescribeLoop) -> None:
        """Start the loop of a schedule that was added while the queue is open."""
        for manager in self._managers:
            if manager.state is ManagerState.RUNNING:
                with suppress(LoopsStoppedError):
                    self._schedules.append(manager.run_task(describe()))

    def cancel_job(self, id: str) -> None:
        """Cancel a job that runs here, before the next renewal of its lease reports it."""
        for worker in self._workers:
            worker.cancel_job(id)

    @property
    def gave_up(self) -> bool:
        """Whether a worker was closed while its broker did not answer."""
        return any(worker.gave_up for worker in self._workers)

    @property
    def claimed_queues(self) -> set[str]:
        """The queues that the workers claim from."""
        claiming = (worker for worker in self._workers if worker.is_claiming)
        return {name for worker in claiming for name in worker.queues.names}

    def next_changes(self) -> list[anyio.Event]:
        """Return for each worker the event of the next end of an attempt."""
        return [worker.in_flight.next_change() for worker in self._workers]

    async def close(self, *, at_once: bool) -> None:
        """End the loops and the workers.

        Args:
            at_once: Whether running jobs are released instead of finished.
        """
        for loop in self._schedules:
            loop.cancel("stopped")
        for worker in self._workers:
            worker.stop()
        try:
            if not at_once:
                began = anyio.current_time()
                workers = self._workers
                await close_workers([(worker, worker.leave_until(began)) for worker in workers])
        finally:
            interrupted = await run_shielded(self._release)
            if interrupted is not None:
                raise interrupted

    async def _release(self) -> None:
        now = anyio.current_time()
        await close_workers([(worker, now) for worker in self._workers])
