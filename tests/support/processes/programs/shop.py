"""A service whose log `docs/guides/log.md` shows: `python shop.py URL REPORTS [wrap]`.

`REPORTS` is a file for the cron expression of reports: the first version writes it, for a time in
five seconds. With `wrap` it is the next version, which has one more handler.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio

from background import Manager, cron, retry_on
from background.observers import LoggingObserver
from background.queues import JobContext, JobQueue


async def confirm(order: int) -> None: ...


async def charge(order: int) -> None:
    if JobContext.current().attempt == 1:
        raise ConnectionError("bank.example does not answer")


async def ship(country: str) -> None:
    raise ValueError(f"no carrier for {country}")


async def pack(seconds: float) -> None:
    await anyio.sleep(seconds)


async def report() -> None: ...


async def wrap(order: int) -> None: ...


async def warm_cache() -> None: ...


def expression(file: Path) -> str:
    if not file.exists():
        at = datetime.now(UTC) + timedelta(seconds=5)
        file.write_text(f"{at.second} {at.minute} {at.hour} * * *", "utf-8")
    return file.read_text("utf-8")


async def main(url: str, reports: str, *more: str) -> None:
    jobs = JobQueue.from_url(url, prefix="shop")
    for fn in (confirm, ship, pack, *([wrap] if "wrap" in more else [])):
        jobs.handler(name=fn.__name__)(fn)
    jobs.handler(name="charge", retry=retry_on(ConnectionError))(charge)
    jobs.schedule(cron(reports), jobs.handler(name="report")(report).job())
    observers = [LoggingObserver()]
    async with Manager(name="shop", signals=True, grace=1, observers=observers) as manager, jobs:
        await jobs.start(manager)
        manager.run(warm_cache)
        await manager.shutdown_requested()


if __name__ == "__main__":
    form = "%(asctime)s %(levelname)-7s %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S")
    url, file, *more = sys.argv[1:]
    anyio.run(main, url, expression(Path(file)), *more)
