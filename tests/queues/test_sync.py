"""Calls of a queue from sync code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from opentelemetry import context, trace
from support.brokers import redis_servers
from support.brokers.kinds import KINDS, make_redis
from support.brokers.nats_servers import make_nats_broker, shared_server
from support.processes.process import PROGRAMS, running
from support.time import SOON

from background import JobEnqueued, Manager, Observer
from background.queues import (
    BrokerUnavailableError,
    DuplicateJobError,
    Handler,
    JobQueue,
    JobState,
    QueueError,
    chain,
)
from background.queues.abc import Broker
from background.queues.memory import MemoryBroker

S = JobState
Add = Handler[Any, Any, int]


async def add(a: int, b: int = 1) -> int:
    return a + b


@pytest.fixture(params=["memory", "sqlite"])
def jobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobQueue]:
    """A queue that is not open, with the handler `add`."""
    jobs = make_queue(KINDS[request.param].make(tmp_path))
    yield jobs
    jobs.close_sync()


@pytest.fixture
def handler(jobs: JobQueue) -> Add:
    return jobs._handlers["add"]


def make_queue(broker: Broker, **options: Any) -> JobQueue:
    jobs = JobQueue(broker, **options)
    jobs.handler(name="add")(add)
    return jobs


def private_threads() -> int:
    return sum(thread.name == "background queue" for thread in threading.enumerate())


def answer(jobs: JobQueue) -> str:
    """Return the error of a call that the broker does not answer."""
    with pytest.raises(BrokerUnavailableError) as failed:
        jobs.enqueue_sync("add", [1])
    return str(failed.value)


async def run_all(jobs: JobQueue) -> list[Any]:
    """Run the stored jobs, and return their results."""
    async with Manager() as manager, jobs:
        await jobs.start(manager)
        ids = [info.id async for info in jobs.list()]
        results = [await jobs.handle(id).result(timeout=SOON) for id in ids]
        await manager.close()
        return results


# A queue that is not open


def test_enqueue(jobs: JobQueue, handler: Add) -> None:
    """Sync code enqueues by handler, by name, with options, and steps."""
    ids = [
        handler.enqueue_sync(1).id,
        handler.options(id="two", meta={"x": 1}).enqueue_sync(1, b=2).id,
        jobs.enqueue_sync("add", [3]).id,
        jobs.enqueue_sync("add", kwargs={"a": 4}, id="four").id,
        jobs.enqueue_sync(handler.job(5), id="five").id,
        *(job.id for job in jobs.enqueue_many_sync([handler.job(6), handler.job(7)])),
        *(job.id for job in handler.options(delay=0).enqueue_many_sync([(8,), {"a": 8, "b": 2}])),
    ]
    chained = jobs.enqueue_sync(chain(handler.job(10), handler.job(11))).id
    assert private_threads() == 1
    assert anyio.run(run_all, jobs) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12]
    assert private_threads() == 0

    async def find() -> list[str]:
        async with jobs:
            return [info.id async for info in jobs.list()]

    assert anyio.run(find) == [*ids, f"{chained}..1", f"{chained}..2", chained]


def test_errors(jobs: JobQueue, handler: Add) -> None:
    """Sync calls raise the errors of the async ones."""
    with pytest.raises(TypeError, match="missing a required argument"):
        handler.enqueue_sync()
    with pytest.raises(ValueError, match="name must be"):
        jobs.enqueue_sync("no name")
    with pytest.raises(TypeError, match="steps must be made by"):
        jobs.enqueue_many_sync([1])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="calls must contain tuples"):
        handler.enqueue_many_sync([1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"id can't be given to enqueue_many"):
        handler.options(id="one").enqueue_many_sync([(1,)])
    handler.options(id="one").enqueue_sync(1)
    with pytest.raises(DuplicateJobError):
        handler.options(id="one").enqueue_sync(2)


def test_calls_of_iterator(jobs: JobQueue, handler: Add) -> None:
    """An iterator of sync code is read in the caller's thread."""
    threads: list[int] = []

    def calls() -> Iterator[tuple[int]]:
        for number in range(3):
            threads.append(threading.get_ident())
            yield (number,)

    assert len(handler.enqueue_many_sync(calls())) == 3
    assert threads == [threading.get_ident()] * 3


