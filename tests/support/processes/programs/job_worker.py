"""A worker of durable jobs as a program: `python job_worker.py --help`.

The worker writes the events of its jobs, its log records and its peak memory to a history.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
from opentelemetry import propagate

from background import (
    Manager,
    ManagerClosed,
    Observer,
    TaskCancelled,
    TaskFailed,
    TaskRetrying,
    TaskSucceeded,
    every,
    retry_on,
)
from background._support import clock
from background.queues import JobContext, JobQueue, Ordered, QueueError
from background.queues._worker import decision
from support.processes.history import Notes
from support.processes.programs.signalled import BACKENDS

_BEAT = 0.1  # seconds between two checks for a pause of this process


class AttemptRecorder(Observer):
    """Records how attempts of jobs end."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def _add(self, name: str, event: Any, detail: str = "") -> None:
        self._notes.add(name, event.job.id, event.job.attempt, detail)

    def on_task_succeeded(self, event: TaskSucceeded) -> None:
        self._add("succeeded", event)

    def on_task_retrying(self, event: TaskRetrying) -> None:
        self._add("retrying", event, repr(event.error))

    def on_task_failed(self, event: TaskFailed) -> None:
        self._add("failed", event, repr(event.error))

    def on_task_cancelled(self, event: TaskCancelled) -> None:
        self._add("cancelled", event, event.reason or "")


class ShutdownRecorder(Observer):
    """Records shutdown requests, and the peak memory when the manager has closed."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    async def watch(self, manager: Manager) -> None:
        await manager.shutdown_requested()
        self._notes.add("shutdown requested")

    def on_manager_closed(self, event: ManagerClosed) -> None:
        self._notes.add("memory", detail=f"{peak_memory():.1f}")


class LogRecorder(logging.Handler):
    """Records the log records of the library."""

    def __init__(self, notes: Notes) -> None:
        super().__init__(logging.INFO)
        self._notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        self._notes.add("logged", detail=record.getMessage())


def register_handlers(jobs: JobQueue, notes: Notes, queue: str, backend: str) -> None:
    """Register the handlers; each records its start and its end."""

    def record(event: str) -> None:
        context = JobContext.current()
        notes.add(event, context.id, context.attempt)

    def handler(**options: Any) -> Callable[[Any], Any]:
        def decorate(fn: Any) -> Any:
            return jobs.handler(queue=queue, name=fn.__name__, **options)(fn)

        return decorate

    @handler()
    async def work(seconds: float) -> None:
        record("started")
        await anyio.sleep(seconds)
        record("returned")

    @handler(retry=retry_on(ConnectionError))
    async def fail_once(seconds: float) -> None:
        record("started")
        await anyio.sleep(seconds)
        if JobContext.current().attempt == 1:
            raise ConnectionError("no such host")
        record("returned")

    @handler()
    async def hold(path: str) -> None:
        """Run until the file exists."""
        record("started")
        while not exists(path):  # noqa: ASYNC110 - there is no event to wait for
            await anyio.sleep(0.01)
        record("returned")

    @handler()
    async def die() -> None:
        record("started")
        os.kill(os.getpid(), signal.SIGKILL)

    @handler()
    async def block(seconds: float) -> None:
        """Block the event loop, in the first attempt only."""
        record("started")
        if JobContext.current().attempt == 1:
            block_for(seconds)
        record("returned")

    @handler()
    def fork() -> list[str]:
        """Use the inherited queue in a forked child, and return the answers."""
        record("started")
        answers = use_in_child(jobs, backend)
        record("returned")
        return answers

    @handler()
    async def shift(seconds: float) -> None:
        """Move the wall clock of this process."""
        record("started")
        clock.wall = lambda: time.time() + seconds
        record("returned")

    @handler()
    async def measure(text: str) -> int:
        record("started")
        record("returned")
        return len(text)

    @handler()
    async def beat() -> None:
        record("started")
        record("returned")

    @handler()
    async def carry() -> dict[str, str]:
        """Return the trace context of this job."""
        record("started")
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        record("returned")
        return carrier

    @handler()
    async def echo(value: Any) -> Any:
        record("started")
        record("returned")
        return value


def register_version(jobs: JobQueue, notes: Notes, queue: str, version: str) -> None:
    """Register the handlers that only one version of a service has, or has with this signature."""

    def record() -> None:
        context = JobContext.current()
        notes.add("started", context.id, context.attempt)
        notes.add("returned", context.id, context.attempt)

    async def changed_old(a: int) -> int:
        record()
        return a

    async def changed_new(a: int, b: int) -> int:
        record()
        return a + b

    async def only() -> str:
        record()
        return version

    changed = changed_old if version == "old" else changed_new
    jobs.handler(queue=queue, name="changed")(changed)
    jobs.handler(queue=queue, name=f"only_{version}")(only)


def block_for(seconds: float) -> None:
    time.sleep(seconds)


def exists(path: str) -> bool:
    return os.access(path, os.F_OK)


def use_in_child(jobs: JobQueue, backend: str) -> list[str]:
    """Fork in a thread: the child then has no running event loop and can start one."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a fork with threads
        child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as pipe:
            answers = pipe.read().splitlines()
        os.waitpid(child, 0)
        return answers
    try:
        warnings.simplefilter("ignore")
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            for answer in anyio.run(use_inherited, jobs, **BACKENDS[backend]):
                pipe.write(f"{answer}\n")
    finally:
        os._exit(0)


