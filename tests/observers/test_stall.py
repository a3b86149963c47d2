"""Reports of `StallObserver`, and their cost."""

from __future__ import annotations

import logging
import math
import threading
from typing import Any

import anyio
import pytest
from support.outcomes import (
    JOBS,
    LOOP,
    SCENARIOS,
    JobScenario,
    Scenario,
    broken,
    fine,
    nap,
    play,
    play_job,
)
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from background import Manager, Task, TaskStalled, every
from background.observers import StallObserver
from background.queues import JobQueue
from background.queues.memory import MemoryBroker
from background.testing import RecordingObserver, VirtualTimeLoop, virtual_time


def elapsed(recorder: RecordingObserver, id: str | None = None) -> list[float]:
    """Return the times with which stalls were reported, rounded to milliseconds."""
    return [round(event.elapsed, 3) for event in recorder.of(TaskStalled, id)]


class WakeCounter(StallObserver):
    """Counts how often the timer wakes."""

    def __init__(self, after: float) -> None:
        super().__init__(after)
        self.wakes = 0

    async def _report_due(self, manager: Manager) -> None:
        self.wakes += 1
        await super()._report_due(manager)


def timed(observer: StallObserver) -> list[str]:
    """Return the ids of the tasks whose attempts the observer times."""
    return [*observer._began, *observer._numbers]


async def test_doubling_intervals(recorder: RecordingObserver) -> None:
    """A task is reported after `after` seconds, after twice that time and so on, and continues."""
    async with Manager(observers=[recorder, StallObserver(after=2)]) as manager:
        began = anyio.current_time()
        reported: list[float] = []

        async def follow() -> None:
            for count in range(1, 5):
                await recorder.wait_for(TaskStalled, count=count)
                reported.append(round(anyio.current_time() - began, 3))

        handle = manager.run(nap, 17)
        await follow()
        await handle
    assert reported == elapsed(recorder) == [2, 4, 8, 16]
    assert recorder.names(handle.id)[-1] == "succeeded"


async def test_quick_tasks(recorder: RecordingObserver) -> None:
    """Tasks that end within the limit are not reported."""
    async with Manager(observers=[recorder, StallObserver(2)]) as manager:
        for _ in range(3):
            await manager.run(nap, 1.9)
        manager.after(50, fine)
        manager.every(5, nap, 1.9)
        await anyio.sleep(100)
    assert elapsed(recorder) == []


async def test_queued_task(recorder: RecordingObserver) -> None:
    """A queued task is not reported."""
    async with Manager(limit=1, observers=[recorder, StallObserver(2)]) as manager:
        manager.run_task(Task(nap, args=(20,), stall_after=100))
        manager.run(nap, 1)
    assert elapsed(recorder) == []


async def test_stall_after(recorder: RecordingObserver) -> None:
    """A task's `stall_after` replaces `after`, whether it is shorter or longer."""
    async with Manager(observers=[recorder, StallObserver(10)]) as manager:
        usual = manager.run(nap, 15)
        short = manager.run_task(Task(nap, args=(15,), stall_after=3))
        long = manager.run_task(Task(nap, args=(15,), stall_after=12))
    assert elapsed(recorder, usual.id) == [10]
    assert elapsed(recorder, short.id) == [3, 6, 12]
    assert elapsed(recorder, long.id) == [12]


async def test_earlier_deadline(recorder: RecordingObserver) -> None:
    """A task with an earlier deadline is reported in time."""
    async with Manager(observers=[recorder, StallObserver(100)]) as manager:
        began = anyio.current_time()
        manager.run(nap, 50)
        await anyio.sleep(10)
        manager.run_task(Task(nap, args=(20,), stall_after=5, id="later"))
        await recorder.wait_for(TaskStalled, id="later")
        assert anyio.current_time() - began == pytest.approx(15)


async def test_time_of_attempt(recorder: RecordingObserver) -> None:
    """The time of an attempt excludes earlier attempts and backoff."""
    policy = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(10))
    async with Manager(observers=[recorder, StallObserver(2)]) as manager:
        began = anyio.current_time()
        handle = manager.run_task(Task(nap, args=(100,), timeout=5, retry=policy))
        times: list[float] = []
        for count in range(1, 7):
            await recorder.wait_for(TaskStalled, count=count)
            times.append(round(anyio.current_time() - began, 3))
        await handle.wait()
    assert times == [2, 4, 17, 19, 32, 34]
    assert elapsed(recorder) == [2, 4] * 3
    assert [event.attempt for event in recorder.of(TaskStalled)] == [1, 1, 2, 2, 3, 3]