async def test_in_event_loop(jobs: JobQueue, handler: Add, blocking_calls: None) -> None:
    """Sync code can enqueue in the thread of an event loop that has not opened the queue."""
    job = handler.enqueue_sync(1)
    with pytest.raises(QueueError, match=r"is not open: enter it .* or call enqueue_sync"):
        await job.info()
    jobs.close_sync()


def test_close(jobs: JobQueue, handler: Add) -> None:
    """close_sync() ends the private event loop, and the next call starts it again."""
    jobs.close_sync()
    for number in range(3):
        handler.enqueue_sync(number)
        assert private_threads() == 1
        jobs.close_sync()
        jobs.close_sync()
        assert private_threads() == 0
    assert sorted(anyio.run(run_all, jobs)) == [1, 2, 3]


def test_many_threads(jobs: JobQueue, handler: Add) -> None:
    """Any number of threads share one private event loop."""
    begin = threading.Barrier(20)

    def enqueue(number: int) -> str:
        begin.wait()
        return [handler.enqueue_sync(number).id for _ in range(5)][-1]

    with ThreadPoolExecutor(20) as threads:
        ids = [*threads.map(enqueue, range(20))]
    assert private_threads() == 1
    assert len({*ids}) == 20
    assert len(anyio.run(run_all, jobs)) == 100


@pytest.mark.parametrize("name", [*redis_servers.available(), "nats"])
def test_with_server(name: str) -> None:
    """Sync code enqueues on servers."""
    jobs = make_queue(make_nats_broker() if name == "nats" else make_redis(name, Path()))
    jobs._handlers["add"].enqueue_sync(1)
    jobs.close_sync()
    jobs.enqueue_sync("add", [2])
    assert sorted(anyio.run(run_all, jobs)) == [2, 3]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "1"])
def test_invalid_timeout(timeout: Any) -> None:
    """A sync_timeout must be a finite number of seconds above 0."""
    with pytest.raises(ValueError, match=r"^sync_timeout must be"):
        JobQueue(MemoryBroker(), sync_timeout=timeout)


# A queue that is open in an event loop


@pytest.mark.realtime
async def test_from_thread(jobs: JobQueue, handler: Add, manager: Manager) -> None:
    """A call in another thread is made in the event loop in which the queue is open."""
    async with jobs:
        await jobs.start(manager)
        job = await anyio.to_thread.run_sync(handler.enqueue_sync, 1)
        assert await job.result(timeout=SOON) == 2
        many = await anyio.to_thread.run_sync(jobs.enqueue_many_sync, [handler.job(2)])
        assert [await job for job in many] == [3]
        many = await anyio.to_thread.run_sync(handler.enqueue_many_sync, [(3,), (4,)])
        assert [await job for job in many] == [4, 5]
        assert private_threads() == 0
        jobs.close_sync()
        await manager.close()


async def test_in_own_event_loop(jobs: JobQueue, handler: Add) -> None:
    """A call that would block the event loop of the queue is refused."""
    async with jobs:
        for call in (
            lambda: handler.enqueue_sync(1),
            lambda: handler.enqueue_many_sync([(1,)]),
            lambda: jobs.enqueue_sync("add", [1]),
        ):
            with pytest.raises(QueueError, match=r"would block .*: write `await enqueue\(…\)`"):
                call()
        assert await jobs.count() == 0


@pytest.mark.realtime
async def test_in_job(jobs: JobQueue, handler: Add, manager: Manager) -> None:
    """A sync handler enqueues jobs."""

    @jobs.handler(name="parent")
    def parent() -> str:
        return handler.enqueue_sync(1).id

    async with jobs:
        await jobs.start(manager)
        job = await parent.enqueue()
        assert await jobs.handle(await job.result(timeout=SOON)).result(timeout=SOON) == 2
        await manager.close()


@pytest.mark.realtime
async def test_enter_after_sync_call(jobs: JobQueue, handler: Add) -> None:
    """A queue that sync code has opened can be entered, and moves to the event loop."""
    await anyio.to_thread.run_sync(handler.enqueue_sync, 1)
    for count in (2, 4):
        async with jobs:
            assert private_threads() == 0
            await anyio.to_thread.run_sync(handler.enqueue_sync, 1)
            assert await jobs.count() == count
        await anyio.to_thread.run_sync(handler.enqueue_sync, 1)
        assert private_threads() == 1
    await anyio.to_thread.run_sync(jobs.close_sync)


