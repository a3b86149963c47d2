"""Jobs from their arguments to their results."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

import anyio
import pytest
from support.brokers.faulty import FaultyBroker, MemoryResults
from support.brokers.kinds import elapse
from support.job_events import events_of_attempts

from background import JobDead, JobEnqueued, Manager
from background._support import clock
from background.queues import (
    BrokerUnavailableError,
    DuplicateJobError,
    InvalidPayloadError,
    JobCancelledError,
    JobContext,
    JobExpiredError,
    JobFailedError,
    JobQueue,
    JobState,
    Ordered,
    PayloadTooLargeError,
    QueueError,
    Weighted,
    chain,
)
from background.queues.abc import Message
from background.queues.memory import MemoryBroker
from background.queues.sqlite import SQLiteBroker
from background.testing import RecordingObserver

S = JobState


async def add(a: int, b: int = 1) -> int:
    return a + b


def message(id: str, body: bytes, **options: Any) -> Message:
    fields = {
        "handler": "add",
        "queue": "default",
        "retention": 60,
        "dead_retention": 60,
        **options,
    }
    return Message(id=id, body=body, **fields)


# Enqueueing


async def test_enqueue_and_result(jobs: JobQueue, manager: Manager) -> None:
    """A job is enqueued and run, and its handle returns the result."""
    handler = jobs.handler()(add)
    assert handler.name == f"{__name__}.add"
    assert await handler(1, b=3) == 4
    assert repr(handler) == f"<Handler '{__name__}.add'>"
    worker = await jobs.start(manager)
    job = await handler.enqueue(1, b=2)
    assert await job.result() == 3
    assert await job.wait() is S.SUCCEEDED
    assert repr(job) == f"<JobHandle {job.id}>"
    assert repr(worker).startswith("<Worker of Ordered('default'), ")


async def test_invalid_arguments(jobs: JobQueue, broker: FaultyBroker) -> None:
    """Invalid arguments are rejected without a call to the broker."""
    handler = jobs.handler()(add)
    with pytest.raises(TypeError, match="missing"):
        await handler.enqueue()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="c"):
        await handler.enqueue(1, c=2)  # type: ignore[call-arg]
    with pytest.raises(InvalidPayloadError, match="'a'"):
        await handler.enqueue("one")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await jobs.enqueue(handler.name, [1, 2, 3])
    hint = r"'delay'; options go before the arguments, as in handler"
    with pytest.raises(TypeError, match=hint):
        await handler.enqueue(1, delay=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=hint):
        await handler.enqueue_many([{"a": 1, "delay": 5}])
    with pytest.raises(TypeError, match=hint):
        handler.job(1, delay=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"write handler\.enqueue"):
        await jobs.enqueue(handler, [1])  # type: ignore[call-overload]
    assert broker.calls["enqueue"] == 0


async def test_enqueue_steps(jobs: JobQueue, manager: Manager, broker: FaultyBroker) -> None:
    """jobs.enqueue_many() enqueues jobs of any handlers with one call to the broker."""
    first, second = jobs.handler(name="first")(add), jobs.handler(name="second")(add)
    before = broker.calls["enqueue"]
    handles = await jobs.enqueue_many([first.job(1), second.options(timeout=5).job(2, b=3)])
    assert broker.calls["enqueue"] == before + 1
    await jobs.start(manager)
    assert [await handle for handle in handles] == [2, 5]
    assert await jobs.enqueue_many([]) == []


async def test_enqueue_steps_of_chain(jobs: JobQueue) -> None:
    """jobs.enqueue_many() takes single jobs only, and enqueues none otherwise."""
    handler = jobs.handler(name="add")(add)
    wrong: Any
    for wrong in (chain(handler.job(1)), handler, "add"):
        with pytest.raises(TypeError, match=r"^steps must be made by handler\.job\(\)"):
            await jobs.enqueue_many([handler.job(1), wrong])
    wrong = handler.job(1)
    with pytest.raises(TypeError, match=r"^steps must be a list of steps, not Single$"):
        await jobs.enqueue_many(wrong)
    assert await jobs.count() == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"args": "x"}, "args"), ({"args": 1}, "args"), ({"kwargs": [1]}, "kwargs")],
)
async def test_invalid_call_by_name(jobs: JobQueue, arguments: Any, named: str) -> None:
    """Arguments of a handler in another process must be a list and a mapping."""
    with pytest.raises(ValueError, match=rf"^{named} must be a"):
        await jobs.enqueue("elsewhere", **arguments)
    assert await jobs.count() == 0


async def test_close_without_use() -> None:
    """Closing a queue that enqueued nothing, and whose observers are gone, changes nothing."""
    jobs = JobQueue(MemoryBroker())
    await jobs._enqueuer.close(1)
    async with jobs:
        await jobs._enqueuer.close(1)
    with pytest.raises(QueueError, match="not open"):
        await jobs.enqueue("elsewhere")


async def test_purge_everything(jobs: JobQueue) -> None:
    """purge() needs an argument, so that it does not delete all ended jobs by mistake."""
    with pytest.raises(ValueError, match=r"purge\(\) needs state or older_than"):
        await jobs.purge()


def test_final_states() -> None:
    """The states of jobs that have ended are final."""
    final = {state for state in JobState if state.is_final}
    assert final == {S.SUCCEEDED, S.DEAD, S.CANCELLED, S.EXPIRED}


async def test_enqueue_many(jobs: JobQueue, manager: Manager, broker: FaultyBroker) -> None:
    """enqueue_many() enqueues all jobs with one call to the broker."""
    handler = jobs.handler()(add)
    handles = await handler.enqueue_many([(1,), {"a": 2, "b": 3}, [4, 5]])
    assert broker.calls["enqueue"] == 1
    await jobs.start(manager)
    assert [await job.result() for job in handles] == [2, 5, 9]
    handles = await handler.options(queue="other", meta={"x": 1}).enqueue_many([(1,), (2,)])
    assert len({job.id for job in handles}) == await jobs.count(queue="other") == 2
    assert await handler.enqueue_many([]) == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"delay": 5, "expires": 60, "queue": "other"},
        {"at": 4e9, "expires": 5e9, "timeout": 2, "retry": 3, "meta": {"x": 1}},
    ],
)
async def test_enqueue_many_messages(jobs: JobQueue, broker: FaultyBroker, options: Any) -> None:
    """enqueue_many() stores the same messages as enqueue(), except for the ids."""
    handler = jobs.handler(expires=50, retention=7)(add).options(**options)
    single = [await handler.enqueue(1, 2), await handler.enqueue(a=1, b=2)]
    batch = await handler.enqueue_many([(1, 2), {"a": 1, "b": 2}])
    for single_job, batch_job in zip(single, batch, strict=True):
        stored = [await broker.get(job.id) for job in (single_job, batch_job)]
        first, second = (replace(job.message, id="") for job in stored if job is not None)
        assert first == second
        assert single_job.id != batch_job.id


@pytest.mark.parametrize("bad", [(), "text", 5, {"c": 1}, ("one",)])
async def test_enqueue_many_with_invalid_call(jobs: JobQueue, bad: Any) -> None:
    """enqueue_many() enqueues no job if the arguments of one job are invalid."""
    handler = jobs.handler()(add)
    with pytest.raises((TypeError, InvalidPayloadError)):
        await handler.enqueue_many([(1,), bad])
    assert await jobs.count() == 0


async def test_enqueue_many_with_id(jobs: JobQueue) -> None:
    """enqueue_many() rejects the option `id`."""
    with pytest.raises(ValueError, match="id can't"):
        await jobs.handler()(add).options(id="one").enqueue_many([(1,)])


async def test_sync_handler(jobs: JobQueue, manager: Manager) -> None:
    """A job of a sync handler runs and has the returned result."""

    @jobs.handler(name="double")
    def double(number: int) -> int:
        return 2 * number

    await jobs.start(manager)
    assert await (await double.enqueue(4)).result() == 8


async def test_job_options(jobs: JobQueue, manager: Manager) -> None:
    """A job's options override those of its handler."""
    handler = jobs.handler(queue="q", expires=500, timeout=100, retry=3)(add)
    options = handler.options(id="custom", queue="r", meta={"by": "user"}, expires=50, timeout=9)
    job = await options.enqueue(1)
    info = await job.info()
    assert info is not None
    assert (info.id, info.handler, info.queue, info.state) == ("custom", handler.name, "r", S.READY)
    assert (info.args, info.kwargs, info.meta) == ([1], {}, {"by": "user"})
    assert (info.attempt, info.started_at, info.finished_at) == (0, None, None)
    assert info.error is info.result is None
    assert b"[1]" in info.payload


