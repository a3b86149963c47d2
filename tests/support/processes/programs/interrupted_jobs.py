"""A program with durable jobs that signals itself, for test_interrupted_jobs.py:
`python interrupted_jobs.py BACKEND SEED LINES DIRECTORY`.

Each case is a process with a file of its own in the directory; see interrupted.py.
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
    send_to_myself,
    traced,
)
from support.processes.programs.signalled import BACKENDS


async def double(number: int) -> int:
    await checkpoint()
    return 2 * number


async def fail() -> None:
    raise ValueError


async def works_jobs_off(path: Path, signals: Signals) -> None:
    """All that there is to do with a queue, once; says which jobs it has been told are kept."""
    jobs = JobQueue(SQLiteBroker(path))
    doubling, failing = jobs.handler(name="double")(double), jobs.handler(name="fail")(fail)
    async with make_manager(signals=signals, grace=0.1) as manager, jobs:
        first = await doubling.enqueue(1)
        say("kept", first.id)
        for each in await doubling.enqueue_many([(2,), (3,)]):
            say("kept", each.id)
        try:
            await jobs.start(manager, concurrency=2)
        except LoopsStoppedError:  # by a signal that came first
            return
        assert await first.result() == 2
        late = await doubling.options(delay=3600).enqueue(4)
        say("kept", late.id)
        await jobs.cancel(late.id)
        bad = await failing.enqueue()
        say("kept", bad.id)
        await bad.wait()
        async for each in jobs.list():
            assert each.state


def main(backend: str, seed: str, count: str, directory: str) -> None:
    anyio.run(import_everything, **BACKENDS[backend])
    children = Children()
    chance = random.Random(int(seed))
    for number, signals in [(signal.SIGINT, ()), *((each, SIGNALS) for each in SIGNALS)]:
        name = f"{number.name} {'handled' if signals else 'unhandled'}"
        path = Path(directory, f"{backend} {name}")
        last = count_lines(partial(works_jobs_off, path.with_suffix(".db"), signals), backend)
        for at in chance.sample(range(1, last), k=int(count)):
            file = path.with_suffix(f".{at}.db")
            case = {"case": name, "signal": number, "at": [at], "file": str(file)}
            program = partial(works_jobs_off, file, signals)
            send = partial(send_to_myself, number, 1)
            children.start(case, partial(traced, program, backend, send, [at]))
    children.finish()
    print("last of", backend, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
