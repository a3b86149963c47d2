"""Jobs whose attempts end in unusual ways, and their events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial, wraps
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from support.outcomes import broken, fine, nap
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_fixed,
)

from background import JobDead, Manager, Observer, TaskAdded, TaskCancelled, TaskHandle
from background._execution.handle import state_of as task_state
from background._retry import Attempts
from background.queues import JobHandle, JobQueue, JobState, Ordered
from background.queues.abc import Settlement
from background.queues.memory import MemoryBroker
from background.testing import RecordingObserver, drain, virtual_time, virtual_wall_clock

REASON = "cancelled from outside the manager"


class GatedBroker(MemoryBroker):
    """A broker whose settlements wait for `gate`; `settling` is set when the first one waits."""

    def __init__(self) -> None:
        super().__init__()
        self.settling, self.gate = anyio.Event(), anyio.Event()

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        self.settling.set()
        await self.gate.wait()
        return await super().settle(settlements)


async def state_of(job: JobHandle[Any]) -> JobState:
    info = await job.info()
    assert info is not None
    return info.state


def cancelled_reasons(recorder: RecordingObserver) -> list[str | None]:
    return [event.reason for event in recorder.of(TaskCancelled)]


def on_asyncio(test: Callable[..., Any]) -> Callable[..., None]:
    """Run a test on asyncio only, in virtual time: trio can't cancel a single task natively."""

    @wraps(test)
    def run(**fixtures: Any) -> None:
        backend, options = virtual_time("asyncio")
        anyio.run(partial(test, **fixtures), backend=backend, backend_options=options)

    return run


# Errors that are not an `Exception`


@pytest.mark.parametrize("where", ["function", "policy"])
async def test_keyboard_interrupt(where: str) -> None:
    """A job that raises KeyboardInterrupt is released, as that ends the process, not the job."""
    recorder, broker = RecordingObserver(), MemoryBroker()
    jobs = JobQueue(broker)

    async def interrupted() -> None:
        raise KeyboardInterrupt if where == "function" else ValueError("flaky")

    def interrupt(error: BaseException) -> bool:
        raise KeyboardInterrupt

    policy = AsyncRetrying(retry=retry_if_exception(interrupt))
    handler = jobs.handler(name="interrupted", retry=policy)(interrupted)

    async def use() -> None:
        async with Manager(observers=[recorder]) as manager, jobs:
            await jobs.start(manager)
            await handler.enqueue()
            await manager.shutdown_requested()

    with pytest.raises(KeyboardInterrupt):
        await use()
    assert recorder.names()[:4] == ["enqueued", "added", "started", "failed"]
    assert "dead" not in recorder.names()
    assert await broker.count(state=JobState.READY) == 1


async def test_system_exit() -> None:
    """A job that raises SystemExit is dead, as a retry would end the program again."""
    recorder, broker = RecordingObserver(), MemoryBroker()
    jobs = JobQueue(broker)

    async def exit_program() -> None:
        raise SystemExit(3)

    handler = jobs.handler(name="exits", retry=5)(exit_program)

    async def use() -> None:
        async with Manager(observers=[recorder]) as manager, jobs:
            await jobs.start(manager)
            await handler.enqueue()
            await manager.shutdown_requested()

    with pytest.raises(SystemExit):
        await use()
    assert recorder.names()[:5] == ["enqueued", "added", "started", "failed", "dead"]
    assert await broker.count(state=JobState.DEAD) == 1


class CustomError(BaseException):
    """An error that is not an `Exception`, and doesn't end a program."""


@pytest.mark.parametrize("strategy", ["retry", "stop", "wait", "before_sleep"])
async def test_policy_base_exception(
    strategy: str, manager: Manager, recorder: RecordingObserver
) -> None:
    """A job is dead if its policy raises a BaseException, as the time of a retry is undefined."""

    def raises(state: RetryCallState) -> Any:
        raise CustomError("policy")

    strategies: dict[str, Any] = {strategy: raises}
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="broken", retry=AsyncRetrying(**strategies))(broken)
    async with jobs:
        await jobs.start(manager)
        job = await handler.enqueue()
        assert await job.wait(timeout=5) is JobState.DEAD
        await manager.wait()
    assert recorder.names(job.id) == ["enqueued", "added", "started", "failed", "dead"]
    assert isinstance(recorder.of(JobDead)[0].error, CustomError)
    assert manager.count() == 0


