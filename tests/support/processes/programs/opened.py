"""Programs that open a manager and never close it: `python opened.py BACKEND PROGRAM`.

A program prints "ready" when it can receive a signal, and the report of its manager.
"""

from __future__ import annotations

import sys
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from background import Manager, Observer
from support.processes.programs.signalled import BACKENDS, Reporter, say, until_cancelled


class Service(Observer):
    async def watch(self, manager: Manager) -> None:
        await anyio.sleep_forever()

    async def on_task_started(self, event: object) -> None:
        await anyio.sleep_forever()


async def returns() -> None:
    """Return although tasks, services and hooks run."""
    manager = Manager(observers=[Service()], signals=True)
    await manager.open()
    manager.every(60, checkpoint)
    manager.after(3600, checkpoint)
    manager.run(anyio.sleep_forever)
    manager.run(len, "in a thread")
    await anyio.sleep(0.05)
    say("returns")


async def stays(**options: Any) -> None:
    """Stay until a signal ends the process."""
    manager = Manager(signals=True, observers=[Reporter()], **options)
    await manager.open()
    manager.run(until_cancelled, "job")
    await anyio.wait_all_tasks_blocked()
    say("ready")
    await manager.shutdown_requested()
    say("shutdown requested")
    await anyio.sleep_forever()


async def stays_with_grace() -> None:
    """Stay, with a grace so short that one signal is enough."""
    await stays(grace=0.05)


if __name__ == "__main__":
    anyio.run(globals()[sys.argv[2]], **BACKENDS[sys.argv[1]])
    say("done")
