"""Loops: iterations, schedules, backoff, and the ways a loop ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextvars import ContextVar
from itertools import pairwise
from math import inf, nan
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from support.time import SOON, Clock, ages
from tenacity import AsyncRetrying, RetryCallState, stop_after_attempt, wait_fixed
from tenacity.wait import wait_base

from background import (
    LoopsStoppedError,
    Manager,
    Task,
    TaskCancelled,
    TaskCancelledError,
    TaskExpired,
    TaskExpiredError,
    TaskFailed,
    TaskHandle,
    TaskKind,
    TaskRetrying,
    TaskStarted,
    TaskStatus,
    TaskSucceeded,
    every,
)
from background.testing import RecordingObserver

FINAL_EVENTS = {"succeeded", "failed", "cancelled", "expired"}


def make_loop_task(fn: Callable[..., Any], **options: Any) -> Task[Any]:
    return Task(fn, kind=TaskKind.LOOP, **options)


# Fixed rates


async def test_fixed_rate(manager: Manager, clock: Clock) -> None:
    """A loop runs at a fixed rate that starts at its submission."""

    async def work() -> None:
        clock.note()
        await anyio.sleep(3)

    manager.every(10, work)
    await anyio.sleep(45)
    assert clock.times == [0, 10, 20, 30, 40]


async def test_no_drift(manager: Manager, clock: Clock) -> None:
    """A loop does not drift, even if floats cannot represent the interval."""

    async def work() -> None:
        clock.note()
        await anyio.sleep(0.0123)

    manager.every(0.1, work)
    await anyio.sleep(200.05)
    assert clock.times == [round(0.1 * number, 6) for number in range(2001)]


async def test_missed_ticks_skipped(manager: Manager, clock: Clock) -> None:
    """Iterations never overlap; ticks missed during an iteration are skipped."""
    running = 0
    lengths = iter([25, 1, 10, 31, 0, 0])

    async def work() -> None:
        nonlocal running
        running += 1
        assert running == 1
        clock.note()
        await anyio.sleep(next(lengths))
        running -= 1

    handle = manager.every(10, work)
    await anyio.sleep(105)
    assert clock.times[:6] == [0, 30, 40, 50, 90, 100]
    assert handle.error is None


async def test_iteration_as_long_as_interval(manager: Manager, clock: Clock) -> None:
    """An iteration that is as long as the interval misses no tick."""

    async def work() -> None:
        clock.note()
        await anyio.sleep(0.1)

    manager.every(0.1, work)
    await anyio.sleep(10.05)
    assert clock.times == [round(0.1 * number, 6) for number in range(101)]


async def test_failed_iteration_keeps_schedule(manager: Manager, clock: Clock) -> None:
    """A failed iteration does not delay a schedule; only loops without one back off."""

    async def work() -> None:
        clock.note()
        raise ValueError

    manager.every(1, work)
    await anyio.sleep(5.5)
    assert clock.times == [0, 1, 2, 3, 4, 5]


async def test_delay_shifts_schedule(manager: Manager, clock: Clock) -> None:
    """A delay shifts all ticks of a schedule."""

    async def work() -> None:
        clock.note()

    handle = manager.run_task(make_loop_task(work, schedule=every(10), delay=3))
    assert handle.status is TaskStatus.WAITING
    await anyio.sleep(25)
    assert clock.times == [3, 13, 23]


async def test_delay_without_schedule(manager: Manager, clock: Clock) -> None:
    """A delay applies to the first iteration of a loop without a schedule only."""

    async def work() -> None:
        clock.note()
        await anyio.sleep(1)

    manager.run_task(make_loop_task(work, delay=3))
    await anyio.sleep(6.5)
    assert clock.times == [3, 4, 5, 6]


async def test_jitter(manager: Manager, clock: Clock) -> None:
    """Jitter delays every iteration by a random time and does not accumulate."""

    async def work() -> None:
        clock.note()

    manager.run_task(make_loop_task(work, schedule=every(10, jitter=5)))
    await anyio.sleep(1000)
    offsets = [time - 10 * number for number, time in enumerate(clock.times)]
    assert len(offsets) in (99, 100)
    assert all(0 <= offset <= 5 for offset in offsets)
    assert len(set(offsets)) > 50


async def test_iteration_queued_for(manager: Manager, recorder: RecordingObserver) -> None:
    """An iteration that starts on its tick reports no queueing time, even after missed ticks."""

    async def work() -> None:
        await anyio.sleep(15)

    manager.every(10, work)
    await recorder.wait_for(TaskStarted, count=3)
    assert [event.queued_for for event in recorder.of(TaskStarted)] == [0, 0, 0]


@pytest.mark.realtime
@pytest.mark.parametrize("interval", [5e-324, 1e-308, 1e300])
async def test_extreme_intervals(interval: float) -> None:
    """Extreme intervals are accepted or rejected, but cause no error in the event loop."""
    async with Manager() as manager:
        try:
            manager.every(interval, checkpoint)
        except ValueError:
            return
        for _ in range(10):
            await checkpoint()
        report = await manager.close(timeout=0)
        assert len(report.cancelled) == 1


# Without a schedule


async def test_loop_without_schedule(manager: Manager, clock: Clock) -> None:
    """A loop without a schedule starts the next iteration immediately."""

    async def work() -> None:
        clock.note()
        await anyio.sleep(2)

    manager.loop(work)
    await anyio.sleep(7)
    assert clock.times == [0, 2, 4, 6]


@pytest.mark.realtime
async def test_loops_without_await(manager: Manager) -> None:
    """Loops that never await do not starve other tasks and can be cancelled."""
    iterations = 0

    async def work() -> None:
        nonlocal iterations
        iterations += 1

    manager.loop(work)
    manager.loop(work)
    await manager.run(anyio.sleep, 0.01)
    for _ in range(100):
        await checkpoint()
    assert iterations > 100
    report = await manager.close(timeout=0)
    assert len(report.cancelled) == 2


@pytest.mark.realtime
async def test_loops_take_turns(manager: Manager) -> None:
    """Two loops that never await take turns.

    Neither gets ahead by more than a batch.
    """
    counts = [0, 0]

    async def work(index: int) -> None:
        counts[index] += 1

    manager.loop(work, 0)
    manager.loop(work, 1)
    for _ in range(200):
        await checkpoint()
        assert abs(counts[0] - counts[1]) <= 2
    assert min(counts) > 50


@pytest.mark.realtime
async def test_unreachable_rate(manager: Manager) -> None:
    """A loop with an interval too short to keep does not starve other tasks."""
    iterations = 0

    async def work() -> None:
        nonlocal iterations
        iterations += 1

    manager.every(1e-6, work)
    with anyio.fail_after(SOON):
        while iterations < 20:
            await checkpoint()
    assert manager.health().loops == 1


@pytest.mark.realtime
async def test_sync_loop(manager: Manager, recorder: RecordingObserver) -> None:
    """Iterations of a sync function run in worker threads."""
    threads: list[int] = []
    enough = threading.Event()

    def work() -> None:
        threads.append(threading.get_ident())
        if len(threads) >= 3:
            enough.set()

    manager.loop(work)
    assert await anyio.to_thread.run_sync(enough.wait, SOON)
    await manager.stop_loops()
    assert threading.get_ident() not in threads
    assert manager.count() == 0
    assert [event.iteration for event in recorder.of(TaskStarted)] == list(
        range(1, len(threads) + 1)
    )


# Backoff


async def test_default_backoff(manager: Manager) -> None:
    """By default a failing loop backs off exponentially with jitter, from 0.1 to 30 seconds."""
    failures: list[float] = []

    async def work() -> None:
        failures.append(anyio.current_time())
        raise ValueError

    manager.loop(work)
    await anyio.sleep(600)
    pauses = [later - earlier for earlier, later in pairwise(failures)]
    assert all(0.1 <= pause <= 30.001 for pause in pauses)
    assert pauses[0] <= 0.2
    assert 20 < len(pauses) < 200


class LinearBackoff(wait_base):
    """A backoff of one second per failure in a row that records the errors."""

    def __init__(self) -> None:
        self.errors: list[BaseException | None] = []

    def __call__(self, retry_state: RetryCallState) -> float:
        assert retry_state.outcome is not None
        self.errors.append(retry_state.outcome.exception())
        return float(retry_state.attempt_number)


async def test_custom_backoff_restarts_after_success(
    clock: Clock, recorder: RecordingObserver
) -> None:
    """A custom backoff gets every error, and restarts after a success."""
    backoff = LinearBackoff()

    async def work() -> None:
        clock.note()
        if len(clock.times) != 4:
            raise ValueError(len(clock.times))
        await anyio.sleep(0.5)

    async with Manager(loop_backoff=backoff, observers=[recorder]) as manager:
        manager.loop(work)
        await anyio.sleep(9)
        await manager.close()
    assert clock.times == [0, 1, 3, 6, 6.5, 7.5]
    assert [str(error) for error in backoff.errors] == ["1", "2", "3", "5", "6"]


async def test_no_backoff(recorder: RecordingObserver) -> None:
    """A failing loop starts again immediately if `loop_backoff` is None."""

    async def work() -> None:
        raise ValueError

    async with Manager(loop_backoff=None, observers=[recorder]) as manager:
        began = anyio.current_time()
        manager.loop(work)
        await recorder.wait_for(TaskFailed, count=50)
        assert anyio.current_time() == began
        await manager.close()


async def test_status_during_backoff(manager: Manager) -> None:
    """A loop in backoff has the status "waiting" and no stack."""

    async def work() -> None:
        raise ValueError

    handle = manager.loop(work)
    await anyio.wait_all_tasks_blocked()
    assert handle.status is TaskStatus.WAITING
    assert handle.stack() == []


async def test_backoff_raises(caplog: pytest.LogCaptureFixture) -> None:
    """A backoff that raises does not affect other tasks, and its error is logged.

    The loop either fails or continues.
    """

    class BrokenBackoff(wait_base):
        def __call__(self, retry_state: RetryCallState) -> float:
            raise ArithmeticError("broken backoff")

    async def work() -> None:
        raise ValueError

    async with Manager(loop_backoff=BrokenBackoff()) as manager:
        handle = manager.loop(work)
        await anyio.sleep(100)
        assert handle.status is TaskStatus.FAILED or handle.iteration > 1
        assert await manager.run(anyio.sleep, 1) is None
        await manager.close(timeout=0)
    assert "broken backoff" in caplog.text


@pytest.mark.parametrize("pause", [nan, inf, -inf])
async def test_backoff_without_end(pause: float) -> None:
    """A backoff that is not a finite number ends its loop, as one that raises does."""

    async def work() -> None:
        raise ValueError

    async with Manager(loop_backoff=wait_fixed(pause)) as manager:
        handle = manager.loop(work)
        with pytest.raises(ValueError, match="loop_backoff must return a finite number"):
            with anyio.fail_after(100):
                await handle
    assert handle.iteration == 1


async def test_retry_policy_per_iteration(clock: Clock, recorder: RecordingObserver) -> None:
    """A retry policy applies to every iteration separately."""
    policy = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(1))

    async def work() -> None:
        clock.note()
        raise ValueError

    async with Manager(observers=[recorder], retry=policy, loop_backoff=wait_fixed(10)) as manager:
        manager.loop(work)
        await anyio.sleep(20)
        await manager.close()
    assert clock.times == [0, 1, 2, 12, 13, 14]
    assert [(event.iteration, event.attempt) for event in recorder.of(TaskRetrying)] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]
    failed = recorder.of(TaskFailed)
    assert [(event.iteration, event.attempt, event.final) for event in failed] == [
        (1, 3, False),
        (2, 3, False),
    ]


async def test_timeout_per_attempt(clock: Clock, recorder: RecordingObserver) -> None:
    """A timeout applies to every attempt of an iteration separately."""
    policy = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(1))

    async def work() -> None:
        clock.note()
        await anyio.sleep(100 if len(clock.times) < 3 else 0)

    async with Manager(observers=[recorder]) as manager:
        task = make_loop_task(work, schedule=every(10), timeout=2, retry=policy)
        manager.run_task(task)
        await anyio.sleep(15)
        await manager.close()
    assert clock.times == [0, 3, 10]
    assert [type(event.error) for event in recorder.of(TaskFailed)] == [TimeoutError]
    assert [event.iteration for event in recorder.of(TaskSucceeded)] == [2]


async def test_max_failures(manager: Manager, recorder: RecordingObserver) -> None:
    """A loop fails after `max_failures` failed iterations in a row."""
    results = iter([True, False, True, False, False, True])

    async def work() -> None:
        if not next(results):
            raise ValueError(handle.iteration)

    handle = manager.run_task(make_loop_task(work, max_failures=2, schedule=every(1)))
    assert await handle.wait() is TaskStatus.FAILED
    with pytest.raises(ValueError, match="5"):
        await handle
    assert handle.iteration == 5
    failed = recorder.of(TaskFailed)
    assert [(event.iteration, event.final) for event in failed] == [
        (2, False),
        (4, False),
        (5, True),
    ]
    assert "cancelled" not in recorder.names()
    assert manager.count() == 0


async def test_failed_iterations_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every failed iteration is logged if no observer handles it."""

    async def work() -> None:
        raise ValueError("boom")

    async with Manager() as manager:
        handle = manager.every(10, work)
        await anyio.sleep(25)
        await manager.close()
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 3
    assert all(handle.id in record.getMessage() and record.exc_info for record in errors)