class Name(str, Enum):  # noqa: UP042 - prints as Name.ID, unlike a StrEnum
    HANDLER = "h"
    HERE = "here"
    THERE = "there"
    ID = "the-id"


@pytest.mark.parametrize(
    "queues", [Ordered(Name.HERE, Name.THERE), Weighted({Name.HERE: 1, Name.THERE: 1})]
)
async def test_enum_names(
    queues: Ordered | Weighted, jobs: JobQueue, manager: Manager, broker: FaultyBroker
) -> None:
    """Members of a string enumeration are the same names as their plain values."""
    handler = jobs.handler(name=Name.HANDLER, queue=Name.HERE)(add)
    first = await handler.enqueue(1)
    second = await handler.options(id=Name.ID, queue=Name.THERE).enqueue(2)
    third = await jobs.enqueue(Name.HANDLER, [3])
    found = [await broker.get(id) for id in (first.id, "the-id", third.id)]
    names = [(job.message.handler, job.message.queue) for job in found if job is not None]
    assert names == [("h", "here"), ("h", "there"), ("h", "here")]
    assert {type(name) for pair in names for name in pair} == {str}
    await jobs.start(manager, queues)
    assert [await job.result() for job in (first, second, third)] == [2, 3, 4]
    assert await jobs.count(queue=Name.HERE) == await jobs.count(queue="here") == 2
    assert [info.id async for info in jobs.list(queue=Name.THERE)] == ["the-id"]
    with pytest.raises(ValueError, match="queue"):
        await jobs.count(queue="two words")


