"""Passes that restore hints and timers on NATS: `python tests/benchmarks/restoration.py JOBS`.

Run it with `tests` in `PYTHONPATH`.
"""

from __future__ import annotations

import asyncio
import sys
from time import perf_counter
from typing import Any

from support.brokers.nats import finish, message
from support.brokers.nats_servers import nats_server

from background.queues.nats import NatsBroker


async def renewing(broker: NatsBroker, claims: list[Any], times: list[float]) -> None:
    """Renew a lease all the time, and note how long each renewal takes."""
    while True:
        began = perf_counter()
        await broker.renew(claims, lease=60)
        times.append(perf_counter() - began)
        await asyncio.sleep(0.01)


async def main(count: int) -> None:
    """Make passes while a lease is renewed, and print the longest renewal."""
    with nats_server() as server:
        broker: Any = NatsBroker(server.url)
        await broker.open()
        await broker.enqueue([message("held", queue="r")])
        held = await broker.claim(["r"], 1, lease=60)
        body = b"x" * 1_000
        sent = [message(f"{n}", retention=1e6, body=body) for n in range(count)]
        await broker.enqueue(sent)

        async def passing(what: str) -> None:
            times: list[float] = []
            began = perf_counter()
            task = asyncio.create_task(renewing(broker, held, times))
            await broker._restoration.run()
            took = perf_counter() - began
            done = await broker._advance(everything=True)
            print(
                f"{count} {what}: pass {took:.2f} s, checks {perf_counter() - began - took:.2f} s "
                f"{dict(done)}, longest of {len(times)} renewals {max(times):.3f} s"
            )
            task.cancel()

        await passing("ready jobs")
        await broker._api._ask("STREAM.PURGE.background-ready")
        await passing("ready jobs without hints")
        while claims := await broker.claim(["q"], 500, lease=60):
            await finish(broker, claims)
        await passing("ended jobs")
        await broker._api._ask("STREAM.PURGE.background-timers")
        await passing("ended jobs without timers")
        await passing("ended jobs")
        await broker.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
