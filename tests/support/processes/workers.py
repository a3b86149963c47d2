"""Workers in separate processes, and clients that enqueue jobs for them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

from anyio.from_thread import BlockingPortal, start_blocking_portal
from opentelemetry.context import Context, attach

from background.queues import JobInfo, JobQueue
from background.queues.abc import Broker, Message
from support.brokers.stores import Store
from support.processes.history import PATIENCE, End, History, Log
from support.processes.process import IMPORTS
from support.processes.programs import job_worker

_methods = multiprocessing.get_all_start_methods()
_processes = multiprocessing.get_context("forkserver" if "forkserver" in _methods else "spawn")
_processes.set_forkserver_preload(
    [
        "support.processes.programs.job_worker",
        "uvloop",
        "anyio._backends._asyncio",
        "anyio._backends._trio",
    ]
    + [f"background.queues.{name}" for name in ("sqlite", "redis", "nats")]
)
_queues = count()


async def placeholder(*args: Any) -> Any:
    """A placeholder for the workers' handlers where jobs are enqueued."""


class Client:
    """A job queue in this process, with an event loop in a thread."""

    def __init__(self, portal: BlockingPortal, jobs: JobQueue, queue: str, log: Log) -> None:
        self._portal = portal
        self._jobs = jobs
        self._queue = queue
        self._log = log

    @property
    def broker(self) -> Broker:
        return self._jobs._client.broker

    def enqueue(self, name: str, *args: Any, context: Context | None = None, **options: Any) -> str:
        """Enqueue a job, optionally in a trace context, and return its id."""

        async def enqueue() -> str:
            if context is not None:
                attach(context)
            job = await self._jobs.enqueue(name, args, queue=self._queue, **options)
            return job.id

        id = self._portal.call(enqueue)
        self._log.acknowledged([id])
        return id

    def enqueue_many(self, name: str, calls: Sequence[Sequence[Any]]) -> list[str]:
        """Enqueue jobs and return their ids."""
        handler = self._jobs._handlers.get(name)
        if handler is None:
            handler = self._jobs.handler(name=name, queue=self._queue)(placeholder)
        handles = self._portal.call(handler.enqueue_many, calls)
        ids = [handle.id for handle in handles]
        self._log.acknowledged(ids)
        return ids

    def put(self, id: str, body: bytes, handler: str = "echo") -> None:
        """Enqueue a body directly at the broker, without any validation."""
        message = Message(
            id=id, handler=handler, queue=self._queue, body=body, retention=600, dead_retention=600
        )
        assert self._portal.call(self.broker.enqueue, [message]) == [True]

    def wait(self, *ids: str) -> list[str]:
        """Wait until jobs have ended, and return their states."""

        async def wait() -> list[str]:
            return [str(await self._jobs.handle(id).wait(PATIENCE)) for id in ids]

        return self._portal.call(wait)

    def result(self, id: str) -> Any:
        async def result() -> Any:
            return await self._jobs.handle(id).result(PATIENCE)

        return self._portal.call(result)

    def cancel(self, id: str) -> bool:
        return self._portal.call(self._jobs.cancel, id)

    def info(self, id: str) -> JobInfo:
        info = self._portal.call(self._jobs.get, id)
        assert info is not None
        return info

    def count(self, state: Any = None) -> int:
        return self._portal.call(partial(self._jobs.count, queue=self._queue, state=state))

    def ends(self) -> dict[str, End]:
        """Return the state and attempt of every job in the broker."""

        async def ends() -> dict[str, End]:
            return {
                job.message.id: End(job.state.value, job.attempt)
                async for job in self.broker.scan(queue=self._queue)
            }

        return self._portal.call(ends)


class Worker:
    """A worker process, forked from a server process that has imported all modules."""

    def __init__(self, name: str, log: Log, *arguments: str) -> None:
        self.name = name
        self._log = log
        self._process = _processes.Process(target=job_worker.run, args=arguments)
        path = os.pathsep.join([*IMPORTS, os.environ.get("PYTHONPATH", "")])
        with patch.dict(os.environ, PYTHONPATH=path):
            self._process.start()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self) -> int:
        """Wait until the process has ended, and return its exit status."""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None, f"{self.name} does not end"
        return self._process.exitcode

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        with self._log.fault(self.name, "killed"):
            self.send(signal.SIGKILL)
            self.wait()

    def clean_up(self) -> None:
        """Kill the process if it still runs, and release its resources."""
        self._process.kill()
        self.wait()
        self._process.close()


class Cluster:
    """The workers of one queue, with a client and a history."""

    def __init__(self, store: Store, folder: Path, url: str | None = None) -> None:
        self._stack = ExitStack()
        self._backends = cycle(store.backends)
        self._names = count(1)
        self.url = store.url(folder) if url is None else url
        self.queue = f"{os.getpid()}-{next(_queues)}"
        self.log = Log(folder / f"history-{self.queue}")

    def __enter__(self) -> Cluster:
        self._stack.callback(self.log.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def client(self, url: str | None = None) -> Iterator[Client]:
        """Open a client, for a different URL if one is given."""
        with start_blocking_portal("asyncio") as portal:
            jobs = JobQueue.from_url(self.url if url is None else url)
            with portal.wrap_async_context_manager(jobs):
                yield Client(portal, jobs, self.queue, self.log)

    def start(self, *, url: str | None = None, **options: object) -> Worker:
        """Start a worker without waiting for it; options are those of the script."""
        name = f"worker {next(self._names)}"
        arguments = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        backend, target = next(self._backends), self.url if url is None else url
        queue = f"--queue={self.queue}"
        history = str(self.log.path)
        worker = Worker(name, self.log, backend, target, history, name, queue, *arguments)
        self._stack.callback(worker.clean_up)
        return worker

    def started(self, **options: Any) -> Worker:
        """Start a worker and wait until it claims jobs."""
        worker = self.start(**options)
        self.log.wait_for_entries(process=worker.name, event="ready")
        return worker

    def history(self, client: Client, *, slack: float = 1.0) -> History:
        return History(self.log.entries(), self.log.faults, client.ends(), slack=slack)