# Events and counters


async def test_loop_events(manager: Manager, recorder: RecordingObserver) -> None:
    """Observers get events of every iteration and one event of the loop's end."""

    async def work() -> None:
        if handle.iteration == 2:
            raise ValueError

    handle = manager.every(10, work)
    await anyio.sleep(25)
    await manager.stop_loops()
    assert recorder.names() == [
        "added",
        *("started", "succeeded"),
        *("started", "failed"),
        *("started", "succeeded"),
        "cancelled",
    ]
    assert [event.iteration for event in recorder.of(TaskStarted)] == [1, 2, 3]
    assert all(event.attempt == 1 for event in recorder.of(TaskStarted))
    assert not any(event.final for event in recorder.of(TaskSucceeded))
    (ended,) = recorder.of(TaskCancelled)
    assert (ended.reason, ended.duration, ended.iteration) == ("stopped", None, 3)


async def test_context_per_iteration(manager: Manager) -> None:
    """Every iteration starts from the context of the submission."""
    variable: ContextVar[int] = ContextVar("variable")
    seen: list[int] = []

    async def work() -> None:
        seen.append(variable.get())
        variable.set(variable.get() + 1)

    variable.set(5)
    manager.every(1, work)
    variable.set(50)
    await anyio.sleep(2.5)
    assert seen == [5, 5, 5]


