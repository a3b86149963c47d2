"""Programs that fork inside a manager or an open queue: `python forked.py BACKEND PROGRAM`."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import isawaitable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import anyio

from background import BackgroundError, Manager, Task
from background.queues import JobQueue
from background.queues.memory import MemoryBroker, MemoryResults
from support.processes.programs.signalled import BACKENDS, say

INT, TERM = signal.SIGINT, signal.SIGTERM
processes: Any = multiprocessing.get_context("fork")


def wait_in_child(ready: Connection) -> NoReturn:
    """Report that the child runs, and wait until a signal ends it."""
    ready.send("ready")
    while True:
        time.sleep(60)


def start_child(*, daemon: bool) -> Any:
    """Start a child of `multiprocessing`, and wait until it runs."""
    receiving, sending = processes.Pipe(duplex=False)
    child = processes.Process(target=wait_in_child, args=(sending,), daemon=daemon)
    child.start()
    receiving.recv()
    return child


@contextmanager
def forked() -> Iterator[bool]:
    """Fork; yield whether this is the child, which ends with the block."""
    child = os.fork()
    if child:
        yield False
        _, status = os.waitpid(child, 0)
        say("child ended with", os.waitstatus_to_exitcode(status))
        return
    try:
        yield True
    except BaseException as error:
        say("child raised", repr(error))
    finally:
        os._exit(0)


async def terminates_a_child() -> None:
    """End a child with `terminate()`."""
    async with Manager(signals=True) as manager:
        child = start_child(daemon=False)
        child.terminate()
        child.join()
        await anyio.sleep(0.01)
        say("child ended with", child.exitcode)
        say("manager is", manager.state)


async def leaves_a_daemon() -> None:
    """Exit while a daemonic child runs, which the interpreter terminates and waits for."""
    async with Manager(signals=True):
        start_child(daemon=True)
        say("leaving")


async def raises_in_child() -> None:
    """Raise both signals in nested managers' children."""
    async with Manager(signals=True), Manager(signals={TERM}) as manager:
        for number in (TERM, INT):
            with forked() as is_child:
                if is_child:
                    signal.raise_signal(number)
                    signal.raise_signal(number)  # at the first SIGINT asyncio cancels the main task
        say("manager is", manager.state)


async def has_python_handler() -> None:
    """Raise a signal in a child whose parent had a handler before the manager."""

    def handle(number: int, frame: object) -> None:
        say("handler called with", number, "in the child" if os.getpid() != parent else "here")

    parent = os.getpid()
    signal.signal(TERM, handle)
    async with Manager(signals={TERM}) as manager:
        with forked() as is_child:
            if is_child:
                signal.raise_signal(TERM)
                say("restored:", signal.getsignal(TERM) is handle)
        await anyio.sleep(0.01)
        say("manager is", manager.state)


async def has_loop_handler() -> None:
    """Raise a signal in a child whose parent has a callback of the event loop."""
    called: list[int] = []
    asyncio.get_running_loop().add_signal_handler(TERM, called.append, 1)
    async with Manager(signals={TERM}) as manager:
        with forked() as is_child:
            if is_child:
                signal.raise_signal(TERM)
        await anyio.sleep(0.01)
        say("calls:", len(called), "manager is", manager.state)


async def has_left() -> None:
    """Fork after a manager was left, in a program with a wakeup descriptor."""
    async with Manager(signals={TERM}):
        pass
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with forked() as is_child:
        if is_child:
            say("same descriptor:", signal.set_wakeup_fd(-1) == before)


async def report(what: str, call: Callable[[], Any]) -> None:
    """Print the result or the error of a call in the child."""
    try:
        result = call()
        if isawaitable(result):
            result = await result
    except BackgroundError as error:
        say(what, "raised", type(error).__name__, "about a fork" * ("before a fork" in str(error)))
    else:
        say(what, "returned", result)


def run_in_child(fn: Callable[[], Any]) -> None:
    """Run an async function in a child; called in a thread, so that no event loop runs there."""
    with forked() as is_child:
        if is_child:
            anyio.run(fn)


async def uses_the_manager() -> None:
    """Use the manager and a task's handle in a child that has an event loop."""
    async with Manager() as manager:
        sleeping = manager.run(anyio.sleep_forever)

        async def use() -> None:
            await report("run", lambda: manager.run(anyio.sleep, 0))
            await report("every", lambda: manager.every(60, anyio.sleep, 0))
            await report("submit", lambda: manager.submit(Task(anyio.sleep, args=(0,))))
            await report("wait", manager.wait)
            await report("stop_loops", manager.stop_loops)
            await report("close", manager.close)
            await report("shutdown_requested", manager.shutdown_requested)
            await report("request_shutdown", manager.request_shutdown)
            await report("cancel", lambda: manager.cancel(sleeping.id))
            await report("result", sleeping.result)
            await report("health().ok", lambda: manager.health().ok)
            async with Manager() as own:
                await report("own", lambda: own.run(anyio.sleep, 0))

        await anyio.to_thread.run_sync(run_in_child, use)
        await report("health().ok", lambda: manager.health().ok)
        await report("cancel", sleeping.cancel)


async def leaves_the_block(block: Any, error: Exception | None) -> None:
    """Leave a block in the child only, by return or by an error."""
    child = 0
    try:
        async with block:
            child = os.fork()
            if not child and error is not None:
                raise error
    except Exception as caught:
        say("child raised", type(caught).__name__)
    if not child:
        os._exit(0)
    await anyio.to_thread.run_sync(os.waitpid, child, 0)


async def leaves_blocks() -> None:
    """Leave blocks of managers and queues in children."""
    for error in (None, KeyError()):
        await leaves_the_block(Manager(), error)
        await leaves_the_block(JobQueue(MemoryBroker()), error)


async def uses_the_queue() -> None:
    """Use a queue and a job's handle in a child that has an event loop."""
    jobs = JobQueue(MemoryBroker(), results=MemoryResults())
    handler = jobs.handler(name="sleep")(anyio.sleep)

    async with Manager() as manager, jobs:
        job = await handler.enqueue(0)

        async def use() -> None:
            await report("enqueue", lambda: handler.enqueue(0))
            await report("enqueue_many", lambda: jobs.enqueue_many([handler.job(0)]))
            await report("start", lambda: jobs.start(manager))
            await report("get", lambda: jobs.get(job.id))
            await report("count", jobs.count)
            await report("cancel", lambda: jobs.cancel(job.id))
            await report("result", lambda: job.result(5))
            await report("open", jobs.__aenter__)

        await anyio.to_thread.run_sync(run_in_child, use)
        await report("count", jobs.count)

    async def open_again() -> None:
        async with jobs:
            await report("count", jobs.count)

    await anyio.to_thread.run_sync(run_in_child, open_again)


def main(backend: str, program: str) -> None:
    warnings.simplefilter("ignore")  # about a fork with threads
    anyio.run(globals()[program], **BACKENDS[backend])


if __name__ == "__main__":
    main(*sys.argv[1:])
