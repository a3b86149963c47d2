"""A program that uses a SQLite broker: `python sqlite_worker.py ROLE PATH BACKEND`.

It prints "ready" when its broker is open. The role "work" claims and settles jobs until one of the
queue "end", and prints the ids of the jobs. The role "forget" leaves its broker open. The role
"fork" prints the answers of the broker to a forked child and to the parent.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.abc import Settlement
from background.queues.sqlite import SQLiteBroker
from support.processes.programs.signalled import BACKENDS


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def work(broker: SQLiteBroker) -> None:
    seen: list[str] = []
    queue = ""
    while queue != "end":
        await broker.wait_for_work(["q", "end"], 20)
        for claim in await broker.claim(["q", "end"], 1, lease=30):
            queue = claim.message.queue
            seen.append(claim.message.id)
            id, token = claim.message.id, claim.token
            await broker.settle([Settlement(id=id, token=token, state=JobState.SUCCEEDED)])
    say(f"claimed {json.dumps(seen)}")


async def forget(broker: SQLiteBroker) -> None:
    await broker.count()


async def fork(broker: SQLiteBroker) -> None:
    warnings.simplefilter("ignore")  # about a fork with threads, and trio's wakeup descriptor
    await anyio.to_thread.run_sync(run_child, broker)
    say(f"parent counts {await broker.count()}")


def run_child(broker: SQLiteBroker) -> None:
    """Fork in a thread: the child then has no running event loop and can start one."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        anyio.run(use_inherited, broker, **BACKENDS[sys.argv[3]])
    finally:
        os._exit(0)


async def use_inherited(broker: SQLiteBroker) -> None:
    for call in (broker.count, broker.close, broker.open):
        try:
            await call()
        except BrokerUnavailableError as error:
            say(f"refused: {error}")
    second = SQLiteBroker(f"{broker.path}.other")
    await second.open()
    say(f"child counts {await second.count()}")
    await second.close()


ROLES: dict[str, Callable[[SQLiteBroker], Coroutine[Any, Any, None]]] = {
    "work": work,
    "forget": forget,
    "fork": fork,
}


async def main(role: str, path: str) -> None:
    warnings.filterwarnings("ignore", "several connections")
    broker = SQLiteBroker(path)
    await broker.open()
    say("ready")
    await ROLES[role](broker)
    if role != "forget":
        await broker.close()
    say("done")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], **BACKENDS[sys.argv[3]])
