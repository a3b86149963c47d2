"""A program with durable jobs that sends signals to itself:
`python interrupted_jobs.py BACKEND SEED LINES DIRECTORY`.

Each case is a process with a separate file in the directory; see interrupted.py.
"""

from __future__ import annotations

import random
import signal
import sys
from functools import partial
from pathlib import Path

import anyio
from anyio.lowlevel import checkpoint

from background import LoopsStoppedError
from background.queues import JobQueue
from background.queues.sqlite import SQLiteBroker
from support.processes.programs.interrupted import (
    SIGNALS,
    Children,
    Signals,
    count_lines,
    import_everything,
    make_manager,
    say,
    send_to_self,
    traced,
)
from support.processes.programs.signalled import BACKENDS


async def double(number: int) -> int:
    await checkpoint()
    return 2 * number


async def fail() -> None:
    raise ValueError


async def process_jobs(path: Path, signals: Signals) -> None:
    """Use every method of a queue once, and print the ids of the jobs that were stored."""
    jobs = JobQueue(SQLiteBroker(path))
    doubling, failing = jobs.handler(name="double")(double), jobs.handler(name="fail")(fail)
    async with make_manager(signals=signals, grace=0.1) as manager, jobs:
        first = await doubling.enqueue(1)
        say("stored", first.id)
        for job in await doubling.enqueue_many([(2,), (3,)]):
            say("stored", job.id)
        try:
            await jobs.start(manager, concurrency=2)
        except LoopsStoppedError:  # after an early signal
            return
        assert await first.result() == 2
        late = await doubling.options(delay=3600).enqueue(4)
        say("stored", late.id)
        await jobs.cancel(late.id)
        bad = await failing.enqueue()
        say("stored", bad.id)
        await bad.wait()
        async for info in jobs.list():
            assert info.state


def main(backend: str, seed: str, count: str, directory: str) -> None:
    anyio.run(import_everything, **BACKENDS[backend])
    children = Children()
    chance = random.Random(int(seed))
    for number, signals in [(signal.SIGINT, ()), *((number, SIGNALS) for number in SIGNALS)]:
        name = f"{number.name} {'handled' if signals else 'unhandled'}"
        path = Path(directory, f"{backend} {name}")
        last = count_lines(partial(process_jobs, path.with_suffix(".db"), signals), backend)
        for at in chance.sample(range(1, last), k=int(count)):
            file = path.with_suffix(f".{at}.db")
            case = {"case": name, "signal": number, "at": [at], "file": str(file)}
            program = partial(process_jobs, file, signals)
            send = partial(send_to_self, number, 1)
            children.start(case, partial(traced, program, backend, send, [at]))
    children.finish()
    print("last of", backend, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