async def test_delay_and_expiry(jobs: JobQueue, manager: Manager, broker: FaultyBroker) -> None:
    """A job starts after its delay, and expires if it isn't started in time."""
    times: list[float] = []
    began = anyio.current_time()

    @jobs.handler(name="record", expires=30)
    async def record() -> None:
        times.append(round(anyio.current_time() - began))

    wall = clock.wall()
    await record.options(delay=10).enqueue()
    await record.options(at=wall + 20).enqueue()
    at = datetime.fromtimestamp(wall, UTC) + timedelta(seconds=40)
    for options in ({"at": at}, {"delay": 30}, {"delay": 5, "expires": 5}):
        with pytest.raises(ValueError, match=r"^expires must be more than the delay: "):
            await record.options(**options).enqueue()  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^expires must be more than the delay: "):
            await record.options(**options).enqueue_many([()])  # type: ignore[arg-type]
    expiring = await record.options(delay=25, queue="unused").enqueue()
    late = await record.options(at=at, expires=100).enqueue()
    assert await jobs.count(state=S.SCHEDULED) == 4
    await jobs.start(manager)
    with pytest.raises(JobExpiredError, match=f"job {expiring.id} expired") as caught:
        await expiring.result()
    assert caught.value.id == expiring.id
    assert await expiring.wait() is S.EXPIRED
    assert await late.result() is None
    assert times == [10, 20, 40]


async def test_duplicate_id(jobs: JobQueue, manager: Manager) -> None:
    """An id is rejected as a duplicate for as long as its job is stored."""
    handler = jobs.handler()(add)
    await jobs.start(manager)
    job = await handler.options(id="one").enqueue(1)
    for _ in range(2):
        with pytest.raises(DuplicateJobError, match="'one'"):
            await handler.options(id="one").enqueue(1)
        with pytest.raises(DuplicateJobError):
            await jobs.enqueue(handler.name, [1], id="one")
        with pytest.raises(DuplicateJobError):
            await jobs.enqueue(handler.job(1), id="one")
        assert await job.result() == 2
    assert await jobs.purge(older_than=0) == 1
    await handler.options(id="one").enqueue(1)


async def test_enqueue_by_name(jobs: JobQueue, manager: Manager, broker: FaultyBroker) -> None:
    """A queue without the handler enqueues a job by the handler's name."""
    jobs.handler(name="there", queue="far")(add)
    async with JobQueue(broker) as client:
        job = await client.enqueue("there", [1], {"b": 5}, queue="far", meta={"k": [1]})
        with pytest.raises(InvalidPayloadError, match="argument for there"):
            await client.enqueue("there", [object()])
        await jobs.start(manager)
        assert await job.result() == 6
        assert (await client.handle(job.id).result()) == 6
        info = await client.get(job.id)
        assert info is not None
        assert info.meta == {"k": [1]}


async def test_enqueue_by_local_name(jobs: JobQueue) -> None:
    """A job enqueued by name gets the queue of a registered handler, or else the default."""
    jobs.handler(name="here", queue="near")(add)
    info = await (await jobs.enqueue("here", (1,))).info()
    assert info is not None
    assert info.queue == "near"
    info = await (await jobs.enqueue("elsewhere", [])).info()
    assert info is not None
    assert info.queue == "default"


@pytest.mark.parametrize(
    ("name", "args", "options", "argument"),
    [
        ("a b", [], {}, "name"),
        (5, [], {}, "name"),
        ("x", "text", {}, "args"),
        ("x", {1}, {}, "args"),
        ("x", [], {"delay": -1}, "delay"),
        ("x", [], {"id": "a b"}, "id"),
    ],
)
async def test_enqueue_by_name_errors(
    jobs: JobQueue, name: Any, args: Any, options: Any, argument: str
) -> None:
    """The error for a job enqueued by name contains the invalid argument's name."""
    with pytest.raises(ValueError, match=argument):
        await jobs.enqueue(name, args, **options)


async def test_enqueue_step(jobs: JobQueue, manager: Manager) -> None:
    """A step is enqueued with its own arguments and options; only an id can be added."""
    handler = jobs.handler()(add)
    step = handler.options(meta={"x": 1}, queue="r").job(1)
    for options in ({"args": [1]}, {"kwargs": {"a": 1}}, {"queue": "q"}, {"id": "a b"}):
        with pytest.raises(ValueError, match="id"):
            await jobs.enqueue(step, **options)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="id"):
        handler.options(id="one").job(1)
    job = await jobs.enqueue(step, id="custom")
    info = await job.info()
    assert info is not None
    assert (info.id, info.queue, info.meta) == ("custom", "r", {"x": 1})


