"""A program that enqueues from sync code: `python sync_jobs.py ROLE URL`.

The role "exit" ends without closing the queue. The role "thread" enqueues in a thread that outlives
the main thread. The role "fork" forks while threads enqueue, and the children enqueue, too. The
role "open" forks while an event loop has opened the queue.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import threading
import time
import warnings

import anyio

from background.queues import JobQueue, QueueError

jobs = JobQueue.from_url(sys.argv[2])


@jobs.handler(name="add")
def add(number: int) -> int:
    return number


def say(line: object) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def count() -> int:
    async with jobs:
        return await jobs.count()


def exit() -> None:
    atexit.register(lambda: say(f"at exit: {own_threads()}"))
    add.enqueue_sync(1)
    say(f"before: {own_threads()}")


def own_threads() -> list[str]:
    names = [thread.name.partition(" ")[0] for thread in threading.enumerate()]
    return sorted({"background", "SQLite"} & {*names})


def thread() -> None:
    import background.queues.sqlite.thread as connection

    connection._IDLE = 0.01

    def outlive() -> None:
        threading.main_thread().join()
        for _ in range(3):
            time.sleep(0.1)  # longer than an idle connection waits for the end of the program
            add.enqueue_sync(1)
        say(f"stored: {anyio.run(count)}")

    add.enqueue_sync(1)
    threading.Thread(target=outlive).start()


def fork() -> None:
    before = anyio.run(count)
    is_over = threading.Event()
    begun = threading.Barrier(4)
    numbers: list[int] = []

    def enqueue() -> None:
        add.enqueue_sync(1)
        begun.wait()
        number = 1
        while not is_over.is_set():
            add.enqueue_sync(1)
            number += 1
        numbers.append(number)

    warnings.simplefilter("ignore", DeprecationWarning)  # about a fork with threads
    threads = [threading.Thread(target=enqueue) for _ in range(3)]
    for one in threads:
        one.start()
    begun.wait()
    methods = multiprocessing.get_context("fork")
    children = [methods.Process(target=add.enqueue_sync, args=(number,)) for number in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    is_over.set()
    for one in threads:
        one.join()
    say(f"children: {[child.exitcode for child in children]}")
    say(f"all stored: {anyio.run(count) - before == sum(numbers) + 6}")


def open() -> None:
    async def main() -> None:
        async with jobs:
            await anyio.to_thread.run_sync(use_in_child)
            say(f"parent counts {await jobs.count()}")

    warnings.simplefilter("ignore", DeprecationWarning)
    anyio.run(main)


def use_in_child() -> None:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        for call in (lambda: add.enqueue_sync(1), lambda: anyio.run(count)):
            try:
                call()
            except QueueError as error:
                say(f"refused: {error}")
    finally:
        os._exit(0)


if __name__ == "__main__":
    {"exit": exit, "thread": thread, "fork": fork, "open": open}[sys.argv[1]]()