# Stopping


async def test_stop_during_iteration(
    manager: Manager, recorder: RecordingObserver, clock: Clock
) -> None:
    """A stopped loop finishes its iteration and starts no further one."""

    async def work() -> None:
        await anyio.sleep(10)
        clock.note()

    handle = manager.loop(work)
    await anyio.sleep(13)
    await manager.stop_loops()
    assert clock.times == [10, 20]
    assert clock.now == 20
    assert recorder.names()[-2:] == ["succeeded", "cancelled"]
    with pytest.raises(TaskCancelledError, match="stopped"):
        await handle


@pytest.mark.parametrize("pause", ["schedule", "backoff", "delay", "retry", "not stepped yet"])
async def test_stop_during_pause(pause: str, clock: Clock) -> None:
    """A loop that is stopped while it waits ends immediately."""
    hour = wait_fixed(3600)

    async def work() -> None:
        clock.note()
        if pause in ("backoff", "retry"):
            raise ValueError

    tasks = {
        "schedule": make_loop_task(work, schedule=every(3600)),
        "backoff": make_loop_task(work),
        "delay": make_loop_task(work, delay=3600),
        "retry": make_loop_task(work, retry=AsyncRetrying(wait=hour)),
        "not stepped yet": make_loop_task(work),
    }
    recorder = RecordingObserver()
    async with Manager(observers=[recorder], loop_backoff=hour) as manager:
        handle = manager.run_task(tasks[pause])
        if pause != "not stepped yet":
            await anyio.sleep(1)
        began = clock.now
        await manager.stop_loops()
        assert clock.now == began
        assert handle.status is TaskStatus.CANCELLED
        assert recorder.names().count("cancelled") == 1
        assert recorder.names()[-1] == "cancelled"
    expected = [] if pause in ("delay", "not stepped yet") else [0]
    assert clock.times == expected
    assert recorder.names().count("failed") == (1 if pause in ("backoff", "retry") else 0)


