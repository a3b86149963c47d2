"""A program that test_nats.py runs: `python nats_worker.py ROLE URL PREFIX`.

It prints "ready" once its broker is open. A worker then claims and settles until it has had one of
the queue "end", and prints the ids of its jobs. One that forks prints what its child hears from the
broker.
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
    warnings.simplefilter("ignore")  # that there are threads
    await asyncio.to_thread(run_child, broker)
    say(f"parent counts {await broker.count()}")


def run_child(broker: NatsBroker) -> None:
    """Fork from a thread, so that the child can have an event loop of its own."""
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
