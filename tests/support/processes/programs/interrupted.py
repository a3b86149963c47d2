"""Programs that send signals to themselves: `python interrupted.py PART BACKEND SEED LINES`.

The part is `moments`, `lines` or `unhandled`. Each case runs in a forked process. A line of JSON
reports its exit status, its duration and its output. The output has a line for each event "added",
"ended" and "closed".
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Any

import anyio
from anyio.lowlevel import checkpoint
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

import background
from background import (
    Manager,
    ManagerClosed,
    ManagerClosing,
    Observer,
    Task,
    TaskAdded,
    TaskEvent,
    TaskFailed,
    TaskKind,
    TaskRetrying,
    TaskSucceeded,
)
from support.processes.programs.signalled import BACKENDS

CONCURRENCY = 4  # processes
PATIENCE = 15.0  # seconds until a process that does not end is killed
SIGNALS = (signal.SIGINT, signal.SIGTERM)
OURS = str(Path(background.__file__).parent)
LONG = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(3600))

Send = Callable[[], None]
Signals = tuple[signal.Signals, ...]
Program = Callable[[], Awaitable[None]]
Case = tuple[dict[str, Any], Callable[[], None]]


def say(*words: object) -> None:
    """Print without a buffer, as the process may end at any time."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Reporter(Observer):
    def on_task_added(self, event: TaskAdded) -> None:
        say("added", event.id)

    def _ended(self, event: TaskEvent) -> None:
        say("ended", event.id)

    on_task_cancelled = on_task_expired = _ended

    def on_task_succeeded(self, event: TaskSucceeded) -> None:
        if event.final:
            self._ended(event)

    def on_task_failed(self, event: TaskFailed) -> None:
        if event.final:
            self._ended(event)

    def on_manager_closed(self, event: ManagerClosed) -> None:
        say("closed:", event.report.summary)


def make_manager(*observers: Observer, **options: Any) -> Manager:
    options = {"grace": None, "cancel_timeout": 0.1, "signals": SIGNALS, **options}
    return Manager(observers=[Reporter(), *observers], **options)


async def broken() -> None:
    raise ValueError


# Signals at any line of the package


async def use_every_method(signals: Signals) -> None:
    """Submit every kind of task once, between entering and leaving."""
    async with make_manager(signals=signals) as manager:
        manager.every(3600, checkpoint)
        manager.after(3600, checkpoint)
        manager.run_task(Task(broken, retry=LONG, lifespan=0.01))
        manager.run(time.sleep, 0)
        await manager.run(checkpoint)
        with anyio.move_on_after(0.005):
            await manager.shutdown_requested()


class SignalAtLine:
    """Traces the package's lines, and sends a signal before some of them."""

    def __init__(self, send: Send, lines: Iterable[int]) -> None:
        self._send = send
        self._remaining = sorted(lines)
        self.passed = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        if event == "line":
            self.passed += 1
            while self._remaining and self._remaining[0] <= self.passed:
                del self._remaining[0]
                say("signal in", frame.f_code.co_qualname, "line", frame.f_lineno)
                self._send()
        return self


def traced(program: Program, backend: str, send: Send, lines: Iterable[int]) -> None:
    tracer = SignalAtLine(send, lines)
    sys.settrace(tracer)
    try:
        anyio.run(program, **BACKENDS[backend])
    finally:
        sys.settrace(None)
    say("lines:", tracer.passed)


# Signals at certain moments


@dataclass
class InHook(Observer):
    """Sends signals from a hook."""

    hook: str
    send: Send

    def __post_init__(self) -> None:
        setattr(self, self.hook, lambda event: self.send())


async def in_the_hook_of_closing(send: Send) -> None:
    async with make_manager(InHook("on_manager_closing", send)) as manager:
        manager.run(checkpoint)


async def in_the_hook_of_closed(send: Send) -> None:
    async with make_manager(InHook("on_manager_closed", send)) as manager:
        manager.run(checkpoint)


async def in_the_hook_of_a_task(send: Send) -> None:
    async with make_manager(InHook("on_task_started", send)) as manager:
        await manager.run(checkpoint).wait()


async def while_observers_catch_up(send: Send) -> None:
    """Send the signals in an `async def` hook that never ends."""

    class Endless(Observer):
        async def on_manager_closed(self, event: ManagerClosed) -> None:
            send()
            await anyio.sleep_forever()

    async with make_manager(Endless()) as manager:
        manager.run(checkpoint)


async def while_closing_waits(send: Send) -> None:
    """Send the signals in a task that never ends, while the block waits for it."""

    async def work() -> None:
        await closing.wait()
        send()
        await anyio.sleep_forever()

    closing = anyio.Event()

    class Closing(Observer):
        def on_manager_closing(self, event: ManagerClosing) -> None:
            closing.set()

    async with make_manager(Closing(), grace=0.1) as manager:
        manager.run(work)


async def while_tasks_clean_up(send: Send) -> None:
    """Send the signals in a cancelled task that ends later than `cancel_timeout`."""

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            send()
            with anyio.CancelScope(shield=True):
                await anyio.sleep_forever()

    async with make_manager() as manager:
        manager.run(work)
        await manager.close(timeout=0)


async def in_a_backoff(send: Send) -> None:
    """Send the signals in the backoff of a one-off, which may last until the grace has ended."""

    class Retrying(Observer):
        def on_task_retrying(self, event: TaskRetrying) -> None:
            send()

    async with make_manager(Retrying(), grace=0.1) as manager:
        manager.run_task(Task(broken, retry=LONG))
        await manager.shutdown_requested()


async def in_the_backoff_of_a_loop(send: Send) -> None:
    """Send the signals in the backoff of a loop, which ends immediately."""
    async with make_manager(InHook("on_task_retrying", send)) as manager:
        manager.run_task(Task(broken, kind=TaskKind.LOOP, retry=LONG))
        await manager.shutdown_requested()


