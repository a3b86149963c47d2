"""A short tour: one-offs, a schedule, a loop, retries, threads, and a graceful shutdown.

    python examples/quickstart.py

It ends after two seconds. Press Ctrl-C earlier: the loops stop, running tasks finish, and the last
lines report the outcome.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from itertools import count

import anyio

from background import Manager, task
from background.observers import LoggingObserver


@task(retry=5, timeout=1)
async def send_receipt(order: int) -> None:
    """Send a receipt; the mail server refuses the first receipt of order 2."""
    await anyio.sleep(0.1)
    if order in refused:
        refused.remove(order)
        raise ConnectionError(f"the receipt of order {order} was refused")
    print(f"         the receipt of order {order} is out")


refused = {2}


def make_invoice(order: int) -> bytes:
    """Make an invoice; this sync function runs in a thread."""
    time.sleep(0.3)
    return b"%%PDF of order %d" % order


async def read_message() -> None:
    """Read a message; the loop continues although the second message fails."""
    await anyio.sleep(0.4)
    if next(messages) == 2:
        raise ValueError("message 2 makes no sense")


messages = count(1)


async def refresh_prices() -> None:
    await anyio.sleep(0.01)


async def main() -> None:
    async with Manager(observers=[LoggingObserver()], signals=True, grace=5) as manager:
        for order in (1, 2, 3):
            manager.run(send_receipt, order)
        manager.after(1, send_receipt, 4)
        manager.every(0.5, refresh_prices)
        manager.loop(read_message)

        invoice = await manager.run(make_invoice, 1)
        print(f"         the invoice of order 1 has {len(invoice)} bytes")

        with anyio.move_on_after(1.5):
            await manager.shutdown_requested()
        manager.run(send_receipt, 5)  # finished too before the block is left


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%X", stream=sys.stdout
    )
    with contextlib.suppress(KeyboardInterrupt):
        anyio.run(main)