async def test_backoff_longer_than_announced(recorder: RecordingObserver) -> None:
    """A backoff that exceeds its delay is not reported.

    A policy may have its own `sleep`.
    """

    async def oversleep(delay: float) -> None:
        await anyio.sleep(delay + 20)

    policy = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(1), sleep=oversleep)
    async with Manager(observers=[recorder, StallObserver(2)]) as manager:
        manager.run_task(Task(nap, args=(100,), timeout=5, retry=policy))
    stalls = recorder.of(TaskStalled)
    assert [event.attempt for event in stalls[:2]] == [1, 1]
    assert {event.attempt for event in stalls[2:]} == {2}
    assert all(0 < event.elapsed <= 5 for event in stalls)


async def test_time_of_iteration(recorder: RecordingObserver) -> None:
    """The time of an iteration excludes earlier iterations."""
    async with Manager(observers=[recorder, StallObserver(2)]) as manager:
        manager.every(10, nap, 5)
        await anyio.sleep(26)
        await manager.stop_loops()
    stalls = [(event.iteration, round(event.elapsed, 3)) for event in recorder.of(TaskStalled)]
    assert stalls == [(1, 2), (1, 4), (2, 2), (2, 4), (3, 2), (3, 4)]


async def test_recipients(recorder: RecordingObserver) -> None:
    """A stall is reported to the manager's observers and to those of the task."""
    own, unrelated = RecordingObserver(), RecordingObserver()
    async with Manager(observers=[StallObserver(2), recorder]) as manager:
        manager.run_task(Task(nap, args=(3,), observers=(own,)))
        manager.run_task(Task(nap, args=(1,), observers=(unrelated,)))
    assert elapsed(recorder) == elapsed(own) == [2]
    assert elapsed(unrelated) == []


async def test_stack_of_coroutine(recorder: RecordingObserver) -> None:
    """The stack shows where a coroutine hangs."""

    async def inner() -> None:
        await anyio.sleep_forever()  # hangs here

    async def outer() -> None:
        await inner()

    async with Manager(observers=[recorder, StallObserver(2)]) as manager:
        handle = manager.run(outer)
        stalled = await recorder.wait_for(TaskStalled)
        handle.cancel()
    here = [(frame.name, frame.line) for frame in stalled.stack if frame.filename == __file__]
    assert here == [
        ("outer", "await inner()"),
        ("inner", "await anyio.sleep_forever()  # hangs here"),
    ]
    assert stalled.stack[0].name == "outer"


@pytest.mark.realtime
async def test_stack_of_thread(recorder: RecordingObserver) -> None:
    """The stack shows where a thread hangs."""
    entered, released = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        released.wait(30)  # hangs here

    async with Manager(observers=[recorder, StallObserver(0.001)]) as manager:
        manager.run(block)
        await anyio.to_thread.run_sync(entered.wait)
        count = len(recorder.of(TaskStalled))
        lines: list[str | None] = []
        while "released.wait(30)  # hangs here" not in lines:
            count += 1
            stalled = await recorder.wait_for(TaskStalled, count=count)
            lines = [frame.line for frame in stalled.stack]
        released.set()
    assert stalled.stack[0].name == "block"


class LateWatch(StallObserver):
    """Starts its service five seconds late."""

    async def watch(self, manager: Manager) -> None:
        await anyio.sleep(5)
        await super().watch(manager)


async def test_tasks_before_service(recorder: RecordingObserver) -> None:
    """Tasks that started before the service are timed from their start, unless they have ended."""
    observer = LateWatch(100)
    async with Manager(observers=[recorder, observer]) as manager:
        slow = manager.run_task(Task(nap, args=(20,), stall_after=1))
        manager.run_task(Task(nap, args=(1,), stall_after=1))
        await anyio.sleep(6)
        assert timed(observer) == [slow.id]
    assert elapsed(recorder) == [5, 8, 16]


async def test_late_timer(recorder: RecordingObserver) -> None:
    """A late timer reports a task once and continues with the intervals to come."""
    async with Manager(observers=[recorder, LateWatch(1.5)]) as manager:
        manager.run(nap, 7)
    assert elapsed(recorder) == [5, 6]