async def use_inherited(jobs: JobQueue) -> list[str]:
    answers = []
    for use in (lambda: jobs.enqueue("work", [0]), lambda: jobs.count()):
        try:
            await use()
            answers.append("accepted")
        except QueueError as error:
            answers.append(f"refused: {error}")
    return answers


async def main(options: argparse.Namespace, notes: Notes) -> None:
    jobs = JobQueue.from_url(
        options.url,
        lease=options.lease,
        max_crashes=options.max_crashes,
        observers=[AttemptRecorder(notes)],
    )
    register_handlers(jobs, notes, options.queue, options.backend)
    if options.version:
        register_version(jobs, notes, options.queue, options.version)
        decision._SHORTEST_DELAY, decision._LONGEST_DELAY = 0.05, 0.2
    if options.every:
        jobs.schedule(every(options.every), jobs._handlers["beat"].job())
    signals = {signal.SIGTERM, signal.SIGINT}
    manager = Manager(signals=signals, grace=options.grace, observers=[ShutdownRecorder(notes)])
    async with manager, jobs:
        await jobs.start(manager, Ordered(options.queue), concurrency=options.concurrency)
        notes.add("ready")
        await manager.shutdown_requested()


def watch_process(notes: Notes) -> None:
    """Record pauses of this process or the machine; end when the tests' process has ended."""
    tests = multiprocessing.parent_process()
    while tests is None or tests.is_alive():
        began = time.monotonic()
        time.sleep(_BEAT)
        late = time.monotonic() - began - _BEAT
        if late > _BEAT:
            notes.add("paused", detail=f"{late:.3f}")
    os.kill(os.getpid(), signal.SIGKILL)


def peak_memory() -> float:
    """Return the peak memory of this process in MB."""
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=BACKENDS)
    parser.add_argument("url")
    parser.add_argument("history", type=Path)
    parser.add_argument("name", help="name of this worker in the history")
    parser.add_argument("--queue", default="q")
    parser.add_argument("--lease", type=float, default=30.0)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--grace", type=float, default=0.0)
    parser.add_argument("--max-crashes", type=int, default=3)
    parser.add_argument("--every", type=float, default=0.0, help="seconds between jobs")
    parser.add_argument("--version", choices=["", "old", "new"], default="", help="of the service")
    parser.add_argument("--clock", type=float, default=0.0, help="seconds its clock is ahead")
    return parser.parse_args(arguments)


def run(*arguments: str) -> None:
    """Process jobs until a shutdown is requested."""
    options = parse(arguments)
    warnings.filterwarnings("ignore", "several connections")
    if options.clock:
        clock.wall = lambda: time.time() + options.clock
    notes = Notes(options.history, options.name)
    logger = logging.getLogger("background")
    logger.addHandler(LogRecorder(notes))
    logger.setLevel(logging.INFO)
    threading.Thread(target=watch_process, args=(notes,), daemon=True).start()
    try:
        anyio.run(main, options, notes, **BACKENDS[options.backend])
    except BaseException:
        notes.add("crashed", detail=traceback.format_exc())
        raise


if __name__ == "__main__":
    run(*sys.argv[1:])
