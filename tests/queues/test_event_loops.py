"""The use of an open queue from other event loops and threads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.brokers import redis_servers
from support.brokers.faulty import FaultyBroker
from support.brokers.kinds import KINDS, make_redis
from support.brokers.nats_servers import make_nats_broker
from support.time import SOON

from background import Manager
from background.queues import Handler, JobContext, JobHandle, JobQueue
from background.queues.abc import Broker
from background.queues.memory import MemoryBroker
from background.queues.sqlite import SQLiteBroker

ELSEWHERE = (
    "QueueError: the queue is open in another event loop or thread: call enqueue_sync() here, or "
    "make one JobQueue for each event loop"
)

Call = Callable[[JobQueue, Handler[Any, Any, Any], JobHandle[Any]], Awaitable[Any]]


async def add(a: int, b: int = 1) -> int:
    return a + b


async def list_one(jobs: JobQueue) -> None:
    async for _ in jobs.list():
        return


async def await_job(job: JobHandle[Any]) -> Any:
    return await job


#: The methods that reach the broker.
CALLS: dict[str, Call] = {
    "handler.enqueue": lambda jobs, handler, job: handler.enqueue(1),
    "handler.options": lambda jobs, handler, job: handler.options(delay=1).enqueue(1),
    "handler.enqueue_many": lambda jobs, handler, job: handler.enqueue_many([(1,)]),
    "enqueue(name)": lambda jobs, handler, job: jobs.enqueue("elsewhere"),
    "enqueue(step)": lambda jobs, handler, job: jobs.enqueue(handler.job(1), id="step"),
    "enqueue_many": lambda jobs, handler, job: jobs.enqueue_many([handler.job(1)]),
    "get": lambda jobs, handler, job: jobs.get(job.id),
    "count": lambda jobs, handler, job: jobs.count(),
    "list": lambda jobs, handler, job: list_one(jobs),
    "cancel": lambda jobs, handler, job: jobs.cancel(job.id),
    "requeue": lambda jobs, handler, job: jobs.requeue(job.id),
    "purge": lambda jobs, handler, job: jobs.purge(older_than=0),
    "start": lambda jobs, handler, job: jobs.start(Manager()),
    "leave": lambda jobs, handler, job: jobs.__aexit__(None, None, None),
    "job.result": lambda jobs, handler, job: job.result(timeout=1),
    "await job": lambda jobs, handler, job: await_job(job),
    "job.wait": lambda jobs, handler, job: job.wait(timeout=1),
    "job.info": lambda jobs, handler, job: job.info(),
    "job.cancel": lambda jobs, handler, job: job.cancel(),
}


def answer(call: Callable[[], Awaitable[Any]], backend: str = "asyncio") -> str:
    """Return the answer of a call in a new event loop, or its error."""

    async def run() -> str:
        try:
            return repr(await call())
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    return anyio.run(run, backend=backend)


@pytest.mark.realtime
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_calls_from_thread(kind: str, tmp_path: Path, anyio_backend: object) -> None:
    """Calls in other threads' event loops are refused, and the queue continues to work."""
    jobs = JobQueue(KINDS[kind].make(tmp_path))
    handler = jobs.handler(name="add")(add)
    async with jobs:
        job = await handler.enqueue(1)

        def call_all() -> dict[str, set[str]]:
            return {
                name: {
                    answer(partial(call, jobs, handler, job), backend)
                    for backend in ("asyncio", "trio")
                }
                for name, call in CALLS.items()
            }

        answers = await anyio.to_thread.run_sync(call_all)
        assert answers == {name: {ELSEWHERE} for name in CALLS}
        assert await jobs.count() == 1


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_calls_from_later_loop(kind: str, tmp_path: Path) -> None:
    """A queue that was opened in one event loop is refused in the thread's next event loop."""
    jobs = JobQueue(KINDS[kind].make(tmp_path))
    handler = jobs.handler(name="add")(add)
    with asyncio.Runner() as runner:  # as a fixture with a longer scope than the test
        runner.run(jobs.__aenter__())
        job = runner.run(handler.enqueue(1))
        answers = {name: answer(partial(call, jobs, handler, job)) for name, call in CALLS.items()}
        assert answers == dict.fromkeys(CALLS, ELSEWHERE)
        assert runner.run(jobs.count()) == 1
        runner.run(jobs.__aexit__(None, None, None))


@pytest.mark.realtime
async def test_enter_from_thread(tmp_path: Path, anyio_backend: object) -> None:
    """A queue can't be entered in two event loops at a time."""
    jobs = JobQueue(SQLiteBroker(tmp_path / "jobs.db"))
    async with jobs:
        entered = await anyio.to_thread.run_sync(answer, jobs.__aenter__)
        assert entered.startswith("QueueError: the queue is open already: make one JobQueue")
        assert await jobs.count() == 0