async def test_checkpoints_between_reports(recorder: RecordingObserver) -> None:
    """Other tasks run between the reports of many stalled tasks."""
    async with Manager(observers=[recorder, StallObserver(2)]) as manager:
        for _ in range(50):
            manager.run(nap, 3)
        await recorder.wait_for(TaskStalled)
        assert len(recorder.of(TaskStalled)) < 50
    assert len(recorder.of(TaskStalled)) == 50


async def test_end_between_reports(recorder: RecordingObserver) -> None:
    """A task that ends while other tasks are reported is not reported."""

    class Cancelling(RecordingObserver):
        def on_task_stalled(self, event: TaskStalled) -> None:
            for handle in manager.tasks():
                if handle.id != event.id:
                    handle.cancel()

    async with Manager(observers=[recorder, StallObserver(2), Cancelling()]) as manager:
        for _ in range(5):
            manager.run(nap, 3)
    # A cancelled task ends in its next step, so the second one may be reported before its end.
    assert 1 <= len(recorder.of(TaskStalled)) <= 2


class Leftovers(StallObserver):
    """Records the number of tasks that it still times when the manager has closed."""

    def on_manager_closed(self, event: Any) -> None:
        self.left = len(timed(self))


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
async def test_every_outcome(scenario: Scenario) -> None:
    """No task is timed after its end, whatever its outcome."""
    observer = Leftovers(1)
    await play(scenario, observer)  # type: ignore[arg-type]
    assert observer.left == 0


@pytest.mark.parametrize("scenario", JOBS.values(), ids=JOBS)
async def test_every_job_outcome(scenario: JobScenario) -> None:
    """No job is timed after its end, whatever its outcome."""
    observer = Leftovers(0.5)
    await play_job(scenario, observer)
    assert observer.left == 0


async def test_job_between_attempts(recorder: RecordingObserver) -> None:
    """A job is not timed between its attempts, because each attempt is a task."""
    jobs, observer = JobQueue(MemoryBroker()), StallObserver(2)
    policy = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(100))
    slow = jobs.handler(name="slow", timeout=5, retry=policy)(nap)
    async with Manager(observers=[recorder, observer]) as manager, jobs:
        await jobs.start(manager)
        job = await slow.enqueue(100)
        await anyio.sleep(50)
        assert timed(observer) == []
        assert elapsed(recorder) == [2, 4]
        await job.wait()
    assert elapsed(recorder) == [2, 4, 2, 4]
    assert [event.attempt for event in recorder.of(TaskStalled)] == [1, 1, 2, 2]


async def test_memory_of_retried_jobs(recorder: RecordingObserver) -> None:
    """The observer stores nothing for a thousand retried jobs that have ended."""
    jobs, observer = JobQueue(MemoryBroker()), StallObserver(1_000_000)
    policy = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(1))
    unlucky = jobs.handler(name="unlucky", retry=policy)(broken)
    async with Manager(observers=[recorder, observer]) as manager, jobs:
        forever = manager.run_task(Task(nap, args=(100_000,), stall_after=500_000))
        await jobs.start(manager, concurrency=100)
        handles = await unlucky.enqueue_many([()] * 1_000)
        for job in handles:
            await job.wait()
        assert timed(observer) == [forever.id]
        assert len(observer._heap) <= 70
        assert list(observer._own) == [forever.id]
        forever.cancel()
    assert recorder.names().count("retrying") == 1_000


async def test_memory_of_short_tasks(recorder: RecordingObserver) -> None:
    """The observer stores nothing for ended tasks and attempts while one long task continues."""
    observer = StallObserver(1_000_000)
    policy = AsyncRetrying(stop=stop_after_attempt(500), wait=wait_fixed(1))
    most = 0
    async with Manager(observers=[observer]) as manager:
        forever = manager.run(nap, 100_000)
        for _ in range(2_000):
            await manager.run(fine)
            most = max(most, len(observer._heap))
        flaky = manager.run_task(Task(nap, args=(9,), timeout=1, retry=policy))
        while not flaky.finished_at:
            await anyio.sleep(10)
            most = max(most, len(observer._heap))
        burst = [manager.run(nap, 1) for _ in range(2_000)]
        await anyio.sleep(0.5)
        assert len(timed(observer)) >= 2_001
        for handle in burst:
            await handle
        assert timed(observer) == [forever.id]
        assert len(observer._heap) <= 70
        forever.cancel()
    assert most <= 70
    assert observer._heap == []
    assert timed(observer) == []


