"""Type checks of durable jobs; this module never runs.

Expected errors are ignored; both checkers report an ignored error that does not occur.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, assert_type

import tenacity

from background import Manager, Observer, cron, every
from background.queues import (
    Handler,
    JobContext,
    JobFailedError,
    JobHandle,
    JobInfo,
    JobQueue,
    JobState,
    Ordered,
    Step,
    Weighted,
    Worker,
    chain,
    group,
)
from background.queues.abc import Broker, Results
from background.queues.memory import MemoryBroker
from background.queues.sqlite import SQLiteBroker
from background.testing import EnqueuedJob, drain, enqueued

jobs = JobQueue(MemoryBroker())


@dataclass
class Size:
    width: int
    height: int


class Colour:
    def __init__(self, text: str) -> None:
        self.text = text


jobs.register_type(Colour, lambda colour: colour.text, Colour)
jobs.register_type(Colour, lambda colour: colour.word, Colour)  # type: ignore[attr-defined]
jobs.register_type(Colour, lambda colour: colour.text, lambda data: 5)  # type: ignore[arg-type, return-value]


@jobs.handler(queue="mail", retry=5, timeout=30)
async def send(to: str, subject: str, *, urgent: bool = False) -> str:
    return to


@jobs.handler()
def resize(path: str, size: Size | None = None) -> Size:
    return size or Size(0, 0)


@jobs.handler(name="nothing", expires=60, store_result=False, observers=[Observer()])
async def nothing() -> None: ...


@jobs.handler
def add_one(number: int) -> int:
    return number + 1


@jobs.handler
async def plain(text: str) -> str:
    return text


@jobs.handler(retry=tenacity.AsyncRetrying())
def later(number: int) -> Awaitable[bytes]:
    raise NotImplementedError


# Handlers: the types of their functions


async def handlers() -> None:
    assert_type(await send("a", "b"), str)
    assert_type(resize("a"), Size)
    assert_type(await later(1), bytes)
    assert_type(send.name, str)

    assert_type(await send.enqueue("a", "b"), JobHandle[str])
    assert_type(await send.enqueue("a", subject="b", urgent=True), JobHandle[str])
    assert_type(await resize.enqueue("a", Size(1, 2)), JobHandle[Size])
    assert_type(await nothing.enqueue(), JobHandle[None])
    assert_type(await add_one.enqueue(1), JobHandle[int])
    assert_type(add_one(1), int)
    assert_type(await plain.enqueue("a"), JobHandle[str])
    assert_type(await plain("a"), str)
    assert_type(await later.enqueue(1), JobHandle[bytes])

    assert_type(await send.enqueue_many([("a", "b")]), list[JobHandle[str]])
    assert_type(await send.enqueue_many([{"to": "a", "subject": "b"}]), list[JobHandle[str]])
    assert_type(await resize.enqueue_many((name,) for name in "ab"), list[JobHandle[Size]])

    assert_type(await send.options(delay=5).enqueue("a", "b"), JobHandle[str])
    assert_type(await resize.options(queue="q").enqueue_many([("a",)]), list[JobHandle[Size]])
    assert_type(send.options(meta={"k": 1}).job("a", "b"), Step[str])
    send.options(at=datetime.now(UTC), id="one", expires=5.0, retry=3, timeout=1)
    send.options(at=None, id=None, queue=None, expires=None, retry=None, timeout=None, meta=None)


def sync_code() -> None:
    assert_type(send.enqueue_sync("a", subject="b"), JobHandle[str])
    assert_type(send.options(delay=5).enqueue_sync("a", "b"), JobHandle[str])
    assert_type(jobs.enqueue_sync("name", [1], {"k": 2}, delay=5), JobHandle[Any])
    assert_type(jobs.enqueue_sync(resize.job("a"), id="one"), JobHandle[Size])
    assert_type(jobs.enqueue_many_sync([resize.job("a")]), list[JobHandle[Any]])
    assert_type(resize.enqueue_many_sync([("a",), {"path": "b"}]), list[JobHandle[Size]])
    assert_type(resize.options(delay=5).enqueue_many_sync([("a",)]), list[JobHandle[Size]])
    jobs.close_sync()
    resize.enqueue_many_sync([5])  # type: ignore[list-item]
    send.enqueue_sync("a")  # type: ignore[call-arg]
    resize.enqueue_sync(1)  # type: ignore[arg-type]
    jobs.enqueue_sync(send)  # type: ignore[call-overload]
    jobs.enqueue_sync("name", color="red")  # type: ignore[call-overload]


async def wrong_calls() -> None:
    await send("a")  # type: ignore[call-arg]
    await send.enqueue("a")  # type: ignore[call-arg]
    await send.enqueue("a", 1)  # type: ignore[arg-type]
    await send.enqueue("a", "b", loud=True)  # type: ignore[call-arg]
    await resize.enqueue("a", (1, 2))  # type: ignore[arg-type]
    await nothing.enqueue(1)  # type: ignore[call-arg]
    await send.enqueue_many(["a", 1])  # type: ignore[list-item]
    await send.enqueue_many(5)  # type: ignore[arg-type]
    await send.options(delay=5).enqueue("a")  # type: ignore[call-arg]
    send.options(delay="5")  # type: ignore[arg-type]
    send.options(at="tomorrow")  # type: ignore[arg-type]
    send.options(retry=tenacity.AsyncRetrying())  # type: ignore[arg-type]
    send.options(color="red")  # type: ignore[call-arg]
    send.job("a")  # type: ignore[call-arg]
    jobs.handler(queue=5)  # type: ignore[call-overload]
    jobs.handler(retry="5")  # type: ignore[call-overload]
    jobs.handler("mail")  # type: ignore[call-overload]
    jobs.handler(add_one, queue="mail")  # type: ignore[call-overload]
    jobs.handler()(5)  # type: ignore[call-overload]


# Handles


def widened(handle: JobHandle[Size]) -> JobHandle[object]:
    return handle


async def handles(handle: JobHandle[Size]) -> None:
    assert_type(await handle.result(), Size)
    assert_type(await handle.result(timeout=5), Size)
    assert_type(await handle.wait(), JobState)
    assert_type(await handle.info(), JobInfo | None)
    assert_type(await handle.cancel(), bool)
    assert_type(await handle, Size)
    assert_type(handle.id, str)
    assert_type((await handle.wait()).is_final, bool)
    await handle.result("5")  # type: ignore[arg-type]


# Chains and groups


async def chains_and_groups() -> None:
    assert_type(send.job("a", "b"), Step[str])
    assert_type(group(send.job("a", "b"), send.job("c", "d")), Step[list[str]])
    assert_type(group(group(nothing.job())), Step[list[list[None]]])
    assert_type(await jobs.enqueue(resize.job("a")), JobHandle[Size])
    job = await jobs.enqueue(group(*[resize.job(name) for name in "ab"]), id="job")
    assert_type(await job.result(), list[Size])
    assert_type(chain(send.job("a", "b"), resize.job("a"), nothing.job()), Step[None])
    assert_type(chain(nothing.job()), Step[None])
    assert_type(await jobs.enqueue(chain(nothing.job(), resize.job("a"))), JobHandle[Size])
    assert_type(chain(*[send.job("a", "b"), send.job("c", "d")]), Step[str])
    assert_type(chain(group(send.job("a", "b"), resize.job("a")), nothing.job()), Step[None])

    different: Step[list[str | Size]] = group(send.job("a", "b"), resize.job("a"))
    steps: list[Step[object]] = [different, nothing.job(), chain(resize.job("a"), nothing.job())]
    await jobs.enqueue_many(steps)

    chain(send)  # type: ignore[call-overload]
    chain("send", nothing.job())  # type: ignore[call-overload]
    group("send")  # type: ignore[arg-type]
    await jobs.enqueue(send.job("a", "b"), delay=5)  # type: ignore[call-overload]


# The queue


async def queue(manager: Manager, broker: Broker, results: Results) -> None:
    jobs_to_start = JobQueue(
        broker,
        results=results,
        observers=Observer(),
        lease=5,
        max_payload=1000,
        max_crashes=2,
        retention=60,
        sync_timeout=10,
        wait=30,
    )
    assert_type(JobQueue.from_url("sqlite:///jobs.db", lease=5.0), JobQueue)
    assert_type(JobQueue.from_url("redis://host", prefix="shop"), JobQueue)
    SQLiteBroker("jobs.db", synchronous="FULL")
    async with jobs_to_start as entered:
        assert_type(entered, JobQueue)
        assert_type(await entered.start(manager), Worker)
        await entered.start(manager, Ordered("a", "b"), concurrency=50)
        await entered.start(manager, queues=Weighted({"a": 3, "b": 1.5}))
        assert_type(await entered.enqueue("name", [1], {"k": 2}, delay=5), JobHandle[Any])
        await entered.enqueue("name", meta={"k": 1}, id="one")
        assert_type(entered.handle("id"), JobHandle[Any])
        assert_type(await entered.get("id"), JobInfo | None)
        assert_type(await entered.count(), int)
        await entered.count(queue="queue", state=JobState.READY)
        async for info in entered.list(queue="q", state=JobState.DEAD):
            assert_type(info, JobInfo)
            assert_type(info.error, JobFailedError | None)
            assert_type(info.args, Sequence[Any] | None)
            assert_type(info.meta, Mapping[str, Any])
            assert_type(info.state, JobState)
            assert_type(info.payload, bytes)
        assert_type(await entered.cancel("id"), bool)
        assert_type(await entered.requeue("id"), bool)
        assert_type(await entered.purge(state=JobState.DEAD, older_than=5), int)
        assert_type(await entered.open(), None)
        assert_type(await entered.close(), None)
        entered.schedule(cron("0 3 * * *", tz="Europe/Prague"), send.job("a", "b"))
        entered.schedule(every(60, jitter=5), resize.options(queue="q").job("a"))
        assert_type(
            await entered.enqueue_many([resize.job("a"), nothing.job()]), list[JobHandle[Any]]
        )
        await entered.start(manager, ["a", "b"])
        await entered.work(["a"], concurrency=5, signals=True, grace=5)
        await entered.work(color="red")  # type: ignore[call-arg]

    JobQueue("memory://")  # type: ignore[arg-type]
    JobQueue(broker, lease="5")  # type: ignore[arg-type]
    await jobs.enqueue("name", delay="5")  # type: ignore[call-overload]
    await jobs.enqueue(send)  # type: ignore[call-overload]
    await jobs.start(manager, [1])  # type: ignore[list-item]
    jobs.schedule(60, nothing.job())  # type: ignore[arg-type]
    jobs.schedule(every(60), nothing)  # type: ignore[arg-type]
    resize.job(1)  # type: ignore[arg-type]
    await jobs.count("queue")  # type: ignore[call-arg]
    Weighted({"a": "1"})  # type: ignore[dict-item]
    Ordered(1)  # type: ignore[arg-type]


async def context() -> None:
    current = JobContext.current()
    assert_type(current, JobContext)
    assert_type(current.id, str)
    assert_type(current.queue, str)
    assert_type(current.attempt, int)
    assert_type(current.enqueued_at, float)
    assert_type(current.previous, Any)
    assert_type(current.meta, Mapping[str, Any])
    await current.save({"k": 1})


def handler_name(handler: Handler[..., Any, Any]) -> None:
    assert_type(handler.name, str)


async def tools_for_tests(path: str) -> None:
    with jobs.override(MemoryBroker()) as broker:
        assert_type(broker, MemoryBroker)
    assert_type(await drain(jobs), list[JobInfo])
    assert_type(await drain(jobs, scheduled=True, timeout=60), list[JobInfo])
    assert_type(enqueued(jobs), list[EnqueuedJob])
    assert_type(enqueued(jobs, "name"), list[EnqueuedJob])
    (job,) = enqueued(jobs, resize)
    assert_type(job.args, tuple[Any, ...])
    assert_type(job.kwargs, Mapping[str, Any])
    assert_type(job.at, float | None)
    with jobs.override("memory://"):  # type: ignore[type-var]
        pass
    await drain(jobs, timeout="60")  # type: ignore[arg-type]
    await drain(jobs, True)  # type: ignore[call-arg]
    enqueued(jobs, resize.fn)  # type: ignore[arg-type]