@pytest.mark.realtime
async def test_close_worker_from_thread(manager: Manager) -> None:
    """A worker can't be closed in another event loop."""
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="add")(add)
    async with jobs:
        worker = await jobs.start(manager)
        closed = await anyio.to_thread.run_sync(answer, worker.close)
        assert closed.startswith("QueueError: the worker runs in another event loop or thread")
        assert await (await handler.enqueue(1)).result(timeout=SOON) == 2


@pytest.mark.realtime
async def test_save_from_thread(manager: Manager) -> None:
    """A job can't store an intermediate result in another event loop."""
    jobs = JobQueue(MemoryBroker())

    @jobs.handler(name="save")
    async def save() -> str:
        return await anyio.to_thread.run_sync(answer, partial(JobContext.current().save, 1))

    async with jobs:
        await jobs.start(manager)
        job = await save.enqueue()
        assert await job.result(timeout=SOON) == ELSEWHERE
        await manager.close()


async def test_call_after_fork(broker: FaultyBroker) -> None:
    """A queue that another process opened is refused, in the forked child's own event loop."""
    jobs = JobQueue(broker)
    async with jobs:
        loop = jobs._client.loop
        assert loop is not None
        process, loop._process = loop._process, 0
        refused = await anyio.to_thread.run_sync(answer, jobs.count)
        loop._process = process
        assert refused.startswith("QueueError: the queue was opened by another process, before a")


def servers() -> list[Any]:
    """Return functions that make brokers on servers, as parameters."""
    makers: dict[str, Callable[[], Broker]] = {"nats": make_nats_broker}
    for name in redis_servers.available():
        makers[name] = partial(make_redis, name, Path())
    return [pytest.param(make, id=name) for name, make in makers.items()]


@pytest.mark.parametrize("make", servers())
def test_calls_with_server(make: Callable[[], Broker]) -> None:
    """A queue on a server is refused in another event loop, with the error of all brokers."""
    jobs = JobQueue(make())
    handler = jobs.handler(name="add")(add)

    async def main() -> list[str]:
        async with jobs:
            job = await handler.enqueue(1)
            calls = (partial(handler.enqueue, 1), job.info, jobs.count)
            answers = [await anyio.to_thread.run_sync(answer, call) for call in calls]
            await job.cancel()
            await jobs.purge(older_than=0)
            return answers

    assert anyio.run(main) == [ELSEWHERE] * 3


async def test_leave_while_enqueueing(broker: FaultyBroker) -> None:
    """A job that the broker accepts after the queue was left is enqueued."""
    jobs = JobQueue(broker)
    held = broker.hold("enqueue")
    async with anyio.create_task_group() as group:
        async with jobs:
            group.start_soon(jobs.enqueue, "elsewhere")
            await broker.called("enqueue")
        held.set()
    assert await broker.real.count() == 1


def run_job(jobs: JobQueue, backend: str) -> Any:
    """Run a job in a new event loop, and return its result."""
    handler = jobs.handler(name=f"add-{len(jobs._handlers)}")(add)

    async def main() -> Any:
        async with Manager() as manager, jobs:
            await jobs.start(manager)
            job = await handler.enqueue(1)
            try:
                return await job.result(timeout=SOON)
            finally:
                await manager.close()

    return anyio.run(main, backend=backend)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_reopened(kind: str, tmp_path: Path) -> None:
    """A queue can be opened in one event loop after the other, of any library."""
    jobs = JobQueue(KINDS[kind].make(tmp_path))
    backends = ["asyncio", "asyncio", "trio", "asyncio"]
    assert [run_job(jobs, backend) for backend in backends] == [2, 2, 2, 2]


@pytest.mark.parametrize("make", servers())
def test_reopened_on_server(make: Callable[[], Broker], caplog: pytest.LogCaptureFixture) -> None:
    """A queue on a server can be opened in one event loop after the other."""
    jobs = JobQueue(make())
    assert [run_job(jobs, "asyncio") for _ in range(4)] == [2] * 4
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []


def test_cancelled_while_disconnecting() -> None:
    """A native cancellation while the queue disconnects disconnects again, and frees the queue."""

    class Slow(MemoryBroker):
        closings = 0

        async def close(self) -> None:
            self.closings += 1
            if self.closings == 1:
                task.cancel()
                await asyncio.sleep(0)

    async def main() -> None:
        nonlocal task
        await jobs.__aenter__()
        task = asyncio.create_task(jobs.__aexit__(None, None, None))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert broker.closings == 2
        async with jobs:
            assert await jobs.count() == 0

    broker = Slow()
    jobs = JobQueue(broker)
    task: asyncio.Task[None]
    asyncio.run(main())
