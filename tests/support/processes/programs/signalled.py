"""Programs for the tests of signals: `python signalled.py BACKEND PROGRAM`.

A program prints "ready" when it can receive a signal, and from then on each step of its shutdown.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from background import (
    LoopsStoppedError,
    Manager,
    ManagerClosed,
    ManagerClosing,
    Observer,
    TaskKind,
)

BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}


def say(*words: object) -> None:
    """Print with a single write, as several threads may print."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")


class Reporter(Observer):
    def on_manager_closed(self, event: ManagerClosed) -> None:
        say(f"{event.name}:", event.report)


def make_manager(**options: Any) -> Manager:
    signals = {signal.SIGINT, signal.SIGTERM}
    return Manager(**{"signals": signals, "grace": None, "observers": [Reporter()], **options})


async def print_shutdown_request(manager: Manager) -> None:
    await manager.shutdown_requested()
    say("shutdown requested, manager is", manager.state)


async def until_cancelled(name: str) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        say(name, "cancelled")


async def drains() -> None:
    """Leave the block at the first signal, while one-offs and a loop run."""
    closing = anyio.Event()

    class Release(Observer):
        def on_manager_closing(self, event: ManagerClosing) -> None:
            closing.set()

    async def job() -> None:
        await closing.wait()
        say("job done")

    async with make_manager(observers=[Reporter(), Release()]) as manager:
        manager.run(job)
        manager.every(0.005, checkpoint)
        say("ready")
        await manager.shutdown_requested()
        say("manager is", manager.state)
        manager.run(job)
        try:
            manager.loop(checkpoint)
        except LoopsStoppedError:
            say("no more loops")
        await manager.stop_loops()
        say("loops left:", manager.count(TaskKind.LOOP))
    say("after the block")
    await checkpoint()
    say("after the next await")


async def stays() -> None:
    """Never leave the block, and never end the task."""
    async with make_manager() as manager:
        manager.run(print_shutdown_request, manager)
        manager.run(until_cancelled, "job")
        say("ready")
        await until_cancelled("body")
    say("after the block")


async def stays_with_grace() -> None:
    """Never leave the block, with a grace so short that one signal is enough."""
    async with make_manager(grace=0.05) as manager:
        manager.run(print_shutdown_request, manager)
        manager.run(until_cancelled, "job")
        say("ready")
        await until_cancelled("body")
    say("after the block")


async def stays_after_close() -> None:
    """Stay in the block after a task has closed the manager."""
    async with make_manager(grace=0.05, cancel_timeout=0.05) as manager:
        await manager.run(manager.close)
        say("ready")
        await until_cancelled("body")
    say("after the block")


async def siblings() -> None:
    """Leave the first of three managers at once, and the others when their jobs have ended."""
    left = [anyio.Event() for _ in range(3)]

    async def job(number: int) -> None:
        if number:
            await left[number - 1].wait()
            await anyio.sleep(0.1)  # the earlier manager has been left completely
        say("job", number, "done")

    async def serve(number: int, entered: anyio.Event) -> None:
        async with make_manager(name=str(number)) as manager:
            entered.set()
            await manager.shutdown_requested()
            manager.run(job, number)
        say("after block", number)
        left[number].set()

    async with anyio.create_task_group() as group:
        for number in range(3):
            entered = anyio.Event()
            group.start_soon(serve, number, entered)
            await entered.wait()
        say("ready")


async def siblings_and_stuck() -> None:
    """Leave a manager with a stuck thread, while another one in a sibling task is open."""
    running = threading.Event()
    left = anyio.Event()

    async def serve_stuck() -> None:
        async with make_manager(grace=0.05, cancel_timeout=0.05) as manager:
            manager.run(lambda: (running.set(), time.sleep(3600)))
            await anyio.to_thread.run_sync(running.wait)
            entered.set()
            await manager.shutdown_requested()
        left.set()

    entered = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(serve_stuck)
        await entered.wait()
        async with make_manager() as manager:
            say("ready")
            await manager.shutdown_requested()
            await left.wait()


async def siblings_and_stays() -> None:
    """Never leave the second of two managers."""

    async def serve(stays: bool, entered: anyio.Event) -> None:
        async with make_manager(grace=0.2, name=f"stays={stays}") as manager:
            entered.set()
            await manager.shutdown_requested()
            if stays:
                await until_cancelled("body")

    async with anyio.create_task_group() as group:
        for stays in (False, True):
            entered = anyio.Event()
            group.start_soon(serve, stays, entered)
            await entered.wait()
        say("ready")