def cancelled_future() -> asyncio.Future[Any]:
    """Return a future that raises a cancellation in a task that was not cancelled."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.cancel()
    return future


@pytest.mark.parametrize("where", ["async", "sync", "before", "retry", "GeneratorExit"])
@on_asyncio
async def test_spurious_cancellation(where: str, recorder: RecordingObserver) -> None:
    """A job that raises a cancellation that was not requested is dead.

    If it were released, it would run again and again, and its attempts would not be counted.
    """

    async def waits() -> None:
        await cancelled_future()

    def raises(state: RetryCallState | None = None) -> None:
        raise GeneratorExit if where == "GeneratorExit" else asyncio.CancelledError

    functions: dict[str, Callable[..., Any]] = {"async": waits, "sync": raises}
    strategy = {"before": "before", "retry": "retry", "GeneratorExit": "retry"}.get(where)
    retry: Any = 5 if strategy is None else AsyncRetrying(**{strategy: raises})
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="cancelled", retry=retry)(functions.get(where, broken))
    async with Manager(observers=[recorder]) as manager, jobs:
        await jobs.start(manager)
        job = await handler.enqueue()
        assert await job.wait(timeout=5) is JobState.DEAD
        info = await job.info()
        await manager.wait()
    assert recorder.names(job.id) == ["enqueued", "added", "started", "failed", "dead"]
    assert info is not None
    assert info.error is not None
    assert info.attempt == 1
    assert info.error.type.rpartition(".")[2] in (
        "TaskCancelledError",
        "CancelledError",
        "GeneratorExit",
    )


# Attempts that never start


class OnTaskAdded(Observer):
    """Calls `act` with the handle of a job's task when the task is added."""

    def __init__(self, act: Callable[[TaskHandle[Any]], object]) -> None:
        self.act = act
        self.manager: Manager

    def on_task_added(self, event: TaskAdded) -> None:
        if event.job is not None:
            handle = self.manager.get(event.id)
            assert handle is not None
            self.act(handle)


async def test_cancel_before_start() -> None:
    """A job that an observer cancels before its start is cancelled, and frees the worker."""
    recorder, observer = RecordingObserver(), OnTaskAdded(lambda handle: handle.cancel("no"))
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="send")(fine)
    async with Manager(observers=[recorder, observer]) as manager, jobs:
        observer.manager = manager
        worker = await jobs.start(manager, concurrency=1)
        first, second = await handler.enqueue(), await handler.enqueue()
        assert await first.wait() is await second.wait() is JobState.CANCELLED
        assert worker.in_flight == 0
    assert recorder.names(first.id) == recorder.names(second.id)
    assert recorder.names(first.id) == ["enqueued", "added", "cancelled"]
    assert cancelled_reasons(recorder) == ["no", "no"]


@pytest.mark.parametrize("by", ["queue", "handle", "close"])
async def test_cancel_at_limit(by: str) -> None:
    """A job that waits for the manager's limit is cancelled on request, and released on close."""
    recorder, broker = RecordingObserver(), MemoryBroker()
    jobs = JobQueue(broker)
    handler = jobs.handler(name="send")(fine)
    async with Manager(limit=1, observers=[recorder]) as manager, jobs:
        manager.run(nap, 1_000)
        worker = await jobs.start(manager)
        job = await handler.enqueue()
        await anyio.sleep(1)
        assert worker.in_flight == 1
        if by == "queue":
            assert await jobs.cancel(job.id)
        elif by == "handle":
            assert manager.cancel(job.id, reason="no")
        else:
            await manager.close(timeout=0)
        await worker.close()
        assert worker.in_flight == 0
        expected = JobState.READY if by == "close" else JobState.CANCELLED
        assert await state_of(job) is expected
        await manager.close(timeout=0)
    assert recorder.names(job.id)[:3] == ["enqueued", "added", "cancelled"]
    reasons = {"queue": "the job was cancelled", "handle": "no", "close": "shutdown"}
    assert cancelled_reasons(recorder)[0] == reasons[by]


def cancel_natively(handle: TaskHandle[Any]) -> object:
    """Cancel the asyncio task when it exists, and before its first step."""

    def cancel() -> None:
        native: Any = task_state(handle).native
        native.cancel()

    return asyncio.get_running_loop().call_soon(cancel)