@pytest.mark.realtime
async def test_enter_during_sync_calls(jobs: JobQueue, handler: Add) -> None:
    """No job is lost while the queue is entered and left."""
    ids: list[str] = []
    is_over = threading.Event()

    def enqueue() -> None:
        while not is_over.is_set():
            ids.append(handler.enqueue_sync(1).id)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(anyio.to_thread.run_sync, enqueue)
        for round in range(5):
            async with jobs:
                while len(ids) < 20 * round:
                    await anyio.lowlevel.checkpoint()
        is_over.set()
    async with jobs:
        assert {info.id async for info in jobs.list()} == {*ids}


def test_event_loop_ended(jobs: JobQueue, handler: Add) -> None:
    """A call fails at once if the event loop ended without leaving the queue."""
    with asyncio.Runner() as runner:
        runner.run(jobs.__aenter__())
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(handler.enqueue_sync, 1)
        with pytest.raises(QueueError, match="the event loop in which the queue is open has ended"):
            call.result(SOON)


# Slow brokers


class SlowBroker(MemoryBroker):
    """A broker whose methods `slow` never return."""

    def __init__(self, *slow: str) -> None:
        super().__init__()
        self.slow = {*slow}
        self.called = threading.Event()
        self.cancelled = threading.Event()

    async def _take(self, name: str) -> None:
        if name in self.slow:
            self.called.set()
            try:
                await anyio.sleep_forever()
            finally:
                self.cancelled.set()

    async def open(self) -> None:
        await self._take("open")

    async def enqueue(self, messages: Any) -> list[bool]:
        await self._take("enqueue")
        return await super().enqueue(messages)


def test_timeout() -> None:
    """A call that the broker does not answer is cancelled after the timeout."""
    broker = SlowBroker("enqueue")
    jobs = make_queue(broker, sync_timeout=0.05)
    text = r"^no answer within 0\.05 s: the job may or may not be enqueued$"
    with pytest.raises(BrokerUnavailableError, match=text):
        jobs.enqueue_sync("add", [1])
    assert broker.cancelled.wait(SOON)
    broker.slow.clear()
    jobs.enqueue_sync("add", [1])
    jobs.close_sync()


def test_timeout_of_opening() -> None:
    """A queue that can't be opened in time fails the call; closing cancels the opening."""
    broker = SlowBroker("open")
    jobs = make_queue(broker, sync_timeout=0.05)
    for _ in range(2):
        text = r"^no answer within 0\.05 s: the queue could not be opened$"
        with pytest.raises(BrokerUnavailableError, match=text):
            jobs.enqueue_sync("add", [1])
    assert not broker.cancelled.is_set()
    jobs.close_sync()
    assert broker.cancelled.is_set()


@pytest.mark.realtime
async def test_enter_during_opening(anyio_backend: object) -> None:
    """A call that waits for the opening in a private event loop moves with the queue."""
    broker = SlowBroker("open")
    jobs = make_queue(broker)
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, jobs.enqueue_sync, "add", [1])
        await anyio.to_thread.run_sync(broker.called.wait)
        broker.slow.clear()
        async with jobs:
            while await jobs.count() == 0:
                await anyio.lowlevel.checkpoint()
    assert private_threads() == 0


@pytest.mark.realtime
async def test_failed_enter(anyio_backend: object) -> None:
    """A call that waits while an event loop opens the queue gets the error of the opening."""

    class Away(SlowBroker):
        async def open(self) -> None:
            self.called.set()
            await anyio.to_thread.run_sync(begun.wait)
            raise BrokerUnavailableError("away")

    begun = threading.Event()
    broker = Away()
    jobs = make_queue(broker)
    errors: list[str] = []

    def enqueue() -> None:
        broker.called.wait()
        begun.set()
        errors.append(answer(jobs))

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, enqueue)
        with pytest.raises(BrokerUnavailableError, match="away"):
            await jobs.__aenter__()
    assert errors == ["away"]


class StuckBroker(MemoryBroker):
    """A broker that enqueues when `end` is set, and ignores cancellation."""

    def __init__(self) -> None:
        super().__init__()
        self.called = threading.Event()
        self.end = anyio.Event()

    async def enqueue(self, messages: Any) -> list[bool]:
        self.called.set()
        with anyio.CancelScope(shield=True):
            await self.end.wait()
            return await super().enqueue(messages)


