"""A program with loops that a test stops and continues: `python stopped.py BACKEND`.

When it is continued, its wall clock jumps ahead by two more minutes. It prints "ready" when its
loops run, and their iterations some time after it was continued.
"""

from __future__ import annotations

import json
import signal
import sys
import time

PAUSE = 1.0  # seconds without an iteration that show that the program was stopped

_offset = 0.8 - time.time() % 1 - time.monotonic() + time.time()
time.time = lambda: time.monotonic() + _offset


def _continued(number: int, frame: object) -> None:
    global _offset
    _offset += 120


import anyio  # noqa: E402

from background import (  # noqa: E402
    Manager,
    Observer,
    Task,
    TaskKind,
    TaskStarted,
    cron,
    every,
)
from support.processes.programs.signalled import BACKENDS  # noqa: E402


class Recorder(Observer):
    """Records when iterations began and how late they were."""

    def __init__(self) -> None:
        self.began: list[float] = []
        self.late: list[float] = []

    def on_task_started(self, event: TaskStarted) -> None:
        self.began.append(anyio.current_time())
        self.late.append(event.queued_for)

    def after_pause(self) -> int:
        """Return the number of iterations since the program was stopped."""
        gaps = zip(self.began, self.began[1:], strict=False)
        stopped = [number for number, (start, next) in enumerate(gaps, 1) if next - start > PAUSE]
        return len(self.began) - stopped[0] if stopped else 0


async def main() -> None:
    recorder = Recorder()
    ticks: list[float] = []
    changed = anyio.Event()

    async def work() -> None:
        nonlocal changed
        changed.set()
        changed = anyio.Event()

    async def tick() -> None:
        ticks.append(time.time())

    signal.signal(signal.SIGCONT, _continued)
    async with Manager() as manager:
        grid = every(0.05)
        manager.run_task(Task(work, kind=TaskKind.LOOP, schedule=grid, observers=(recorder,)))
        manager.run_task(Task(tick, kind=TaskKind.LOOP, schedule=cron("* * * * * *")))
        while len(recorder.began) < 5 or not ticks:
            await changed.wait()
        sys.stdout.write("ready\n")
        before = len(ticks)
        while recorder.after_pause() < 10 or len(ticks) < before + 2:
            await changed.wait()
    found = {"began": recorder.began, "late": recorder.late, "ticks": ticks}
    sys.stdout.write(f"found {json.dumps(found)}\n")


if __name__ == "__main__":
    anyio.run(main, **BACKENDS[sys.argv[1]])