async def test_enqueued_events(
    manager: Manager, recorder: RecordingObserver, broker: FaultyBroker
) -> None:
    """Observers of the queue, the handler and the manager receive one event for every job."""
    of_queue, of_handler = RecordingObserver(), RecordingObserver()
    async with JobQueue(broker, observers=[of_queue]) as jobs:
        handler = jobs.handler(name="h", queue="q", observers=[of_handler])(add)
        job = await handler.options(delay=5, meta={"k": 1}).enqueue(1)
        for observer in (of_queue, of_handler):
            (event,) = observer.events
            assert isinstance(event, JobEnqueued)
            assert (event.job.id, event.job.handler, event.job.queue) == (job.id, "h", "q")
            assert (event.job.attempt, event.meta, event.delay) == (0, {"k": 1}, 5)
        await jobs.start(manager)
        assert recorder.events == []
        await handler.enqueue_many([(1,), (2,)])
        await jobs.enqueue("h", [3])
        await jobs.enqueue("unknown", [3])
        await jobs.enqueue(handler.job(4))
        await jobs.enqueue(handler.options(at=clock.wall() + 60, meta={"m": 1}).job(4))
        assert recorder.names().count("enqueued") == 6
        assert of_queue.names().count("enqueued") == 7
        assert of_handler.names().count("enqueued") == 6
        events = [event for event in of_handler.events if isinstance(event, JobEnqueued)]
        assert events[-1].meta == {"m": 1}
        assert 55 < events[-1].delay <= 60


async def test_concurrent_enter(broker: FaultyBroker) -> None:
    """If two tasks enter a queue at the same time, the second one gets an error."""
    jobs = JobQueue(broker)
    handler = jobs.handler()(add)
    errors: list[str] = []

    async def enter() -> None:
        try:
            async with jobs:
                await anyio.sleep(0.01)
                await handler.enqueue(1)
        except QueueError as error:
            errors.append(str(error))

    async with anyio.create_task_group() as group:
        group.start_soon(enter)
        group.start_soon(enter)
    assert errors == ["the queue is open already: make one JobQueue for each event loop"]
    async with jobs:
        await handler.enqueue(1)


async def test_queue_not_open(broker: FaultyBroker, manager: Manager) -> None:
    """A queue that is not open rejects calls without asking the broker."""
    jobs = JobQueue(broker)
    handler = jobs.handler()(add)
    for _ in range(2):
        with pytest.raises(QueueError, match="not open"):
            await handler.enqueue(1)
        with pytest.raises(QueueError, match="not open"):
            await jobs.enqueue(chain(handler.job(1)), id="some")
        assert broker.calls["get"] == 0
        with pytest.raises(QueueError, match="not open"):
            await jobs.start(manager)
        with pytest.raises(QueueError, match="not open"):
            await jobs.cancel("some")
        async with jobs:
            await handler.enqueue(1)
            with pytest.raises(QueueError, match="open already"):
                await jobs.__aenter__()