@pytest.mark.realtime
@pytest.mark.parametrize("stuck", [False, True])
async def test_leave_during_call(
    stuck: bool, monkeypatch: pytest.MonkeyPatch, anyio_backend: object
) -> None:
    """A call that does not end while the queue is left fails."""
    for name in ("_FLUSH", "_SYNC_FLUSH"):
        monkeypatch.setattr(f"background.queues._queue.{name}", 0.01)
    broker = StuckBroker() if stuck else SlowBroker("enqueue")
    jobs = make_queue(broker)
    errors: list[str] = []

    async with anyio.create_task_group() as group, jobs:
        group.start_soon(anyio.to_thread.run_sync, lambda: errors.append(answer(jobs)))
        await anyio.to_thread.run_sync(broker.called.wait)
    assert errors == ["the queue was closed; the job may or may not be enqueued"]
    if isinstance(broker, StuckBroker):
        broker.end.set()
        async with jobs:
            while await jobs.count() == 0:
                await anyio.lowlevel.checkpoint()


@pytest.mark.realtime
async def test_timeout_before_call(anyio_backend: object, blocking_calls: None) -> None:
    """A call that its event loop does not begin in time is not made."""
    jobs = make_queue(MemoryBroker(), sync_timeout=0.05)
    async with jobs:
        thread = threading.Thread(target=partial(answer, jobs))
        thread.start()
        thread.join()
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert await jobs.count() == 0


