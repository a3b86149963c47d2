"""The workers that a queue has started, and the loops of its schedules beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..._errors import LoopsStoppedError
from ..._eventloop.interruption import insist
from ..._execution.handle import TaskHandle
from ..._manager import Manager
from ..._observer import Observer
from ..._states import ManagerState
from ..._task import Task
from .._client import Client
from .._enqueue.announcer import Announcer
from .._enqueue.handler import Handler
from .preparation import Planner
from .selection import Selection
from .worker import Worker

Describe = Callable[[], Task[None]]


class Workforce:
    """All that runs for a queue, in however many managers."""

    def __init__(
        self,
        client: Client,
        announcer: Announcer,
        handlers: Mapping[str, Handler[..., Any, Any]],
        observers: tuple[Observer, ...],
        *,
        lease: float,
        max_crashes: int,
    ) -> None:
        self._client = client
        self._announcer = announcer
        self._handlers = handlers
        self._observers = observers
        self._lease = lease
        self._max_crashes = max_crashes
        self._workers: list[Worker] = []
        self._managers: list[Manager] = []
        self._loops: list[TaskHandle[None]] = []

    def start(
        self,
        manager: Manager,
        queues: Selection,
        concurrency: int,
        schedules: list[Describe],
    ) -> Worker:
        """Start a worker, and the first time for a manager the loops of schedules.

        Raises `ManagerNotRunningError`, and `LoopsStoppedError` for a manager that shuts down.
        """
        life = manager._here("start")
        if manager.state is not ManagerState.RUNNING or life.runner.loops_stopped:
            raise LoopsStoppedError(
                f"manager {manager.name!r} takes no more workers: it shuts down"
            )
        settings = manager._settings
        planner = Planner(
            self._handlers,
            self._observers,
            settings.policy,
            max_payload=self._client.max_payload,
            max_crashes=self._max_crashes,
        )
        worker = Worker(
            life,
            self._client,
            planner,
            queues,
            concurrency=concurrency,
            lease=self._lease,
            cancel_timeout=settings.cancel_timeout,
        )
        worker._start()
        self._workers = [each for each in self._workers if not each._is_closed]
        self._workers.append(worker)
        if manager not in self._managers:
            self._managers.append(manager)
            self._announcer.join(life)
            self._loops += (manager.run_task(describe()) for describe in schedules)
        return worker

    def add_schedule(self, describe: Describe) -> None:
        """Start the loop of another schedule."""
        for manager in self._managers:
            if manager.state is ManagerState.RUNNING:
                self._loops.append(manager.run_task(describe()))

    def cancel(self, id: str) -> None:
        """Cancel a job if it runs here, without waiting for the broker to tell."""
        for worker in self._workers:
            worker._cancel(id)

    async def close(self, *, at_once: bool) -> None:
        """End loops and workers; jobs that run are waited for, or handed back at once."""
        for loop in self._loops:
            loop.cancel("the queue was left")
        for worker in self._workers:
            worker._stop()
        try:
            if not at_once:
                for worker in self._workers:
                    await worker.close()
        finally:
            await insist(self._hand_back)

    async def _hand_back(self) -> None:
        for worker in self._workers:
            await worker.close(timeout=0)
