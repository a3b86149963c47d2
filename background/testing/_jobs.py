"""Tools for testing durable jobs: run what is enqueued, and list it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import UTC, datetime
from typing import Any

import anyio

from .._manager import Manager
from .._support import clock, validation
from .._support.frozen import frozen
from .._support.redacted import kind_of
from ..queues import Handler, JobInfo, JobQueue, JobState, Ordered, QueueError, Worker
from ..queues._codec.body import decode
from ..queues._names import listed
from ..queues._queue import broker_of, handlers_of, pool_of
from ..queues._worker.attempt import current_attempt
from ..queues._worker.pool import WorkerPool
from ..queues.abc import Message
from ..queues.memory import MemoryBroker
from ._time import is_virtual, virtual_wall_clock

_REAL, _VIRTUAL = 60.0, 86_400.0  # seconds that `drain()` takes at most by default
_CONCURRENCY = 10  # of a worker of `drain()`
_FIRST_PAUSE = 0.1  # seconds until `drain()` queries again, doubled each time
_LONGEST_PAUSE, _LONGEST_VIRTUAL_PAUSE = 1.0, 60.0
_MOST_NAMED = 3  # jobs in a message


@frozen
class EnqueuedJob:
    """A job as it was enqueued.

    Args:
        id: The job's id.
        handler: The name of its handler.
        queue: The name of its queue.
        args: Its positional arguments, as the handler gets them.
        kwargs: Its keyword arguments, as the handler gets them.
        delay: Seconds after which it may start.
        at: When it may start instead, in seconds since the epoch.
        meta: Its metadata.
    """

    id: str
    handler: str
    queue: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    delay: float
    at: float | None
    meta: Mapping[str, Any]


def enqueued(
    jobs: JobQueue, handler: Handler[..., Any, Any] | str | None = None
) -> list[EnqueuedJob]:
    """Return the jobs that were enqueued, whether they have run or not.

    Those of chains and groups are included. Jobs are listed until their retention ends.

    Args:
        jobs: The queue, whose broker must be a `MemoryBroker`. It need not be open.
        handler: Only jobs of this handler, or of the handler with this name.

    Returns:
        The jobs, in the order in which they were enqueued.

    Raises:
        ValueError: An argument is not valid.
        QueueError: The broker is not a `MemoryBroker`.
        InvalidPayloadError: The arguments of a job do not fit its handler.

    Example:
        ```python
        (job,) = enqueued(jobs, send_email)
        assert job.args == ("ada@example.org",)
        ```
    """
    validation.instances("jobs", (jobs,), JobQueue)
    if not isinstance(handler, Handler | str | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"handler must be a handler or its name, not {kind_of(handler)}")
    name = handler.name if isinstance(handler, Handler) else handler
    broker = broker_of(jobs)
    if not isinstance(broker, MemoryBroker):
        raise QueueError(
            f"enqueued() needs a MemoryBroker, not {broker!r}: use jobs.override(MemoryBroker())"
        )
    return [
        _described(jobs, message, message.handler)
        for message in broker.messages()
        if message.handler is not None and name in (None, message.handler)
    ]


def _described(jobs: JobQueue, message: Message, name: str) -> EnqueuedJob:
    body = decode(f"job {message.id}", message.body, float("inf"))
    args, kwargs = body.args, body.kwargs
    handler = handlers_of(jobs).get(name)
    if handler is not None:
        args, kwargs = handler.signature.load(args, kwargs)
    return EnqueuedJob(
        id=message.id,
        handler=name,
        queue=message.queue,
        args=tuple(args),
        kwargs=kwargs,
        delay=message.delay,
        at=message.at,
        meta=body.meta,
    )


async def drain(
    jobs: JobQueue,
    *,
    scheduled: bool = False,
    timeout: float | None = None,
) -> list[JobInfo]:
    """Run the jobs that are ready, and those that they enqueue.

    Workers of the queue run the jobs of their queues. A manager that exists for this call runs the
    jobs of all other queues: those that handlers and stored jobs name at once, others within a
    second, or a minute of virtual time. It does not enqueue the jobs of schedules. In virtual time,
    the library's wall clock follows the event loop's during the call.

    Args:
        jobs: The queue, which must be open.
        scheduled: Whether to wait for jobs that may start later, and for retries. Otherwise they
            stay, unless they are due before the last other job ends.
        timeout: Seconds on the event loop's clock; by default 60, or a day in virtual time, where
            the call also takes at most 60 seconds of real time.

    Returns:
        The jobs that ended during the call and are stored, in the order of their ends.

    Raises:
        ValueError: An argument is not valid.
        QueueError: The queue is not open, or the call would wait for the job that makes it.
        TimeoutError: Jobs are left after this time. Those that run on the manager of this call are
            cancelled and released.
        BrokerUnavailableError: The broker can't be reached.

    Example:
        ```python
        await send_email.enqueue("ada@example.org")
        (job,) = await drain(jobs)
        assert job.state is JobState.SUCCEEDED
        ```
    """
    validation.instances("jobs", (jobs,), JobQueue)
    validation.instances("scheduled", (scheduled,), bool)
    validation.optional(validation.seconds, "timeout", timeout, at_least=0)
    pool = pool_of(jobs)
    if current_attempt() is not None:
        raise QueueError("drain() would wait for the job that calls it: call it in the test")
    if timeout is None:
        timeout = _VIRTUAL if is_virtual() else _REAL
    with _wall_clock():
        before = {job.id async for job in jobs.list() if job.state.is_final}
        with anyio.move_on_after(timeout) as scope:
            if await _run(jobs, pool, scheduled=scheduled):
                ended = [job async for job in jobs.list() if job.state.is_final]
                return sorted(
                    (job for job in ended if job.id not in before),
                    key=lambda job: job.finished_at or 0.0,
                )
        left = [job async for job in jobs.list() if not job.state.is_final]
    shown = listed([f"{job.id} of {job.handler} is {job.state}" for job in left], _MOST_NAMED)
    if scope.cancelled_caught:
        after, advice = f"{timeout:g} s", "pass a longer timeout, or end them"
    else:
        after, advice = f"{_REAL:g} s of real time", "end them"
    raise TimeoutError(f"drain: jobs are left after {after}: {shown}; {advice}")


def _wall_clock() -> AbstractContextManager[None]:
    """Return a context manager for the wall clock of a call, which is virtual in virtual time."""
    if not is_virtual() or clock.wall is not time.time:  # a test's own clock
        return nullcontext()
    return virtual_wall_clock(datetime.now(UTC))


async def _run(jobs: JobQueue, pool: WorkerPool, *, scheduled: bool) -> bool:
    """Run jobs until none is left; return `False` if that takes too much real time."""
    states = [JobState.READY, JobState.RUNNING, *[JobState.SCHEDULED] * scheduled]
    give_up_at = time.monotonic() + _REAL
    pause, is_done = _FIRST_PAUSE, False
    longest = _LONGEST_VIRTUAL_PAUSE if is_virtual() else _LONGEST_PAUSE
    declared = {handler.config.terms.queue for handler in handlers_of(jobs).values()}
    async with Manager(name="drain") as manager:
        workers: list[Worker] = []
        try:
            while not is_virtual() or time.monotonic() < give_up_at:
                changes = pool.next_changes()  # first, because jobs may end during the query
                left = [job async for job in jobs.list() if not job.state.is_final]
                is_done = not any(job.state in states for job in left)
                if is_done:
                    break
                queues = {job.queue for job in left}
                if idle := (queues | declared) - pool.claimed_queues:
                    workers.append(pool.start(manager, Ordered(*sorted(idle)), _CONCURRENCY, ()))
                    continue
                has_changed = await _wait_for_any(changes, pause)
                pause = _FIRST_PAUSE if has_changed else min(2 * pause, longest)
        finally:
            with anyio.CancelScope(shield=True):
                for worker in workers:
                    await worker.close(timeout=0)
                await manager.close(timeout=0)
    return is_done


async def _wait_for_any(events: Sequence[anyio.Event], timeout: float) -> bool:
    """Wait for at most `timeout` seconds until an event is set; return whether one is."""

    async def wait(event: anyio.Event) -> None:
        await event.wait()
        tasks.cancel_scope.cancel()

    with anyio.move_on_after(timeout):
        async with anyio.create_task_group() as tasks:
            for event in events:
                tasks.start_soon(wait, event)
            await anyio.sleep_forever()
    return any(event.is_set() for event in events)


def override_with_memory() -> Iterator[Callable[[JobQueue], MemoryBroker]]:
    """Yield a function that gives a queue a `MemoryBroker`; restore the queues at the end."""
    with ExitStack() as stack:
        yield lambda jobs: stack.enter_context(jobs.override(MemoryBroker()))
