"""A program that uses a NATS broker: `python nats_worker.py ROLE URL PREFIX`.

It prints "ready" when its broker is open. The role "work" claims and settles jobs until one of the
queue "end", and prints the ids of the jobs. The role "fork" prints the answers of the broker to a
forked child and to the parent.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import warnings

from background.queues._errors import BrokerUnavailableError
from background.queues._states import JobState
from background.queues.abc import Settlement
from background.queues.nats import NatsBroker


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def work(broker: NatsBroker) -> None:
    seen: list[str] = []
    ended = False
    while not ended:
        await broker.wait_for_work(["q", "end"], 20)
        claims = await broker.claim(["q", "end"], 1, lease=30)
        for claim in claims:
            ended = claim.message.queue == "end"
            seen.append(claim.message.id)
            id, token = claim.message.id, claim.token
            await broker.settle([Settlement(id=id, token=token, state=JobState.SUCCEEDED)])
    say(f"claimed {json.dumps(seen)}")


async def fork(broker: NatsBroker) -> None:
    warnings.simplefilter("ignore")  # about a fork with threads
    await asyncio.to_thread(run_child, broker)
    say(f"parent counts {await broker.count()}")


def run_child(broker: NatsBroker) -> None:
    """Fork in a thread: the child then has no running event loop and can start one."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        asyncio.run(use_inherited(broker))
    finally:
        os._exit(0)


async def use_inherited(broker: NatsBroker) -> None:
    try:
        await broker.count()
    except BrokerUnavailableError as error:
        say(f"refused: {error}")
    await broker.close()
    await broker.open()
    say(f"child counts {await broker.count()}")
    await broker.close()


async def main(role: str, url: str, prefix: str) -> None:
    broker = NatsBroker(url, prefix=prefix)
    await broker.open()
    say("ready")
    await {"work": work, "fork": fork}[role](broker)
    await broker.close()
    say("done")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
