"""A custom observer: counts, alerts, a log context, and a service.

    python examples/custom_observer.py

Override the hooks that you need; other hooks cost nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import anyio

from background import (
    Manager,
    ManagerClosed,
    Observer,
    Task,
    TaskFailed,
    TaskRetrying,
    TaskStarted,
    TaskSucceeded,
)

current: ContextVar[str] = ContextVar("current", default="-")


def say(text: str) -> None:
    """Print text with the name of the running task."""
    print(f"[{current.get()}] {text}")


class Dashboard(Observer):
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    # A `def` hook runs inline, where the event happens. It must not block.

    def on_task_retrying(self, event: TaskRetrying) -> None:
        self.counts["retried"] += 1

    def on_task_succeeded(self, event: TaskSucceeded) -> None:
        self.counts["succeeded"] += 1

    # The events of an `async def` hook wait in a buffer. No task waits for it.

    async def on_task_failed(self, event: TaskFailed) -> None:
        self.counts["failed"] += 1
        await anyio.sleep(0.05)  # stands for a call to a pager
        print(f"ALERT {event.meta['team']}: {event.name} failed: {event.error!r}")

    def on_manager_closed(self, event: ManagerClosed) -> None:
        print(f"closed after {event.duration:.1f} s: {event.report}")

    @contextmanager
    def around_task(self, event: TaskStarted) -> Iterator[None]:
        """Wrap a run; all functions that the task calls get this context variable."""
        current.set(event.name)
        yield

    async def watch(self, manager: Manager) -> None:
        """Run as long as the manager."""
        while True:
            await anyio.sleep(0.1)
            health = manager.health()
            print(f"gauge: {health.running} running, {health.retrying} retrying")


async def resize(image: str) -> None:
    say(f"resizing {image}")
    await anyio.sleep(0.4)


async def upload(image: str) -> None:
    say(f"uploading {image}")
    raise ConnectionError("no route to host")


async def main() -> None:
    dashboard = Dashboard()
    async with Manager(observers=[dashboard], signals=True) as manager:
        manager.run_task(Task(resize, args=("cat.png",), name="resize cat"))
        manager.run_task(
            Task(upload, args=("cat.png",), name="upload cat", retry=2, meta={"team": "storage"})
        )
    print(dict(dashboard.counts))


if __name__ == "__main__":
    anyio.run(main)