async def closes() -> None:
    """Wait in `close()` when the signal arrives, and print the report that it returns."""
    async with make_manager(grace=0.05, observers=()) as manager:
        manager.run(until_cancelled, "job")
        async with anyio.create_task_group() as group:
            group.start_soon(print_report, manager)
            await anyio.wait_all_tasks_blocked()
            say("ready, manager is", manager.state)
    say("after the block")


async def print_report(manager: Manager) -> None:
    say("report:", await manager.close())


async def has_python_handler() -> None:
    """Set a Python signal handler before entering the manager."""

    def handle(number: int, frame: object) -> None:
        say("previous handler called with", number)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, handle)
    async with make_manager() as manager:
        say("ready")
        await manager.shutdown_requested()
        say("manager is", manager.state)
    say("restored:", signal.getsignal(signal.SIGTERM) is handle)


async def has_loop_handler() -> None:
    """Set a handler of the event loop before entering the manager."""
    import asyncio

    called = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, called.set)
    before = signal.getsignal(signal.SIGTERM)
    async with make_manager() as manager:
        say("ready")
        await manager.shutdown_requested()
        await called.wait()
        say("loop handler called, manager is", manager.state)
    say("restored:", signal.getsignal(signal.SIGTERM) is before)


async def is_nested() -> None:
    """Nest two managers that handle the same signals."""
    async with make_manager(name="outer") as outer:
        async with make_manager(name="inner") as inner:
            say("ready")
            await inner.shutdown_requested()
            say(f"outer is {outer.state}, inner is {inner.state}")
        say("between the blocks")
    say("after the blocks")


async def is_nested_and_stays() -> None:
    """Nest two managers, with a body and a task that never end."""
    async with make_manager(name="outer"), make_manager(name="inner") as inner:
        inner.run(print_shutdown_request, inner)
        inner.run(until_cancelled, "job")
        say("ready")
        await until_cancelled("body")
    say("after the blocks")


async def ignores_sigint() -> None:
    """Ignore SIGINT before entering, as a shell does for background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    async with make_manager() as manager:
        say("ready")
        await manager.shutdown_requested()
        say("manager is", manager.state)
    say("restored:", signal.getsignal(signal.SIGINT) is signal.SIG_IGN)


async def has_stuck_thread() -> None:
    """Run a function in a thread that never returns."""
    running = anyio.Event()

    def work() -> None:
        anyio.from_thread.run_sync(running.set)
        threading.Event().wait()

    async with make_manager(grace=0.05, cancel_timeout=0.05) as manager:
        manager.run(work)
        await running.wait()
        say("ready")
        await manager.shutdown_requested()
    say("after the block")


async def has_stubborn_task() -> None:
    """Run a coroutine that swallows every cancellation."""

    async def stubborn() -> None:
        while True:
            with contextlib.suppress(BaseException):
                await anyio.sleep(1)
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)

    async with make_manager(grace=0.05, cancel_timeout=0.05) as manager:
        manager.run(stubborn)
        say("ready")
        await manager.shutdown_requested()
    say("after the block")


async def blocks_the_loop() -> None:
    """Run a coroutine that blocks the event loop forever."""

    def block_briefly() -> None:
        time.sleep(0.01)
        say("signals that are pending:", manager._entered()._signals._pending)  # type: ignore[union-attr]

    async def busy() -> None:
        say("ready")
        while True:
            block_briefly()

    async with make_manager() as manager:
        manager.run(busy)
        await anyio.sleep_forever()


async def is_in_a_child_task() -> None:
    """Run the manager in a child task, next to a task that never ends."""

    async def serve() -> None:
        async with make_manager() as manager:
            say("ready")
            await manager.shutdown_requested()
        say("after the block")

    async with anyio.create_task_group() as group:
        group.start_soon(until_cancelled, "sibling")
        group.start_soon(serve)


async def fails() -> None:
    """Raise an error in the body after the signal."""
    async with make_manager() as manager:
        say("ready")
        await manager.shutdown_requested()
        raise RuntimeError("the body's own")


async def ends_as_closing_begins() -> None:
    """Tear down the event loop at the moment when closing begins."""

    async def exit_at_once() -> None:
        raise SystemExit(3)

    async with make_manager() as manager, anyio.create_task_group() as group:
        group.start_soon(manager.close)
        group.start_soon(exit_at_once)


def main(backend: str, program: str) -> None:
    anyio.run(globals()[program], **BACKENDS[backend])


if __name__ == "__main__":
    main(*sys.argv[1:])
