"""Programs that fork inside a manager's block: `python forked.py BACKEND PROGRAM`."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import anyio

from background import Manager
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


def main(backend: str, program: str) -> None:
    warnings.simplefilter("ignore")  # about a fork with threads
    anyio.run(globals()[program], **BACKENDS[backend])


if __name__ == "__main__":
    main(*sys.argv[1:])
