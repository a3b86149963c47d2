"""A program that test_otel_observer.py runs: `python traced_job.py ROLE URL`.

One that is to "enqueue" prints the ids of its trace and its span, and one that is to "work" those
of the trace and the parent of the span in which the job ran, and that span's kind.
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
