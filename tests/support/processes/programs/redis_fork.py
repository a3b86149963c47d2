"""A program that forks with an open Redis broker: `python redis_fork.py URL`.

It prints the answers of the broker to the child and then to the parent.
"""

from __future__ import annotations

import os
import sys
import warnings

import anyio

from background.queues._errors import BrokerUnavailableError
from background.queues.redis import RedisBroker


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def run_child(broker: RedisBroker) -> None:
    """Fork in a thread: the child then has no running event loop and can start one."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        anyio.run(use_inherited, broker)
    finally:
        os._exit(0)


async def use_inherited(broker: RedisBroker) -> None:
    try:
        await broker.count()
    except BrokerUnavailableError as error:
        say(f"refused: {error}")
    await broker.close()
    await broker.open()
    say(f"child counts {await broker.count()}")
    await broker.close()


async def main(url: str) -> None:
    warnings.simplefilter("ignore")  # about a fork with threads
    broker = RedisBroker(url, prefix="fork")
    await broker.open()
    await broker.wait_for_work(["q"], 0.01)
    await anyio.to_thread.run_sync(run_child, broker)
    say(f"parent counts {await broker.count()}")
    await broker.close()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