async def test_no_retry_after_stop(
    manager: Manager, recorder: RecordingObserver, clock: Clock
) -> None:
    """The attempt that runs when loops stop is the last one."""

    async def work() -> None:
        clock.note()
        await anyio.sleep(5)
        raise ValueError

    manager.run_task(make_loop_task(work, retry=AsyncRetrying(wait=wait_fixed(3600))))
    await anyio.sleep(1)
    await manager.stop_loops()
    assert clock.times == [0]
    assert clock.now == 5
    assert recorder.names() == ["added", "started", "failed", "cancelled"]


@pytest.mark.parametrize("lead", [0.0, 1e-9])
async def test_stop_on_tick(manager: Manager, clock: Clock, lead: float) -> None:
    """A loop that is stopped on a tick runs at most that iteration."""

    async def work() -> None:
        clock.note()

    handle = manager.every(10, work)
    await anyio.sleep(10 - lead)
    await manager.stop_loops()
    await anyio.sleep(100)
    assert clock.times in ([0], [0, 10])
    assert handle.status is TaskStatus.CANCELLED


async def test_submit_after_stop_loops(manager: Manager) -> None:
    """A manager whose loops have stopped rejects loops, but accepts one-off tasks."""
    await manager.stop_loops()
    for start in (
        lambda: manager.loop(checkpoint),
        lambda: manager.every(1, checkpoint),
        lambda: manager.cron("* * * * *", checkpoint),
        lambda: manager.run_task(make_loop_task(checkpoint)),
    ):
        with pytest.raises(LoopsStoppedError, match="were stopped"):
            start()
    with pytest.raises(LoopsStoppedError):
        await manager.submit(make_loop_task(checkpoint))
    await manager.run(checkpoint)


