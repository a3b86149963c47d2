"""A shutdown while a broker does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio

from background import Manager
from background.queues import JobQueue
from background.queues.abc import Broker

GRACE, CANCEL_TIMEOUT = 0.2, 0.3  # seconds
#: Seconds that such a shutdown takes at most on a busy machine; less than a broker's timeout.
LONGEST = GRACE + CANCEL_TIMEOUT + 3


async def shut_down_without(broker: Broker, stop: Callable[[], object]) -> float:
    """Shut a worker down whose broker is stopped by a function; return the seconds that it takes.

    Two jobs run: one ends without an answer to its settlement, one is cancelled.
    """
    started, released = anyio.Event(), anyio.Event()
    jobs = JobQueue(broker)

    @jobs.handler(name="short")
    async def short() -> None:
        await released.wait()

    @jobs.handler(name="endless")
    async def endless() -> None:
        started.set()
        await anyio.sleep_forever()

    async with Manager(grace=GRACE, cancel_timeout=CANCEL_TIMEOUT) as manager, jobs:
        await jobs.enqueue("short")
        await jobs.enqueue("endless")
        await jobs.start(manager)
        await started.wait()
        stop()
        released.set()
        await anyio.wait_all_tasks_blocked()
        began = time.monotonic()
        manager.request_shutdown()
    return time.monotonic() - began
