"""A program that enqueues or runs a traced job: `python traced_job.py ROLE URL`.

The role "enqueue" prints the ids of the trace and the span of the caller. The role "work" prints
the ids of the trace and the parent span of the job's span, and the kind of the job's span.
"""

from __future__ import annotations

import sys

import anyio

from background import Manager
from background.queues import JobQueue
from support.telemetry import Telemetry, ids

telemetry = Telemetry()
jobs = JobQueue.from_url(sys.argv[2])


def say(word: str, trace_id: int, span_id: int, *more: str) -> None:
    sys.stdout.write(f"{word} {trace_id:x} {span_id:x} {' '.join(more)}".rstrip() + "\n")
    sys.stdout.flush()


@jobs.handler(name="send")
async def send() -> None:
    done.set()


async def enqueue() -> None:
    async with jobs:
        with telemetry.tracer.start_as_current_span("request") as span:
            await jobs.enqueue("send")
            say("enqueued", *ids(span.get_span_context()))


async def work() -> None:
    async with Manager(observers=[telemetry.observer()]) as manager, jobs:
        await jobs.start(manager)
        await done.wait()
    say("worked", *ids(telemetry.span.parent), telemetry.span.kind.name)


async def main() -> None:
    global done
    done = anyio.Event()
    await {"enqueue": enqueue, "work": work}[sys.argv[1]]()


if __name__ == "__main__":
    anyio.run(main)