def test_event_loop_ends_during_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call fails if its event loop ends, whether the queue was left or not."""
    monkeypatch.setattr("background.queues._queue._FLUSH", 0.01)
    for is_left in (False, True):
        broker = StuckBroker()
        jobs = make_queue(broker)
        with asyncio.Runner() as runner, ThreadPoolExecutor(1) as threads:
            runner.run(jobs.__aenter__())
            call = threads.submit(answer, jobs)
            runner.run(asyncio.to_thread(broker.called.wait))
            if is_left:
                runner.run(jobs.__aexit__(None, None, None))
            runner.close()
            assert call.result(SOON).startswith("the queue was closed; ")


def test_opening_fails() -> None:
    """An error of the broker reaches the caller, and the next call tries again."""
    faults = [BrokerUnavailableError("away"), BrokerUnavailableError("still away")]

    class Away(MemoryBroker):
        async def open(self) -> None:
            if faults:
                raise faults.pop(0)

    jobs = make_queue(Away())
    for text in ("^away", "^still away"):
        with pytest.raises(BrokerUnavailableError, match=text):
            jobs.enqueue_sync("add", [1])
    jobs.enqueue_sync("add", [1])
    jobs.close_sync()


@pytest.mark.parametrize("method", ["open", "enqueue"])
def test_traceback_of_outage(method: str) -> None:
    """The traceback of an outage has no frames of the library below the call."""

    async def fail(*args: object) -> None:
        raise BrokerUnavailableError("away") from OSError("refused")

    broker = MemoryBroker()
    setattr(broker, method, fail)
    jobs = make_queue(broker)
    with pytest.raises(BrokerUnavailableError, match="away") as failed:
        jobs.enqueue_sync("add", [1])
    assert isinstance(failed.value.__cause__, OSError)
    assert [entry.name for entry in failed.traceback][1:] == ["enqueue_sync", "run"]
    jobs.close_sync()


def test_closing_fails(caplog: pytest.LogCaptureFixture) -> None:
    """An error while the queue is closed for sync code is logged."""

    class Failing(MemoryBroker):
        async def close(self) -> None:
            raise OSError("stuck")

    jobs = make_queue(Failing())
    jobs.enqueue_sync("add", [1])
    jobs.close_sync()
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (
        "ERROR",
        "the queue of sync code could not be closed",
    )


@pytest.mark.realtime
async def test_slow_closing(monkeypatch: pytest.MonkeyPatch, anyio_backend: object) -> None:
    """A queue that can't be closed for sync code in time can't be entered yet."""

    class Slow(MemoryBroker):
        async def close(self) -> None:
            await anyio.to_thread.run_sync(end.wait)

    end = threading.Event()
    jobs = make_queue(Slow())
    await anyio.to_thread.run_sync(jobs.enqueue_sync, "add", [1])
    with monkeypatch.context() as patch:
        patch.setattr("background.queues._sync._CLOSING", 0.01)
        text = r"^the queue could not be closed within 0\.01 s$"
        with pytest.raises(QueueError, match=text):
            await anyio.to_thread.run_sync(jobs.close_sync)
        with pytest.raises(QueueError, match=text):
            await jobs.__aenter__()
    end.set()
    async with jobs:
        assert await jobs.count() == 1


def test_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call fails if no thread can be started, and the next one tries again."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    jobs = make_queue(MemoryBroker())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            jobs.enqueue_sync("add", [1])
    jobs.enqueue_sync("add", [1])
    jobs.close_sync()


def test_timeout_error_of_broker() -> None:
    """A TimeoutError of the broker is not mistaken for the end of the wait."""

    class Failing(MemoryBroker):
        async def enqueue(self, messages: Any) -> list[bool]:
            raise TimeoutError("of the broker")

    jobs = make_queue(Failing())
    with pytest.raises(TimeoutError, match="of the broker"):
        jobs.enqueue_sync("add", [1])
    jobs.close_sync()


@pytest.mark.skipif(sys.platform == "win32", reason="signals do not interrupt waits on Windows")
@pytest.mark.parametrize("slow", ["open", "enqueue"])
def test_keyboard_interrupt(slow: str) -> None:
    """A KeyboardInterrupt ends the wait, and cancels the call."""
    broker = SlowBroker(slow)
    jobs = make_queue(broker)
    main = threading.get_ident()

    def interrupt() -> None:
        broker.called.wait()
        signal.pthread_kill(main, signal.SIGINT)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            jobs.enqueue_sync("add", [1])
    assert slow == "open" or broker.cancelled.wait(SOON)
    jobs.close_sync()
    assert broker.cancelled.is_set()


class Interrupting:
    """Raises a KeyboardInterrupt at one of the lines that hand a call to the event loop."""

    def __init__(self, line: int) -> None:
        self.is_waiting = False
        self._line = line
        self._lines: set[int] = set()

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        if code.co_qualname in ("QueueLoop.run", "QueueLoop._submit"):
            return self._count
        caller = frame.f_back
        if code.co_name == "result_until" and caller and caller.f_code.co_name == "run":
            self.is_waiting = True
            raise KeyboardInterrupt
        return None

    def _count(self, frame: FrameType, event: str, arg: object) -> Any:
        # A `with` line comes again when its block ends, where no signal can interrupt it.
        if event == "line" and frame.f_lineno not in self._lines:
            self._lines.add(frame.f_lineno)
            if len(self._lines) == self._line:
                raise KeyboardInterrupt
        return self._count


def test_keyboard_interrupt_at_any_line() -> None:
    """A KeyboardInterrupt leaves no running call, wherever it comes before the wait."""
    line, is_waiting = 0, False
    while not is_waiting:
        line += 1
        broker = SlowBroker()
        jobs = make_queue(broker)
        jobs.enqueue_sync("add", [1])
        broker.slow.add("enqueue")
        interrupting, tracer = Interrupting(line), sys.gettrace()
        sys.settrace(interrupting)
        try:
            with pytest.raises(KeyboardInterrupt):
                jobs.enqueue_sync("add", [1])
        finally:
            sys.settrace(tracer)
        is_waiting = interrupting.is_waiting
        broker.slow.clear()
        jobs.enqueue_sync("add", [2])
        assert not broker.called.is_set() or broker.cancelled.wait(SOON), f"line {line}"
        loop = jobs._client.loop
        jobs.close_sync()
        assert not loop._calls, f"line {line}"
    assert line > 10


# Observers and contexts


class Hook(Observer):
    """Calls a function for each enqueued job."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def on_job_enqueued(self, event: JobEnqueued) -> None:
        self._call()


caller: ContextVar[str] = ContextVar("caller", default="")


def test_context() -> None:
    """The caller's context variables and trace context travel with the job."""
    seen: list[str] = []
    jobs = make_queue(MemoryBroker(), observers=[Hook(lambda: seen.append(caller.get()))])
    span = trace.NonRecordingSpan(trace.SpanContext(0xA, 0xB, False, trace.TraceFlags(1)))

    async def find(id: str) -> bytes:
        async with jobs:
            job = await jobs._client.broker.get(id)
            assert job is not None
            return job.message.body

    for name in ("first", "second"):
        token = context.attach(trace.set_span_in_context(span))
        caller.set(name)
        job = jobs.enqueue_sync("add", [1])
        context.detach(token)
        body = anyio.run(find, job.id)
        assert b"traceparent" in body
        assert f"{0xA:032x}-{0xB:016x}".encode() in body
    assert seen == ["first", "second"]