@on_asyncio
async def test_native_cancel_before_start() -> None:
    """A job whose task is cancelled natively before its first step is released."""
    recorder, observer = RecordingObserver(), OnTaskAdded(cancel_natively)
    broker = MemoryBroker()
    jobs = JobQueue(broker)
    handler = jobs.handler(name="send")(fine)
    async with Manager(observers=[recorder, observer]) as manager, jobs:
        observer.manager = manager
        worker = await jobs.start(manager)
        job = await handler.enqueue()
        await recorder.wait_for(TaskCancelled)
        observer.act = lambda handle: None
        assert await job.wait(timeout=5) is JobState.SUCCEEDED
        await worker.close()
    names = ["enqueued", "added", "cancelled", "added", "started", "succeeded"]
    assert recorder.names(job.id) == names
    assert cancelled_reasons(recorder) == [REASON]
    (info,) = [stored async for stored in broker.scan()]
    assert info.attempt == 1  # an attempt that never started isn't counted


# Cancellations during the settlement


@pytest.mark.parametrize("fn", [fine, broken], ids=["succeeds", "gives up"])
async def test_close_during_settlement(fn: Callable[[], Any], recorder: RecordingObserver) -> None:
    """The outcome of a job that is being settled stands when the manager closes."""
    broker = GatedBroker()
    jobs = JobQueue(broker)
    handler = jobs.handler(name="send")(fn)
    async with Manager(observers=[recorder]) as manager, jobs, anyio.create_task_group() as group:
        await jobs.start(manager)
        job = await handler.enqueue()
        await broker.settling.wait()
        group.start_soon(lambda: manager.close(timeout=0))
        await anyio.sleep(1)
        handle = manager.get(job.id)
        assert handle is not None
        assert not handle.finished_at
        broker.gate.set()
        await handle.wait()
        end = [JobState.SUCCEEDED, JobState.DEAD][fn is broken]
        assert await state_of(job) is end
    expected = ["succeeded"] if fn is fine else ["failed", "dead"]
    assert recorder.names(job.id)[3:] == expected


@on_asyncio
async def test_native_cancel_during_settlement(recorder: RecordingObserver) -> None:
    """A native cancellation during the settlement cancels the task, not the settlement."""
    broker = GatedBroker()
    jobs = JobQueue(broker)
    handler = jobs.handler(name="send")(fine)
    async with Manager(observers=[recorder]) as manager, jobs:
        worker = await jobs.start(manager)
        job = await handler.enqueue()
        await broker.settling.wait()
        handle = manager.get(job.id)
        assert handle is not None
        native: Any = task_state(handle).native
        native.cancel()
        assert await handle.wait() == "cancelled"
        assert worker.in_flight == 0
        broker.gate.set()
        assert await job.wait(timeout=5) is JobState.SUCCEEDED
    assert recorder.names(job.id) == ["enqueued", "added", "started", "cancelled"]
    assert cancelled_reasons(recorder) == [REASON]


@on_asyncio
async def test_native_cancel_during_policy(recorder: RecordingObserver) -> None:
    """A job is released if it is cancelled natively before its policy has decided."""
    asked = anyio.Event()

    async def ask(state: RetryCallState) -> bool:
        asked.set()
        await anyio.sleep_forever()
        return False

    broker = MemoryBroker()
    jobs = JobQueue(broker)
    handler = jobs.handler(name="send", retry=AsyncRetrying(retry=ask))(fine)
    async with Manager(observers=[recorder]) as manager, jobs:
        worker = await jobs.start(manager, concurrency=1)
        job = await handler.enqueue()
        await asked.wait()
        worker._loops.stop()
        handle = manager.get(job.id)
        assert handle is not None
        native: Any = task_state(handle).native
        native.cancel()
        assert await handle.wait() == "cancelled"
        await worker.close()
    stored = await broker.get(job.id)
    assert stored is not None
    assert (stored.state, stored.attempt) == (JobState.READY, 0)


