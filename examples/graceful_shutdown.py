"""A worker that stops without losing anything: on SIGTERM and Ctrl-C it finishes what it has.

    python examples/graceful_shutdown.py [asyncio|trio]
    kill -TERM <the process id that it prints>

The first signal stops the loop and lets the jobs that were taken end, for 20 seconds at most. A
second one cancels them at once. Either way the process then ends as the signal would have ended
it, so a supervisor or a shell sees what it expects; after Ctrl-C that is a KeyboardInterrupt.
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import count

import anyio

from background import Manager, ManagerClosed, ManagerClosing, Observer

# On Windows a process is asked to stop by Ctrl-C or Ctrl-Break; SIGTERM can't be handled there.
SIGNALS = {signal.SIGINT, getattr(signal, "SIGBREAK", signal.SIGTERM)}


class Reporter(Observer):
    """Prints here, as nothing after the block is reached when a signal ends the process."""

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
        """Stand for reading from a queue: whatever is taken has to be done."""
        number = next(numbers)
        manager.run(job, number)
        print(f"job {number} is taken", flush=True)

    async with Manager(signals=SIGNALS, grace=20, observers=[Reporter()]) as manager:
        manager.every(0.25, take_job)
        print(f"worker {os.getpid()} runs; press Ctrl-C", flush=True)
        await manager.shutdown_requested()
        print("no more jobs are taken", flush=True)


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if sys.argv[1:] else "asyncio")
