"""A worker of durable jobs in a process of its own: `python job_worker.py --help`.

It notes in a history what happens to its jobs, what it logs, and how much memory it took at most.
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
)
from background._support import clock
from background.queues import JobContext, JobQueue, Ordered, QueueError
from support.processes.history import Notes
from support.processes.programs.signalled import BACKENDS

_BEAT = 0.1  # seconds between two looks at whether this process was stopped


class Noting(Observer):
    """Notes how attempts of jobs end."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def _note(self, what: str, event: Any, detail: str = "") -> None:
        self._notes.add(what, event.job.id, event.job.attempt, detail)

    def on_task_succeeded(self, event: TaskSucceeded) -> None:
        self._note("succeeded", event)

    def on_task_retrying(self, event: TaskRetrying) -> None:
        self._note("retrying", event, repr(event.error))

    def on_task_failed(self, event: TaskFailed) -> None:
        self._note("failed", event, repr(event.error))

    def on_task_cancelled(self, event: TaskCancelled) -> None:
        self._note("cancelled", event, event.reason or "")


class Leaving(Observer):
    """Notes how much memory the process took."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    async def watch(self, manager: Manager) -> None:
        await manager.shutdown_requested()
        self._notes.add("shutdown requested")

    def on_manager_closed(self, event: ManagerClosed) -> None:
        self._notes.add("memory", detail=f"{memory():.1f}")


class Logging(logging.Handler):
    """Notes what the library logs."""

    def __init__(self, notes: Notes) -> None:
        super().__init__(logging.INFO)
        self._notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        self._notes.add("logged", detail=record.getMessage())


def declare(jobs: JobQueue, notes: Notes, queue: str, backend: str) -> None:
    """Declare the handlers; each notes its start and its end."""

    def note(what: str) -> None:
        context = JobContext.current()
        notes.add(what, context.id, context.attempt)

    def handler(**options: Any) -> Callable[[Any], Any]:
        def decorate(fn: Any) -> Any:
            return jobs.handler(queue=queue, name=fn.__name__, **options)(fn)

        return decorate

    @handler()
    async def work(seconds: float) -> None:
        note("started")
        await anyio.sleep(seconds)
        note("returned")

    @handler(retry=5)
    async def fail_once(seconds: float) -> None:
        note("started")
        await anyio.sleep(seconds)
        if JobContext.current().attempt == 1:
            raise ConnectionError("no such host")
        note("returned")

    @handler()
    async def hold(path: str) -> None:
        """Run until there is a file."""
        note("started")
        while not exists(path):  # noqa: ASYNC110 - nothing else tells
            await anyio.sleep(0.01)
        note("returned")

    @handler()
    async def die() -> None:
        note("started")
        os.kill(os.getpid(), signal.SIGKILL)

    @handler()
    async def block(seconds: float) -> None:
        """Block the event loop, but only the first time."""
        note("started")
        if JobContext.current().attempt == 1:
            block_for(seconds)
        note("returned")

    @handler()
    def fork() -> list[str]:
        """Have a child try what it has inherited, and return what it was told."""
        note("started")
        told = forked(jobs, backend)
        note("returned")
        return told

    @handler()
    async def shift(seconds: float) -> None:
        """Move the wall clock of this process."""
        note("started")
        clock.wall = lambda: time.time() + seconds
        note("returned")

    @handler()
    async def measure(text: str) -> int:
        note("started")
        note("returned")
        return len(text)

    @handler()
    async def beat() -> None:
        note("started")
        note("returned")

    @handler()
    async def carry() -> dict[str, str]:
        """Return the trace context that it runs in."""
        note("started")
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        note("returned")
        return carrier

    @handler()
    async def echo(value: Any) -> Any:
        note("started")
        note("returned")
        return value


def block_for(seconds: float) -> None:
    time.sleep(seconds)


def exists(path: str) -> bool:
    return os.access(path, os.F_OK)


def forked(jobs: JobQueue, backend: str) -> list[str]:
    """Fork from a thread, so that the child can have an event loop of its own."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are threads
        child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as answers:
            told = answers.read().splitlines()
        os.waitpid(child, 0)
        return told
    try:
        warnings.simplefilter("ignore")
        with os.fdopen(writing, "w", encoding="utf-8") as answers:
            for told in anyio.run(use_inherited, jobs, **BACKENDS[backend]):
                answers.write(f"{told}\n")
    finally:
        os._exit(0)


async def use_inherited(jobs: JobQueue) -> list[str]:
    told = []
    for use in (lambda: jobs.enqueue("work", [0]), lambda: jobs.count()):
        try:
            await use()
            told.append("accepted")
        except QueueError as error:
            told.append(f"refused: {error}")
    return told


async def main(options: argparse.Namespace, notes: Notes) -> None:
    jobs = JobQueue.from_url(
        options.url,
        lease=options.lease,
        max_crashes=options.max_crashes,
        observers=[Noting(notes)],
    )
    declare(jobs, notes, options.queue, options.backend)
    if options.every:
        jobs.schedule(every(options.every), jobs._handlers["beat"].job())
    signals = {signal.SIGTERM, signal.SIGINT}
    manager = Manager(signals=signals, grace=options.grace, observers=[Leaving(notes)])
    async with manager, jobs:
        await jobs.start(manager, Ordered(options.queue), concurrency=options.concurrency)
        notes.add("ready")
        await manager.shutdown_requested()


def watch_out(notes: Notes) -> None:
    """Note when this process, or the machine, has stood still; end with the tests' process."""
    tests = multiprocessing.parent_process()
    while tests is None or tests.is_alive():
        began = time.monotonic()
        time.sleep(_BEAT)
        late = time.monotonic() - began - _BEAT
        if late > _BEAT:
            notes.add("paused", detail=f"{late:.3f}")
    os.kill(os.getpid(), signal.SIGKILL)


def memory() -> float:
    """Return how many MB this process has taken at most."""
    import resource  # which Windows has not

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=BACKENDS)
    parser.add_argument("url")
    parser.add_argument("history", type=Path)
    parser.add_argument("name", help="of this worker, in the history")
    parser.add_argument("--queue", default="q")
    parser.add_argument("--lease", type=float, default=30.0)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--grace", type=float, default=0.0)
    parser.add_argument("--max-crashes", type=int, default=3)
    parser.add_argument("--every", type=float, default=0.0, help="seconds between two beats")
    parser.add_argument("--clock", type=float, default=0.0, help="seconds that its clock is ahead")
    return parser.parse_args(arguments)


def run(*arguments: str) -> None:
    """Work until asked to leave."""
    options = parsed(arguments)
    warnings.filterwarnings("ignore", "several connections")
    if options.clock:
        clock.wall = lambda: time.time() + options.clock
    notes = Notes(options.history, options.name)
    logger = logging.getLogger("background")
    logger.addHandler(Logging(notes))
    logger.setLevel(logging.INFO)
    threading.Thread(target=watch_out, args=(notes,), daemon=True).start()
    try:
        anyio.run(main, options, notes, **BACKENDS[options.backend])
    except BaseException:
        notes.add("crashed", detail=traceback.format_exc())
        raise


if __name__ == "__main__":
    run(*sys.argv[1:])