@pytest.mark.parametrize("when", ["running", "settling"])
@on_asyncio
async def test_native_cancel_of_all_tasks(when: str, recorder: RecordingObserver) -> None:
    """After a native cancellation of all tasks, no job is lost, and every task has one end.

    The worker continues. A settlement in progress may be lost; then the job runs again when its
    lease has expired.
    """
    broker = GatedBroker() if when == "settling" else MemoryBroker()
    jobs = JobQueue(broker)
    started = anyio.Event()

    async def work() -> None:
        started.set()
        await (anyio.sleep(0.05) if when == "running" else checkpoint())

    handler = jobs.handler(name="work")(work)
    async with Manager(observers=[recorder]) as manager, jobs:
        worker = await jobs.start(manager)
        job = await handler.enqueue()
        await (broker.settling.wait() if isinstance(broker, GatedBroker) else started.wait())
        current = asyncio.current_task()
        tasks = [
            task for task in asyncio.all_tasks() if task is not current and is_of_package(task)
        ]
        assert len(tasks) >= 5
        for task in tasks:
            task.cancel()
        if isinstance(broker, GatedBroker):
            broker.gate.set()
        with anyio.fail_after(40):
            await job.wait()
            await worker.close()
        assert worker.in_flight == 0
        assert manager.count() == 0
        info = await job.info()
    assert info is not None
    assert info.state is JobState.SUCCEEDED
    ran: dict[str, list[str]] = {}  # the second run may begin before the first one's last event
    for name, event in zip(recorder.names(job.id), recorder.events, strict=False):
        ran.setdefault(getattr(event, "id", ""), []).append(name)
    sequences = sorted("-".join(names) for names in ran.values())
    cancelled, again = "added-started-cancelled", "added-started-succeeded"
    assert sequences in (
        [cancelled, again, "enqueued"],
        [f"{cancelled}-{again}", "enqueued"],
        [cancelled, "enqueued"],
    )


def is_of_package(task: asyncio.Task[Any]) -> bool:
    return type(task).__module__.startswith("background.")


# Policies


async def test_attempt_number() -> None:
    """A policy counts attempts from a given number, after those of other processes."""
    policy = AsyncRetrying(stop=stop_after_attempt(4), wait=wait_fixed(1))
    delays: list[float | None] = []
    for number in (2, 3, 4):
        attempts = Attempts(policy, fine, (), {}, started=0.0, clock=lambda: 5.0, number=number)
        delays.append(await attempts.failed(ValueError()))
    assert delays == [1, 1, None]
    attempts = Attempts(policy, fine, (), {}, started=0.0, clock=lambda: 5.0)
    assert await attempts.failed(ValueError()) == 1


async def test_stop_after_delay(anyio_backend: object) -> None:
    """A policy measures its time from the first attempt."""
    policy = AsyncRetrying(stop=stop_after_delay(25), wait=wait_fixed(10))
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="flaky", retry=policy)(broken)
    with virtual_wall_clock(datetime(2030, 1, 1, tzinfo=UTC)):
        async with jobs:
            await handler.enqueue()
            (job,) = await drain(jobs, scheduled=True)
    assert (job.state, job.attempt) == (JobState.DEAD, 4)  # at 0, 10, 20 and 30 seconds


# Stopped loops


async def test_stop_loops(manager: Manager) -> None:
    """stop_loops() ends the claims of workers, and running jobs continue."""
    jobs = JobQueue(MemoryBroker())
    handler = jobs.handler(name="nap")(nap)
    async with jobs:
        worker = await jobs.start(manager, Ordered("default"))
        running = await handler.enqueue(5)
        await anyio.sleep(1)
        await manager.stop_loops()
        later = await handler.enqueue(5)
        assert await running.wait() is JobState.SUCCEEDED
        await anyio.sleep(100)
        assert await state_of(later) is JobState.READY
        assert worker.in_flight == 0


async def test_loops_stopped_callbacks(manager: Manager) -> None:
    """A closed worker is not notified when the manager's loops stop."""
    jobs = JobQueue(MemoryBroker())
    jobs.handler(name="send")(fine)
    async with jobs:
        first, second = await jobs.start(manager), await jobs.start(manager)
        callbacks = manager._runtime.scheduler.on_loops_stopped  # type: ignore[union-attr]
        assert callbacks == {first._loops.stop, second._loops.stop}
        await first.close()
        assert callbacks == {second._loops.stop}
        await manager.stop_loops()
        assert callbacks == set()