async def test_idle_timer() -> None:
    """Short tasks seldom wake the timer, and it stays idle after the last one."""
    observer = WakeCounter(100)
    async with Manager(observers=[observer]) as manager:
        for _ in range(1_000):
            await manager.run(nap, 0.5)
        assert observer.wakes <= 1 + 2 * 5
        await anyio.sleep(200)
        wakes = observer.wakes
        await anyio.sleep(80_000)
        assert observer.wakes == wakes


def test_one_timer() -> None:
    """The number of the event loop's timers does not depend on the number of tasks."""

    class CountingLoop(VirtualTimeLoop):
        timers = 0

        def call_at(self, *args: Any, **kwargs: Any) -> Any:
            CountingLoop.timers += 1
            return super().call_at(*args, **kwargs)

    async def hang(tasks: int) -> int:
        CountingLoop.timers = 0
        released = anyio.Event()
        async with Manager(observers=[StallObserver(2)]) as manager:
            for _ in range(tasks):
                manager.run(released.wait)
            await anyio.sleep(100)
            released.set()
        return CountingLoop.timers

    def timers(tasks: int) -> int:
        return anyio.run(hang, tasks, backend_options={"loop_factory": CountingLoop})

    assert timers(1_000) == timers(10)


async def test_stuck_task() -> None:
    """A task that outlives its manager is no longer timed."""
    observer, released = StallObserver(2), anyio.Event()

    async def stubborn() -> None:
        with anyio.CancelScope(shield=True):
            await released.wait()

    async with Manager(observers=[observer], cancel_timeout=1) as manager:
        handle = manager.run(stubborn)
        await anyio.sleep(1)
        report = await manager.close(timeout=0)
        assert report.stuck == (handle,)
        assert timed(observer) == [handle.id]
    assert timed(observer) == []
    released.set()
    await handle.wait()


async def test_second_manager_at_once(
    recorder: RecordingObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """The observer raises an error in a second manager at once, and still watches the first."""
    observer = StallObserver(2)
    second_recorder = RecordingObserver()
    async with Manager(name="first", observers=[observer, recorder]) as first:
        await anyio.sleep(1)
        async with Manager(name="second", observers=[observer, second_recorder]) as second:
            await anyio.sleep(1)
            first.run(nap, 5)
            second.run(nap, 5)
            await anyio.sleep(3)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == (
        "this StallObserver already watches manager 'first'; "
        "create another one for manager 'second'"
    )
    assert elapsed(recorder) == [2, 4]
    assert elapsed(second_recorder) == []


async def test_consecutive_managers(recorder: RecordingObserver) -> None:
    """Consecutive managers can use the same observer."""
    observer = StallObserver(2)
    for _ in range(2):
        async with Manager(observers=[observer, recorder]) as manager:
            manager.run(nap, 3)
    assert elapsed(recorder) == [2, 2]


def test_consecutive_event_loops(recorder: RecordingObserver) -> None:
    """Consecutive event loops can use the same observer."""
    observer = StallObserver(2)

    async def main() -> None:
        async with Manager(observers=[observer, recorder]) as manager:
            manager.run(nap, 3)

    for library in ("asyncio", "trio", "asyncio"):
        backend, options = virtual_time(library)  # type: ignore[arg-type]
        anyio.run(main, backend=backend, backend_options=options)
    assert elapsed(recorder) == [2, 2, 2]


async def test_observer_of_task() -> None:
    """A task refuses a `StallObserver`."""
    with pytest.raises(ValueError, match="pass the StallObserver to"):
        Task(fine, observers=(StallObserver(2),))


@pytest.mark.parametrize("after", [0, -1, math.inf, math.nan, True, None, "2"])
def test_invalid_limit(after: Any) -> None:
    """An invalid limit is refused."""
    with pytest.raises(ValueError, match=r"^after must be a finite number of seconds, more than 0"):
        StallObserver(after)


async def test_extreme_limits(recorder: RecordingObserver) -> None:
    """Limits that are too small for the clock, or too large to be doubled, block nothing."""
    async with Manager(observers=[recorder, StallObserver(1e-300)]) as manager:
        await anyio.sleep(1)
        manager.run(nap, 1)
        manager.run_task(Task(nap, args=(1,), stall_after=1.7e308))
        manager.run_task(Task(nap, kind=LOOP, schedule=every(10), stall_after=1.7e308))
        await anyio.sleep(2)
    assert len(elapsed(recorder)) >= 1