async def test_cancelled_enter(broker: FaultyBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue closes its broker if it is cancelled while opening."""
    with anyio.CancelScope() as scope:

        async def open(results: MemoryResults) -> None:
            scope.cancel()
            await anyio.sleep_forever()

        monkeypatch.setattr(MemoryResults, "open", open)
        await JobQueue(broker, results=MemoryResults()).__aenter__()
    assert (broker.calls["open"], broker.calls["close"]) == (1, 1)


async def test_broker_lifecycle(tmp_path: Any, anyio_backend: Any) -> None:
    """A queue opens and closes its broker."""
    path = tmp_path / "jobs.db"
    async with JobQueue(SQLiteBroker(path)) as jobs:
        job = await jobs.handler(name="h")(add).enqueue(1)
    with pytest.raises(QueueError, match="not open"):
        await job.info()
    async with JobQueue.from_url(f"sqlite:///{path}", retention=5) as jobs:
        jobs.handler(name="h")(add)
        async with Manager() as manager:
            await jobs.start(manager)
            assert await jobs.handle(job.id).result() == 2


async def test_handler_of_two_queues(broker: FaultyBroker) -> None:
    """A handler of one queue can be declared as another queue's handler, for separate jobs."""
    async with JobQueue(broker) as jobs, JobQueue(MemoryBroker()) as second_queue:
        first = jobs.handler(name="first")(add)
        second = second_queue.handler(name="second", queue="q")(first)
        assert await second(1) == 2
        await second.enqueue(1)
        assert (await jobs.count(), await second_queue.count(queue="q")) == (0, 1)
        assert [info.handler async for info in second_queue.list()] == ["second"]


async def numbers() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("bad", [5, numbers])
def test_invalid_handler(bad: Any) -> None:
    """An object that is no function and an async generator function are rejected."""
    with pytest.raises(ValueError, match="fn must be a function"):
        JobQueue(MemoryBroker()).handler(name="h")(bad)


# Results


class HandlerError(Exception):
    """The error of a handler."""


async def test_failed_job(jobs: JobQueue, manager: Manager, recorder: RecordingObserver) -> None:
    """A failed job is dead, and its error has the exception's type, message and traceback."""

    @jobs.handler(name="fails")
    async def fails(text: str) -> None:
        raise HandlerError(text)

    await jobs.start(manager)
    job = await fails.options(meta={"m": 1}).enqueue("no access")
    with pytest.raises(
        JobFailedError, match=f"job {job.id} failed: {__name__}.HandlerError: no access"
    ) as caught:
        await job.result()
    error = caught.value
    assert (error.id, error.type, error.message) == (
        job.id,
        f"{__name__}.HandlerError",
        "no access",
    )
    assert "raise HandlerError(text)" in error.traceback
    assert await job.wait() is S.DEAD
    info = await job.info()
    assert info is not None
    assert (info.state, info.attempt, info.result) == (S.DEAD, 1, None)
    assert str(info.error) == str(error)
    assert None not in (info.started_at, info.finished_at)
    dead = await recorder.wait_for(JobDead)
    assert (dead.job.id, dead.meta, str(dead.error)) == (job.id, {"m": 1}, "no access")
    assert events_of_attempts(recorder, job.id) == ["added", "started", "failed", "dead"]


@pytest.mark.parametrize("text", ["\ud800", "\0", "a" * 30_000, "ž" * 30_000, ""])
async def test_error_messages(jobs: JobQueue, manager: Manager, text: str) -> None:
    """An error's message can contain any text; a long one is shortened."""

    @jobs.handler(name="fails")
    async def fails() -> None:
        raise ValueError(text)

    await jobs.start(manager)
    job = await fails.enqueue()
    with pytest.raises(JobFailedError, match=r"ValueError") as caught:
        await job.result()
    assert caught.value.message.startswith(text[:5].replace("\ud800", r"\ud800"))
    assert len(caught.value.message) < 11_000


async def test_unprintable_error(jobs: JobQueue, manager: Manager) -> None:
    """A placeholder replaces an error's message that can't be printed."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

    @jobs.handler(name="fails")
    async def fails() -> None:
        raise Mute

    await jobs.start(manager)
    job = await fails.enqueue()
    with pytest.raises(JobFailedError, match=r"Mute: \(can't be printed\)"):
        await job.result()


class Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__module__", "__qualname__"):
            raise RuntimeError("no name")
        return super().__getattribute__(name)


def make_untraceable() -> SyntaxError:
    error = SyntaxError("m")
    error.lineno, error.text = 1, 2  # type: ignore[assignment]
    return error


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Nameless("Error", (Exception,), {})("m"), "(can't be printed)", "m"),
        (lambda: type("E" * 2_000_000, (Exception,), {})("m"), "E" * 1000, "m"),
        (make_untraceable, "SyntaxError", "m"),
    ],
    ids=["nameless", "long", "untraceable"],
)
async def test_undescribable_error(
    jobs: JobQueue, manager: Manager, make: Any, kind: str, message: str
) -> None:
    """A job fails as usual if its error can't be described in full."""

    @jobs.handler(name="fails")
    async def fails() -> None:
        raise make()

    await jobs.start(manager)
    job = await fails.enqueue()
    with pytest.raises(JobFailedError) as caught:
        await job.result(timeout=10)
    assert kind in caught.value.type
    assert len(caught.value.type) < 11_000
    assert caught.value.message.startswith(message)


async def test_cancelled_job(jobs: JobQueue) -> None:
    """The result of a cancelled job raises JobCancelledError."""
    job = await jobs.handler()(add).enqueue(1)
    assert await job.cancel()
    assert not await job.cancel()
    with pytest.raises(JobCancelledError, match=f"job {job.id} was cancelled") as caught:
        await job.result()
    assert caught.value.id == job.id
    assert await job.wait() is S.CANCELLED


async def test_wait_timeout(jobs: JobQueue) -> None:
    """result() and wait() raise TimeoutError, with the job's state."""
    job = await jobs.handler()(add).enqueue(1)
    for wait in (job.result, job.wait):
        with pytest.raises(TimeoutError, match=f"job {job.id} was ready after 0.01 s"):
            await wait(timeout=0.01)
        with pytest.raises(TimeoutError):
            await wait(timeout=0)
        with pytest.raises(ValueError, match="timeout"):
            await wait(timeout=-1)


async def test_missing_job(jobs: JobQueue) -> None:
    """A missing job raises an error when awaited, and is None or False to other calls."""
    job = jobs.handle("missing")
    for wait in (job.result, job.wait):
        with pytest.raises(QueueError, match="job missing is not stored"):
            await wait()
    assert await job.info() is None
    assert await jobs.get("missing") is None
    assert not await job.cancel()
    assert not await jobs.cancel("missing")
    assert not await jobs.requeue("missing")


async def test_invalid_ids(jobs: JobQueue) -> None:
    """get(), cancel(), requeue() and handle() reject an invalid id."""
    for id in ("", "a b", "\ud800", 5, None, ["a"]):
        for ask in (jobs.get, jobs.cancel, jobs.requeue):
            with pytest.raises(ValueError, match=r"^id must be"):
                await ask(id)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^id must be"):
            jobs.handle(id)  # type: ignore[arg-type]


async def test_result_not_stored(jobs: JobQueue, manager: Manager) -> None:
    """A job of a handler with store_result=False succeeds without a result."""
    handler = jobs.handler(name="none", store_result=False)(add)
    await jobs.start(manager)
    job = await handler.enqueue(1)
    assert await job.wait() is S.SUCCEEDED
    with pytest.raises(QueueError, match=f"job {job.id} is succeeded, and no result"):
        await job.result()
    info = await job.info()
    assert info is not None
    assert (info.state, info.result) == (S.SUCCEEDED, None)


async def test_retention(manager: Manager, broker: FaultyBroker) -> None:
    """A finished job is stored for the retention of its handler or else of its queue."""
    async with JobQueue(broker, retention=100) as jobs:
        handlers = [
            jobs.handler(name="usual")(add),
            jobs.handler(name="brief", retention=10)(add),
            jobs.handler(name="without", store_result=False)(add),
        ]
        await jobs.start(manager)
        handles = [await handler.enqueue(1) for handler in handlers]
        for job in handles:
            await job.wait()
        await elapse(broker.real, 11)
        assert [await job.info() is None for job in handles] == [False, True, False]
        await elapse(broker.real, 100)
        assert await jobs.count() == 0
        await manager.close(timeout=0)


async def test_invalid_result(manager: Manager, broker: FaultyBroker) -> None:
    """A job fails if its result can't be encoded or is too large."""
    async with JobQueue(broker, max_payload=100) as jobs:

        @jobs.handler(name="big")
        async def big() -> str:
            return "x" * 101

        @jobs.handler(name="wrong")
        async def wrong() -> Any:
            return object()

        await jobs.start(manager)
        with pytest.raises(JobFailedError, match="PayloadTooLargeError: the result of job"):
            await (await big.enqueue()).result()
        with pytest.raises(JobFailedError, match="InvalidPayloadError: the result"):
            await (await wrong.enqueue()).result()


async def test_invalid_result_not_stored(jobs: JobQueue, manager: Manager) -> None:
    """A job succeeds with any result if results are not stored."""

    @jobs.handler(name="wrong", store_result=False)
    async def wrong() -> object:
        return object()

    await jobs.start(manager)
    assert await (await wrong.enqueue()).wait() is S.SUCCEEDED


# Queries and changes


async def test_count_list_and_purge(jobs: JobQueue, manager: Manager, broker: FaultyBroker) -> None:
    """Jobs are counted, listed and purged by queue and state."""
    handler = jobs.handler(name="h", queue="q")(add)
    handles = await handler.enqueue_many([(n,) for n in range(3)])
    far_job = await jobs.enqueue("far", [], queue="other")
    assert (await jobs.count(), await jobs.count(queue="q"), await jobs.count(state=S.READY)) == (
        4,
        3,
        4,
    )
    assert [info.id async for info in jobs.list(queue="q")] == [job.id for job in handles]
    assert [info.id async for info in jobs.list(state=S.SUCCEEDED)] == []
    await jobs.start(manager)
    for job in handles:
        await job.wait()
    assert [info.result async for info in jobs.list(state=S.SUCCEEDED)] == [1, 2, 3]
    assert await jobs.count(queue="q", state=S.SUCCEEDED) == 3
    assert await jobs.count(queue="q", state="succeeded") == 3  # type: ignore[arg-type]
    assert await jobs.purge(state=S.DEAD) == 0
    assert await jobs.purge(older_than=60) == 0
    assert await jobs.purge(state=S.SUCCEEDED) == 3
    assert [info.id async for info in jobs.list()] == [far_job.id]
    for call in (lambda: jobs.count(state="odd"), lambda: jobs.purge(state="odd")):  # type: ignore[arg-type, return-value]
        with pytest.raises(ValueError, match=r"^state must be one of scheduled, ready, .*'odd'"):
            await call()
    with pytest.raises(ValueError, match="odd"):
        jobs.list(state="odd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="older_than"):
        await jobs.purge(older_than=-1)


async def test_requeue(jobs: JobQueue, manager: Manager) -> None:
    """Only a dead job can be requeued, and it begins with its first attempt."""
    attempts: list[int] = []

    @jobs.handler(name="fails")
    async def fails() -> int:
        attempts.append(JobContext.current().attempt)
        if len(attempts) == 1:
            raise HandlerError
        return 5

    await jobs.start(manager)
    job = await fails.enqueue()
    assert not await jobs.requeue(job.id)
    assert await job.wait() is S.DEAD
    assert await jobs.requeue(job.id)
    assert await job.result() == 5
    assert attempts == [1, 1]


async def test_cancel_from_second_queue(jobs: JobQueue, broker: FaultyBroker) -> None:
    """A queue without the handler can cancel ready and scheduled jobs, but only once."""
    handler = jobs.handler()(add)
    job = await handler.enqueue(1)
    delayed = await handler.options(delay=60).enqueue(1)
    async with JobQueue(broker) as client:
        assert await client.cancel(job.id)
        assert await client.cancel(delayed.id)
        assert not await client.cancel(job.id)
    assert await job.wait() is await delayed.wait() is S.CANCELLED


async def test_running_job_from_second_queue(
    jobs: JobQueue, manager: Manager, broker: FaultyBroker
) -> None:
    """A second queue can query a running job, but can't requeue or purge it."""
    started, finish = anyio.Event(), anyio.Event()

    @jobs.handler(name="waits")
    async def waits() -> str:
        started.set()
        await finish.wait()
        return "done"

    await jobs.start(manager)
    job = await waits.enqueue()
    await started.wait()
    async with JobQueue(broker) as client:
        info = await client.get(job.id)
        assert info is not None
        assert (info.state, info.attempt, info.result) == (S.RUNNING, 1, None)
        assert info.started_at is not None
        assert await client.count(state=S.RUNNING) == 1
        assert not await client.requeue(job.id)
        assert await client.purge(older_than=0) == 0
        finish.set()
        assert await client.handle(job.id).result() == "done"


# Separate stores of results


async def test_results_store(manager: Manager, broker: FaultyBroker) -> None:
    """Results are in the separate store, and saved values in the broker."""
    results = MemoryResults()
    async with JobQueue(broker, results=results, retention=50) as jobs:
        saved = anyio.Event()
        go_on = anyio.Event()

        @jobs.handler(name="h", retention=7)
        async def handler(fails: bool) -> str:
            await JobContext.current().save("so far")
            saved.set()
            await go_on.wait()
            if fails:
                raise HandlerError
            return "the end"

        worker = await jobs.start(manager)
        job = await handler.enqueue(False)
        await saved.wait()
        info = await job.info()
        assert info is not None
        assert info.result == "so far"
        go_on.set()
        assert await job.result() == "the end"
        assert results.kept == {f"{job.id}.1": b'"the end"'}
        assert results.retention == {f"{job.id}.1": 7}
        stored = await broker.get(job.id)
        assert stored is not None
        assert stored.result is None
        dead = await handler.enqueue(True)
        assert await dead.wait() is S.DEAD
        info = await dead.info()
        assert info is not None
        assert info.result == "so far"
        assert f"{dead.id}.1" not in results.kept
        await worker.close()
        assert await jobs.requeue(dead.id)
        info = await dead.info()
        assert info is not None
        assert info.result is None
        assert not await jobs.requeue("unknown")
    assert not results.is_open


async def test_results_store_not_used(manager: Manager, broker: FaultyBroker) -> None:
    """A value saved by a handler with store_result=False is deleted when its job succeeds."""
    results = MemoryResults()
    async with JobQueue(broker, results=results) as jobs:

        @jobs.handler(name="h", store_result=False)
        async def handler() -> str:
            await JobContext.current().save("so far")
            return "the end"

        await jobs.start(manager)
        job = await handler.enqueue()
        assert await job.wait() is S.SUCCEEDED
        assert results.kept == {}
        with pytest.raises(QueueError, match="no result"):
            await job.result()


async def test_results_store_outage(manager: Manager, broker: FaultyBroker) -> None:
    """A worker stores the result when the separate store is available again."""
    results = MemoryResults()
    async with JobQueue(broker, results=results) as jobs:

        @jobs.handler(name="h")
        async def handler() -> int:
            results.down = True
            manager.after(0.2, setattr, results, "down", False)
            return 7

        await jobs.start(manager)
        job = await handler.enqueue()
        assert await job.wait() is S.SUCCEEDED
        assert await job.result() == 7
        results.down = True
        with pytest.raises(BrokerUnavailableError):
            await job.result()
        with pytest.raises(BrokerUnavailableError):
            await job.info()
        results.down = False


async def test_results_store_down_at_shutdown(broker: FaultyBroker) -> None:
    """A job whose result can't be stored before shutdown is released, and runs again."""
    results = MemoryResults()
    async with JobQueue(broker, results=results) as jobs:
        handler = jobs.handler(name="h")(add)
        async with Manager(grace=0.05) as manager:
            await jobs.start(manager)
            results.down = True
            job = await handler.enqueue(1)
            await broker.called("renew")
            manager.request_shutdown()
        info = await broker.get(job.id)
        assert info is not None
        assert (info.state, info.attempt) == (S.READY, 0)
        results.down = False
        async with Manager() as manager:
            await jobs.start(manager)
            assert await job.result() == 2


async def test_results_store_lifecycle(broker: FaultyBroker) -> None:
    """A queue opens and closes its broker and its results together, also if one fails."""
    results = MemoryResults()
    results.down = True
    jobs = JobQueue(broker, results=results)
    with pytest.raises(BrokerUnavailableError):
        await jobs.__aenter__()
    assert (broker.calls["open"], broker.calls["close"]) == (1, 1)
    results.down = False
    broker.fail("open")
    with pytest.raises(BrokerUnavailableError):
        await jobs.__aenter__()
    assert not results.is_open
    async with jobs:
        assert results.is_open
        broker.fail("close")
        with pytest.raises(BrokerUnavailableError):
            await jobs.__aexit__(None, None, None)
        assert not results.is_open
        await jobs.__aenter__()


# Payloads


async def test_payload_limit(broker: FaultyBroker) -> None:
    """Arguments above max_payload and meta that can't be encoded are rejected."""
    async with JobQueue(broker, max_payload=100) as jobs:
        handler = jobs.handler(name="h")(add)
        with pytest.raises(PayloadTooLargeError, match="max_payload is 100"):
            await handler.enqueue(10**101)
        with pytest.raises(PayloadTooLargeError):
            await handler.enqueue_many([(1,), (10**101,)])
        with pytest.raises(InvalidPayloadError, match="meta"):
            await handler.options(meta={"x": object()}).enqueue(1)
        assert await jobs.count() == 0


BODIES = {
    "no JSON": b"\xff\x00{",
    "truncated": b'{"args":[1',
    "no object": b"[1]",
    "deep": b'{"args":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "no list of arguments": b'{"args":{}}',
    "no names": b'{"args":[1],"kwargs":[]}',
    "other arguments": b'{"args":[]}',
    "another type": b'{"args":["x"]}',
    "meta": b'{"args":[1],"meta":5}',
    "trace": b'{"args":[1],"trace":{"a":1}}',
    "timeout": b'{"args":[1],"timeout":0}',
    "timeout type": b'{"args":[1],"timeout":"5"}',
    "retry": b'{"args":[1],"retry":0}',
    "retry type": b'{"args":[1],"retry":true}',
    "shape": b'{"args":[1],"previous":"x"}',
    "deep shape": b'{"args":[1],"previous":' + b"[" * 200 + b"]" * 200 + b"}",
    "shape of more": b'{"args":[1],"previous":[0]}',
    "passes": b'{"args":[1],"passes":1}',
    "members": b'{"args":[1],"members":[1]}',
    "nonce": b'{"args":[1],"nonce":1}',
    "NaN": b'{"args":[NaN]}',
    "large": b'{"args":[1],"kwargs":{"b":' + b"1" * 2000 + b"}}",
}


async def test_invalid_bodies(
    manager: Manager, broker: FaultyBroker, recorder: RecordingObserver
) -> None:
    """A job with an invalid body is dead, and its body stays stored."""
    async with JobQueue(broker, max_payload=1000, unknown_for=0) as jobs:
        handler = jobs.handler(name="add")(add)
        messages = [message(f"bad-{n}", body) for n, body in enumerate(BODIES.values())]
        await broker.enqueue(messages)
        worker = await jobs.start(manager)
        for sent, kind in zip(messages, BODIES, strict=True):
            job = jobs.handle(sent.id)
            with pytest.raises(JobFailedError, match=r"InvalidPayloadError|PayloadTooLargeError"):
                await job.result()
            info = await job.info()
            assert info is not None, kind
            assert (info.state, info.payload) == (S.DEAD, sent.body), kind
            if info.args is not None:
                assert info.kwargs is not None
        assert await (await handler.enqueue(1)).result() == 2
        assert recorder.names().count("dead") == len(BODIES)
        await worker.close()


async def test_info_of_unreadable_body(jobs: JobQueue, broker: FaultyBroker) -> None:
    """The info of a job with an unreadable body has the raw payload and no arguments."""
    await broker.enqueue([message("bad", b"{")])
    info = await jobs.get("bad")
    assert info is not None
    assert (info.args, info.kwargs, info.meta, info.payload) == (None, None, {}, b"{")


async def test_unknown_handler(
    manager: Manager, broker: FaultyBroker, recorder: RecordingObserver
) -> None:
    """A job of an unknown handler is dead if it is not left for other workers."""
    async with JobQueue(broker, unknown_for=0) as jobs:
        handler = jobs.handler(name="add")(add)
        await jobs.start(manager)
        job = await jobs.enqueue("other", [1])
        with pytest.raises(JobFailedError, match=r"UnknownHandlerError: no handler 'other'"):
            await job.result()
        info = await job.info()
        assert info is not None
        assert info.args == [1]
        assert [event.job.handler for event in recorder.events if isinstance(event, JobDead)] == [
            "other"
        ]
        assert await (await handler.enqueue(1)).result() == 2
        await manager.close(timeout=0)


async def test_max_crashes(
    manager: Manager,
    broker: FaultyBroker,
    recorder: RecordingObserver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job is dead when max_crashes of its workers have crashed."""
    ran: list[int] = []
    async with JobQueue(broker, max_crashes=2) as jobs:

        @jobs.handler(name="h", retry=10)
        async def handler() -> None:
            ran.append(JobContext.current().attempt)
            if len(ran) == 1:
                raise ValueError

        poison, survivor = await handler.enqueue(), await handler.options(id="survivor").enqueue()
        for crashes in (1, 2):
            claims = await broker.real.claim(["default"], 3 - crashes, lease=1)
            assert len(claims) == 3 - crashes
            await broker.real.renew(claims, lease=1)
            await elapse(broker.real, 2)
        await jobs.start(manager)
        with pytest.raises(JobFailedError, match="its worker died 2 times"):
            await poison.result()
        assert await survivor.result() is None
        assert ran == [2, 3]
        assert caplog.text.count("job 'h' (survivor): the lease of its worker expired") == 1
        await manager.close(timeout=0)
    assert recorder.names().count("dead") == 1


async def test_memory_broker(anyio_backend: Any) -> None:
    """A queue runs jobs with a memory broker that nothing else has opened."""
    async with Manager() as manager, JobQueue(MemoryBroker()) as jobs:
        handler = jobs.handler()(add)
        await jobs.start(manager)
        assert await (await handler.enqueue(1)).result(timeout=10) == 2