async def test_stop_loops_ignores_one_offs(manager: Manager) -> None:
    """`stop_loops()` does not wait for one-off tasks."""
    one_off = manager.run(anyio.sleep, 100)
    manager.loop(anyio.sleep, 1)
    await anyio.sleep(0.5)
    await manager.stop_loops()
    assert one_off.status is TaskStatus.RUNNING
    assert manager.count(TaskKind.LOOP) == 0


async def test_observer_cancels_loop() -> None:
    """An observer can cancel a loop when an iteration succeeds."""

    class CancellingObserver(RecordingObserver):
        pass

    observer = CancellingObserver()

    def cancel_loop(event: TaskSucceeded) -> None:
        observer.record("succeeded", event)
        assert manager.cancel(event.id, reason="once is enough")

    observer.on_task_succeeded = cancel_loop  # type: ignore[method-assign]
    async with Manager(observers=[observer]) as manager:
        handle = manager.loop(checkpoint)
        with pytest.raises(TaskCancelledError, match="once is enough"):
            await handle
    assert handle.iteration == 1
    assert observer.names(handle.id)[-1] == "cancelled"


async def test_observer_requests_shutdown() -> None:
    """An observer can request a shutdown when an iteration succeeds, which ends the loop."""
    observer = RecordingObserver()

    def shut_down(event: TaskSucceeded) -> None:
        manager.request_shutdown()

    observer.on_task_succeeded = shut_down  # type: ignore[method-assign]
    async with Manager(observers=[observer]) as manager:
        handle = manager.loop(checkpoint)
        with pytest.raises(TaskCancelledError, match="stopped"):
            await handle
    assert handle.iteration == 1
    assert observer.names().count("cancelled") == 1