@pytest.mark.realtime
async def test_context_in_event_loop(anyio_backend: object) -> None:
    """The context of the calling thread travels to the event loop of the queue."""
    seen: list[str] = []
    jobs = make_queue(MemoryBroker(), observers=[Hook(lambda: seen.append(caller.get()))])

    def enqueue() -> None:
        caller.set("thread")
        jobs.enqueue_sync("add", [1])

    async with jobs:
        caller.set("event loop")
        await anyio.to_thread.run_sync(enqueue)
        await jobs.enqueue("add", [1])
    assert seen == ["thread", "event loop"]


def test_calls_of_hooks() -> None:
    """A hook in the private event loop can't wait for this event loop."""
    errors: list[str] = []

    def call() -> None:
        for fn in (lambda: jobs.enqueue_sync("add", [1]), jobs.close_sync):
            with pytest.raises(QueueError) as refused:
                fn()
            errors.append(str(refused.value))

    jobs = make_queue(MemoryBroker(), observers=[Hook(call)])
    jobs.enqueue_sync("add", [1])
    blocking, waiting = errors
    assert blocking.startswith("enqueue_sync() would block the event loop in which the queue is")
    assert waiting == "close_sync() would wait for its own end: call it in another thread"
    jobs.close_sync()


def test_hook_ends_program() -> None:
    """The error of a hook that must end the program reaches the caller."""

    def end() -> None:
        raise KeyboardInterrupt

    jobs = make_queue(MemoryBroker(), observers=[Hook(end)])
    with pytest.raises(KeyboardInterrupt):
        jobs.enqueue_sync("add", [1])
    jobs.close_sync()


# Processes


SCRIPT = PROGRAMS / "sync_jobs.py"

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")


def test_exit(tmp_path: Path) -> None:
    """A program that does not close the queue ends at once, without threads."""
    with running(SCRIPT, "exit", f"sqlite:///{tmp_path / 'jobs.db'}") as process:
        assert process.wait() == 0
    assert process.lines == ["before: ['SQLite', 'background']", "at exit: []"]


def test_thread_outlives_main_thread(tmp_path: Path) -> None:
    """Threads that outlive the main thread continue to enqueue."""
    with running(SCRIPT, "thread", f"sqlite:///{tmp_path / 'jobs.db'}") as process:
        assert process.wait() == 0
    assert process.lines == ["stored: 4"]


@needs_fork
@pytest.mark.parametrize("name", ["sqlite", *redis_servers.available(), "nats"])
def test_fork(name: str, tmp_path: Path) -> None:
    """Processes that were forked while threads enqueue have event loops of their own."""
    if name == "sqlite":
        url = f"sqlite:///{tmp_path / 'jobs.db'}"
    elif name == "nats":
        url = shared_server().url
    else:
        url = redis_servers.server(name).url
    with running("-W", "ignore:several connections", SCRIPT, "fork", url) as process:
        assert process.wait() == 0
    assert process.lines == [f"children: {[0] * 6}", "all stored: True"]


@needs_fork
def test_fork_of_open_queue(tmp_path: Path) -> None:
    """A child whose parent had opened the queue in an event loop is refused."""
    with running(SCRIPT, "open", f"sqlite:///{tmp_path / 'jobs.db'}") as process:
        assert process.wait() == 0
    refused = "refused: the queue was opened by another process, before a fork, and its"
    *answers, counts = process.lines
    assert len(answers) == 2
    assert all(answer.startswith(refused) for answer in answers)
    assert counts == "parent counts 0"


async def test_inherited_queue(jobs: JobQueue, handler: Add) -> None:
    """An open queue that was inherited from a forking parent is refused."""
    async with jobs:
        home = jobs._sync._home
        assert home is not None
        home.process = 0
        with pytest.raises(QueueError, match="before a fork"):
            handler.enqueue_sync(1)
        with pytest.raises(QueueError, match="before a fork"):
            await jobs.__aenter__()