async def in_a_delay(send: Send) -> None:
    """Send the signals during the delay of a one-off, which ends immediately."""
    async with make_manager() as manager:
        manager.after(3600, checkpoint)
        await checkpoint()
        send()
        await manager.shutdown_requested()


async def in_a_thread(send: Send) -> None:
    """Send the signals in a sync function that polls for its cancellation."""

    def work() -> None:
        send()
        while True:
            anyio.from_thread.check_cancelled()

    async with make_manager(grace=0.1, cancel_timeout=PATIENCE) as manager:
        manager.run(work)
        await manager.shutdown_requested()


async def in_an_iteration(send: Send) -> None:
    """Send the signals in an iteration of a loop, which is still completed."""

    async def work() -> None:
        send()
        await manager.shutdown_requested()
        await checkpoint()
        say("iteration finished")

    async with make_manager() as manager:
        manager.every(0.001, work)
        await manager.shutdown_requested()


async def before_entering(send: Send) -> None:
    manager = make_manager()
    send()
    async with manager:
        await checkpoint()


async def after_leaving(send: Send) -> None:
    async with make_manager() as manager:
        manager.run(checkpoint)
    send()
    await anyio.sleep_forever()


async def in_watch(send: Send) -> None:
    """Send the signals in the first step of an observer's `watch()`."""

    class Watches(Observer):
        async def watch(self, manager: Manager) -> None:
            send()

    async with make_manager(Watches()) as manager:
        manager.run(checkpoint)
        await anyio.sleep(0.01)


MOMENTS: list[Callable[[Send], Awaitable[None]]] = [
    in_the_hook_of_closing,
    in_the_hook_of_closed,
    in_the_hook_of_a_task,
    while_observers_catch_up,
    while_closing_waits,
    while_tasks_clean_up,
    in_a_backoff,
    in_the_backoff_of_a_loop,
    in_a_delay,
    in_a_thread,
    in_an_iteration,
    before_entering,
    after_leaving,
    in_watch,
]


# Processes


def send_to_self(number: signal.Signals, times: int) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)
        time.sleep(0)  # lets the handler run


def moments(backend: str, seed: int, count: int) -> Iterator[Case]:
    """Yield a case for each moment, signal and number of signals."""
    for number in SIGNALS:
        for times in (1, 2, 3):
            for moment in MOMENTS:
                case = {"case": moment.__name__, "signal": number, "times": times}
                send = partial(send_to_self, number, times)
                yield case, partial(anyio.run, moment, send, **BACKENDS[backend])


def lines(backend: str, seed: int, count: int) -> Iterator[Case]:
    """Yield `count` cases for each signal: two thirds at one line, a third at two lines."""
    chance = random.Random(seed)
    program = partial(use_every_method, SIGNALS)
    last = count_lines(program, backend)
    for number in SIGNALS:
        places = [sorted(chance.sample(range(1, last), k=1 + (n % 3 == 2))) for n in range(count)]
        for at in places:
            case = {"case": "lines", "signal": number, "times": len(at), "at": at}
            yield case, partial(traced, program, backend, partial(send_to_self, number, 1), at)


def unhandled(backend: str, seed: int, count: int) -> Iterator[Case]:
    """Yield `count` cases with a SIGINT at a line, which the manager does not handle."""
    program = partial(use_every_method, ())
    send = partial(send_to_self, signal.SIGINT, 1)
    for at in random.Random(seed).sample(range(1, count_lines(program, backend)), k=count):
        case = {"case": "unhandled", "signal": signal.SIGINT, "times": 1, "at": [at]}
        yield case, partial(traced, program, backend, send, [at])


class Children:
    """Runs cases in forked processes, a few at a time, and prints their results."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[dict[str, Any], float, IO[str]]] = {}

    def start(self, case: dict[str, Any], program: Callable[[], None]) -> None:
        """Fork; the child runs the program and exits as Python does."""
        while len(self._running) >= CONCURRENCY:
            self.reap()
        output = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        pid = os.fork()
        if pid:
            self._running[pid] = case, time.monotonic(), output
            return
        signal.alarm(int(2 * PATIENCE))  # in case the parent has ended
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        self._running.clear()
        program()
        sys.exit()

    def reap(self) -> None:
        """Reap a child that has ended, and kill children that run too long."""
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            for late, (_, began, _) in self._running.items():
                if time.monotonic() - began > PATIENCE:
                    os.kill(late, signal.SIGKILL)
            time.sleep(0.002)
            return
        case, _, output = self._running.pop(pid)
        with output:
            output.seek(0)
            text = output.read()
        case |= {"status": os.waitstatus_to_exitcode(status), "output": text}
        print(json.dumps(case), flush=True)

    def finish(self) -> None:
        while self._running:
            self.reap()


def count_lines(program: Program, backend: str) -> int:
    """Return the number of the package's lines in an uninterrupted run."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        pid = os.fork()
        if not pid:
            os.dup2(output.fileno(), 1)
            traced(program, backend, lambda: None, [])
            sys.exit()
        os.waitpid(pid, 0)
        output.seek(0)
        return int(output.read().split()[-1])


async def import_everything() -> None:
    """Import all modules before the forks."""
    async with Manager() as manager:
        await manager.run(checkpoint)


PARTS = {part.__name__: part for part in (moments, lines, unhandled)}


def main(part: str, backend: str, seed: str, count: str) -> None:
    anyio.run(import_everything, **BACKENDS[backend])
    gc.collect()
    gc.freeze()
    children = Children()
    for case, program in PARTS[part](backend, int(seed), int(count)):
        children.start(case, program)
    children.finish()
    print("last of", part, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
