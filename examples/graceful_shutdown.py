"""A worker that finishes its tasks on SIGTERM and Ctrl-C.

    python examples/graceful_shutdown.py [asyncio|trio]
    kill -TERM <the process id that it prints>

The first signal stops the loop, and tasks have 20 seconds to end. A second signal cancels them.
Then the process ends by the signal, as supervisors and shells expect; after Ctrl-C, that is a
KeyboardInterrupt.
"""

from __future__ import annotations

import os
import sys
from itertools import count

import anyio

from background import Manager, ManagerClosed, ManagerClosing, Observer


class Reporter(Observer):
    """Prints the report; code after the block is not reached when a signal ends the process."""

    def on_manager_closing(self, event: ManagerClosing) -> None:
        print(f"closing, {event.outstanding} left", flush=True)

    def on_manager_closed(self, event: ManagerClosed) -> None:
        print(f"closed: {event.report}", flush=True)


async def job(number: int) -> None:
    try:
        await anyio.sleep(0.6)
    except anyio.get_cancelled_exc_class():
        print(f"job {number} is cut short", flush=True)
        raise
    print(f"job {number} is done", flush=True)


async def main() -> None:
    numbers = count(1)

    async def take_job() -> None:
        """Take a job from a queue."""
        number = next(numbers)
        manager.run(job, number)
        print(f"job {number} is taken", flush=True)

    async with Manager(signals=True, grace=20, observers=[Reporter()]) as manager:
        manager.every(0.25, take_job)
        print(f"worker {os.getpid()} runs; press Ctrl-C", flush=True)
        await manager.shutdown_requested()
        print("no more jobs are taken", flush=True)


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if sys.argv[1:] else "asyncio")