# Cancellation and expiry


async def wait_for_cancellation(handle: TaskHandle[Any]) -> str | None:
    """Wait until the task is cancelled, and return the reason."""
    with anyio.fail_after(1000):
        with pytest.raises(TaskCancelledError) as caught:
            await handle
    return caught.value.reason


async def test_cancel_during_iteration(manager: Manager, recorder: RecordingObserver) -> None:
    """A loop cancelled during an iteration ends with the duration of that iteration."""
    handle = manager.every(10, anyio.sleep, 5)
    await anyio.sleep(12)
    assert handle.cancel("enough")
    assert await wait_for_cancellation(handle) == "enough"
    (ended,) = recorder.of(TaskCancelled)
    assert ended.iteration == 2
    assert ended.duration == pytest.approx(2)
    assert recorder.names() == ["added", "started", "succeeded", "started", "cancelled"]


async def test_cancel_waiting_loop(manager: Manager, recorder: RecordingObserver) -> None:
    """A waiting loop that is cancelled ends immediately and without a duration."""
    handle = manager.every(10, checkpoint)
    await anyio.sleep(5)
    assert handle.cancel("enough")
    assert handle.status is TaskStatus.CANCELLED
    assert recorder.of(TaskCancelled)[0].duration is None
    await anyio.sleep(20)
    assert handle.iteration == 1


async def test_cancel_during_backoff(manager: Manager) -> None:
    """A loop cancelled during backoff ends immediately."""

    async def work() -> None:
        raise ValueError

    handle = manager.loop(work)
    await anyio.wait_all_tasks_blocked()
    assert handle.cancel("enough")
    assert handle.status is TaskStatus.CANCELLED
    assert await wait_for_cancellation(handle) == "enough"


async def test_cancel_between_attempts(manager: Manager) -> None:
    """A loop cancelled between two attempts of an iteration ends."""

    async def work() -> None:
        raise ValueError

    handle = manager.run_task(make_loop_task(work, retry=AsyncRetrying(wait=wait_fixed(3600))))
    await anyio.wait_all_tasks_blocked()
    assert handle.status is TaskStatus.RETRYING
    assert handle.cancel("enough")
    assert await wait_for_cancellation(handle) == "enough"


async def test_cancellation_swallowed(manager: Manager) -> None:
    """A cancelled loop ends even if its function swallows the cancellation.

    The iteration may finish.
    """

    async def work() -> None:
        try:
            await anyio.sleep(3600)
        except anyio.get_cancelled_exc_class():
            return

    handle = manager.loop(work)
    await anyio.sleep(1)
    handle.cancel("enough")
    assert await wait_for_cancellation(handle) == "enough"
    assert handle.iteration == 1


async def test_cleanup_fails_after_cancel(manager: Manager, recorder: RecordingObserver) -> None:
    """A cancelled loop ends even if the clean-up of its function fails."""

    async def work() -> None:
        try:
            await anyio.sleep(3600)
        finally:
            raise ValueError

    handle = manager.loop(work)
    await anyio.sleep(1)
    handle.cancel("enough")
    with anyio.fail_after(1000):
        status = await handle.wait()
    assert status in (TaskStatus.CANCELLED, TaskStatus.FAILED)
    assert handle.iteration == 1
    assert len(recorder.of(TaskFailed)) == 1


@pytest.mark.realtime
async def test_loop_cancels_itself(manager: Manager) -> None:
    """A loop that never awaits can cancel itself."""

    async def work() -> None:
        if handle.iteration == 3:
            assert handle.cancel("three times")

    handle = manager.loop(work)
    with anyio.fail_after(SOON):
        with pytest.raises(TaskCancelledError, match="three times"):
            await handle
    assert handle.iteration == 3


@pytest.mark.realtime
async def test_cancel_sync_loop(manager: Manager) -> None:
    """A cancelled loop of a sync function ends when the function returns."""
    entered, release = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        release.wait(SOON)

    handle = manager.loop(work)
    assert await anyio.to_thread.run_sync(entered.wait, SOON)
    assert handle.cancel("enough")
    release.set()
    with pytest.raises(TaskCancelledError, match="enough"):
        await handle
    assert handle.iteration == 1


@pytest.mark.parametrize("state", ["running", "waiting", "backing off", "retrying", "delayed"])
async def test_lifespan_by_state(state: str, clock: Clock) -> None:
    """A loop expires at the end of its lifespan in every state."""
    hour = wait_fixed(3600)

    async def work() -> None:
        if state == "running":
            await anyio.sleep(3600)
        elif state != "waiting":
            raise ValueError

    tasks = {
        "running": make_loop_task(work, lifespan=10),
        "waiting": make_loop_task(work, lifespan=10, schedule=every(3600)),
        "backing off": make_loop_task(work, lifespan=10),
        "retrying": make_loop_task(work, lifespan=10, retry=AsyncRetrying(wait=hour)),
        "delayed": make_loop_task(work, lifespan=10, delay=9.999, schedule=every(1)),
    }
    recorder = RecordingObserver()
    async with Manager(observers=[recorder], loop_backoff=hour) as manager:
        handle = manager.run_task(tasks[state])
        with pytest.raises(TaskExpiredError, match="10 s"):
            await handle
        assert clock.now == 10
        (ended,) = recorder.of(TaskExpired)
        assert recorder.names()[-1] == "expired"
        in_attempt = state in ("running", "retrying")
        assert ended.duration == (pytest.approx(10) if in_attempt else None)
        assert ended.lifespan == 10
        assert handle.status is TaskStatus.EXPIRED


async def test_lifespan_between_iterations(manager: Manager, clock: Clock) -> None:
    """A loop that waits for its next tick expires at the end of its lifespan."""

    async def work() -> None:
        clock.note()
        await anyio.sleep(1)

    handle = manager.run_task(make_loop_task(work, schedule=every(2), lifespan=5.5))
    assert await handle.wait() is TaskStatus.EXPIRED
    assert clock.times == [0, 2, 4]
    assert clock.now == 5.5


async def test_expiry_swallowed(manager: Manager, clock: Clock) -> None:
    """A loop expires even if its function swallows the cancellation."""

    async def work() -> None:
        assert handle.iteration < 10
        try:
            await anyio.sleep(3600)
        except anyio.get_cancelled_exc_class():
            return

    handle = manager.run_task(make_loop_task(work, lifespan=5))
    with anyio.fail_after(1000):
        assert await handle.wait() is TaskStatus.EXPIRED
    assert clock.now == 5
    assert handle.iteration == 1


@pytest.mark.realtime
async def test_lifespan_without_await(manager: Manager) -> None:
    """A loop that never awaits expires at the end of its lifespan."""

    async def work() -> None:
        pass

    handle = manager.run_task(make_loop_task(work, lifespan=0.01))
    with anyio.fail_after(1):
        assert await handle.wait() is TaskStatus.EXPIRED


async def test_critical_loop_max_failures(
    recorder: RecordingObserver,
) -> None:
    """A critical loop that reaches `max_failures` fails the manager."""

    async def work() -> None:
        raise ValueError("third time")

    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="third time")):
        async with Manager(observers=[recorder]) as manager:
            task = make_loop_task(work, schedule=every(1), critical=True, max_failures=3)
            manager.run_task(task)
            await ages()
    assert [event.final for event in recorder.of(TaskFailed)] == [False, False, True]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_program_exit(error: type[BaseException], recorder: RecordingObserver) -> None:
    """A program exit raised in an iteration is raised from the manager's block."""

    async def work() -> None:
        raise error

    with pytest.raises(error):
        async with Manager(observers=[recorder]) as manager:
            handle = manager.loop(work)
            await ages()
    assert handle.status is TaskStatus.CANCELLED
    assert handle.iteration == 1
    assert [name for name in recorder.names(handle.id) if name in FINAL_EVENTS] == [
        "failed",
        "cancelled",
    ]
